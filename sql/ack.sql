-- Acknowledged reading: a batch is returned again until it is acknowledged.
SET client_min_messages = warning;
-- What calls returned, as rows in their order, whole.
CREATE TABLE tst.got (call text, n bigserial, r text, batch bigint);
CREATE FUNCTION tst.take(call text, ack bigint, args text DEFAULT '', which text DEFAULT 'poll', OUT rows bigint, OUT what text, OUT batches bigint, OUT batch bigint) LANGUAGE plpgsql AS $$
BEGIN
  EXECUTE format('INSERT INTO tst.got (call, r, batch) SELECT %L, p::text, p.batch FROM subdispatch.%I(''g'', ack => $1 %s) p', call, which, args) USING ack;
  SELECT count(*), string_agg(coalesce((regexp_match(r, '(\w+|{[\w,]+}),'))[1], '?') || ' ' || coalesce((regexp_match(r, 'data"": *([^,}]*)'))[1], '-'), ', ' ORDER BY n), count(DISTINCT g.batch), min(g.batch)
    INTO rows, what, batches, batch FROM tst.got g WHERE g.call = take.call;
END $$;
CREATE FUNCTION tst.same(a text, b text) RETURNS boolean LANGUAGE sql AS $$
  SELECT array_agg(r ORDER BY n) FILTER (WHERE call = a) = array_agg(r ORDER BY n) FILTER (WHERE call = b) FROM tst.got $$;

SELECT subdispatch.open_consumer('g');
-- Nothing to read: no row, and nothing is outstanding.
SELECT rows, batch FROM tst.take('empty', 0);
SELECT batch, outstanding FROM subdispatch.consumers WHERE consumer = 'g';
SELECT subdispatch.subscribe('c', id => 'a', consumer => 'g', connection_id => 'ws', operation_id => '1'), subdispatch.subscribe('c', id => 'b', consumer => 'g');
SELECT count(subdispatch.publish('c', to_jsonb(n)) IS NULL) FROM generate_series(1, 5) n;
SELECT tst.dispatched();
SELECT responses_delivered AS before FROM subdispatch.stats \gset
SELECT rows, what, batches, batch > 0 AS numbered, batch AS b1 FROM tst.take('first', 0, ', max_responses => 4') \gset
SELECT :rows AS rows, :'what' AS what, :batches AS batches, :'numbered' AS numbered;
-- Shown, counted once, and not pending any more: the limits are for what is queued.
SELECT batch = :b1 AS shown, outstanding, pending FROM subdispatch.consumers WHERE consumer = 'g';
SELECT id, pending, delivered, dropped, state FROM subdispatch.subscriptions ORDER BY id;
-- 0 acknowledges nothing: the same again, byte for byte, whatever the call's size and timeout.
SELECT rows, what FROM tst.take('first again', 0, ', max_responses => 1');
SELECT rows FROM tst.take('first once more', 0, $$, max_bytes => 1, timeout => '1min'$$);
SELECT tst.same('first', 'first again'), tst.same('first', 'first once more'), (SELECT responses_delivered - :before FROM subdispatch.stats) AS delivered;
-- Acknowledged: the next one.
SELECT rows, what, batch AS b2 FROM tst.take('second', :b1, ', max_responses => 3') \gset
SELECT :rows AS rows, :'what' AS what, :b2 > :b1 AS later;
-- The reader did not get it, and asks again in the same way; more has come meanwhile.
SELECT subdispatch.publish('c', '6');
SELECT tst.dispatched();
SELECT rows, what FROM tst.take('second again', :b1, ', max_responses => 1000');
SELECT tst.same('second', 'second again');
-- Numbers that are none, or too old: 22023, and the one that is outstanding is named. Nothing changes.
SELECT ack, tst.sqlstate(format('SELECT * FROM subdispatch.poll(''g'', ack => %s)', ack)), tst.fails(format('SELECT * FROM subdispatch.poll(''g'', ack => %s)', ack), :b2::text) = 'refused, names ' || :b2 AS names_it
  FROM unnest('{-1,1,9223372036854775807,-9223372036854775808}'::bigint[]) ack;
SELECT tst.sqlstate(format('SELECT * FROM subdispatch.poll_shared(''g'', ack => %s)', :b1 - 1));
SELECT rows, what FROM tst.take('second, third time', 0);
SELECT tst.same('second', 'second, third time');
-- The other function would return other rows.
SELECT tst.sqlstate($$SELECT * FROM subdispatch.poll_shared('g', ack => 0)$$), tst.sqlstate($$SELECT * FROM subdispatch.poll_shared('g')$$), tst.fails($$SELECT * FROM subdispatch.poll_shared('g', ack => 0)$$, 'poll\(\)');
-- But it may acknowledge.
SELECT rows, what, batch AS b3 FROM tst.take('shared', :b2, ', max_responses => 1', 'poll_shared') \gset
SELECT :rows AS rows, :'what' AS what;
SELECT tst.sqlstate($$SELECT * FROM subdispatch.poll('g')$$);
SELECT rows, what FROM tst.take('shared again', :b2, '', 'poll_shared');
SELECT tst.same('shared', 'shared again'), (SELECT outstanding FROM subdispatch.consumers WHERE consumer = 'g');
-- All is read and acknowledged: no row, and the last number remains good.
SELECT rows, what, batch AS b4 FROM tst.take('rest', :b3) \gset
SELECT :rows AS rows, :'what' AS what;
SELECT rows, batch FROM tst.take('nothing', :b4);
SELECT rows, batch FROM tst.take('still nothing', :b4);
SELECT batch, outstanding FROM subdispatch.consumers WHERE consumer = 'g';
SELECT tst.sqlstate(format('SELECT * FROM subdispatch.poll(''g'', ack => %s)', :b3)) AS too_old, tst.fails(format('SELECT * FROM subdispatch.poll(''g'', ack => %s)', :b3), :b4::text) = 'refused, names ' || :b4 AS names_the_last;
SELECT id, delivered, dropped FROM subdispatch.subscriptions ORDER BY id;
SELECT (SELECT responses_delivered - :before FROM subdispatch.stats) AS delivered;

-- A batch stays outstanding if its transaction rolls back.
SELECT subdispatch.publish('c', '7');
SELECT tst.dispatched();
BEGIN;
SELECT count(*) FROM subdispatch.poll('g', ack => 0);
ROLLBACK;
SELECT rows, what, batch AS b5 FROM tst.take('after the rollback', 0) \gset
SELECT :rows AS rows, :'what' AS what;
-- An outstanding batch is something to read: waiting ends at once.
CALL subdispatch.await_responses('g', '1h');

-- Without ack: what is outstanding once more, with its number, alone; from then on at most once.
SELECT subdispatch.publish('c', '8');
SELECT tst.dispatched();
SELECT rows, what FROM tst.take('the last time', NULL);
SELECT tst.same('after the rollback', 'the last time');
SELECT rows, what, batch FROM tst.take('at most once', NULL);
SELECT rows FROM tst.take('read', NULL);
-- The number is the last one acknowledged, and a reader may begin again.
SELECT rows FROM tst.take('begun again', :b5);

-- A last message and a loss are repeated as well; the subscription is forgotten once that is acknowledged.
SELECT subdispatch.subscribe('d', id => 'lossy', consumer => 'g', max_pending => 1);
SELECT count(subdispatch.publish('d', to_jsonb(n)) IS NULL) FROM generate_series(1, 3) n;
SELECT tst.dispatched();
SELECT subdispatch.complete('lossy'), subdispatch.unsubscribe('a');
SELECT rows, what, batch AS b6 FROM tst.take('ended', 0) \gset
SELECT rows FROM tst.take('ended again', 0);
SELECT tst.same('ended', 'ended again');
SELECT r LIKE '%,2,%' AS dropped_two, r ~ 'complete' AS complete FROM tst.got WHERE call = 'ended' ORDER BY n;
SELECT id, state, pending FROM subdispatch.subscriptions ORDER BY id;
-- Replaced, and unsubscribed, meanwhile: the batch stays what it was.
SELECT subdispatch.subscribe('d', id => 'lossy', consumer => 'g'), subdispatch.unsubscribe('b');
SELECT rows FROM tst.take('ended, third time', 0);
SELECT tst.same('ended', 'ended, third time');
SELECT rows FROM tst.take('forgotten', :b6);
SELECT id, state FROM subdispatch.subscriptions ORDER BY id;
SELECT subdispatch.complete('lossy');
SELECT rows, what, batch AS b7 FROM tst.take('ended 2', 0) \gset
SELECT id, state FROM subdispatch.subscriptions ORDER BY id;
SELECT rows FROM tst.take('forgotten 2', :b7);
SELECT count(*) FROM subdispatch.subscriptions;

-- A large batch is one batch, whatever its parts.
SELECT subdispatch.subscribe('e', id => 'e' || n, consumer => 'g', connection_id => repeat('x', 40)) FROM generate_series(1, 30) n \g (format=unaligned tuples_only=on) /dev/null
SELECT count(subdispatch.publish('e', to_jsonb(n)) IS NULL) FROM generate_series(1, 50) n;
SELECT tst.dispatched();
SELECT rows, batches, batch AS b8 FROM tst.take('large', 0, ', max_responses => 1400') \gset
SELECT :rows AS rows, :batches AS batches;
SELECT rows FROM tst.take('large again', 0);
SELECT tst.same('large', 'large again');
-- max_bytes bounds it, but lets one row through.
SELECT rows, batch AS b9 FROM tst.take('small', :b8, ', max_bytes => 1') \gset
SELECT :rows AS rows;
-- What a gateway's next run begins with: nothing of the earlier one's.
SELECT subdispatch.open_consumer('g') AS ended;
SELECT batch, outstanding, pending FROM subdispatch.consumers WHERE consumer = 'g';
SELECT tst.sqlstate(format('SELECT * FROM subdispatch.poll(''g'', ack => %s)', :b9)) AS earlier_run;
SELECT rows FROM tst.take('new run', 0);
SELECT subdispatch.subscribe('e', id => 'e', consumer => 'g');
SELECT subdispatch.publish('e', '51');
SELECT tst.dispatched();
SELECT batch > :b9 AS later FROM tst.take('of the new run', 0);
SELECT subdispatch.close_consumer('g');
SELECT tst.sqlstate($$SELECT * FROM subdispatch.poll('g', ack => 0)$$);
SELECT subdispatch.open_consumer('g');
SELECT rows FROM tst.take('of a new one', 0);
SELECT tst.clean();
-- It is its owner's.
SELECT subdispatch.open_consumer('g');
SET ROLE regress_sub_bob;
SELECT tst.sqlstate($$SELECT * FROM subdispatch.poll('g', ack => 0)$$), tst.sqlstate($$SELECT * FROM subdispatch.poll_shared('g', ack => 0)$$);
RESET ROLE;
SELECT tst.clean();
DROP FUNCTION tst.take, tst.same;
DROP TABLE tst.got;
