-- after_event: a subscription goes on after an event that its client has seen.
SET client_min_messages = warning;
-- What is queued, as soon as it has caught up: its data, and whether a loss is told.
CREATE FUNCTION tst.caught_up(id text) RETURNS TABLE (data jsonb, told boolean) LANGUAGE plpgsql AS $$
BEGIN
  PERFORM tst.dispatched();
  FOR i IN 1 .. 1000 LOOP
    EXIT WHEN EXISTS (SELECT FROM subdispatch.subscriptions s WHERE s.id = caught_up.id AND state = 'active');
    PERFORM pg_sleep(0.01);
  END LOOP;
  RETURN QUERY SELECT r #> '{payload,data}', r #> '{payload,extensions,subdispatch}' ? 'dropped' FROM tst.drain(caught_up.id) r;
END $$;
SELECT subdispatch.subscribe('resumed', id => 'first', consumer => 'first');
SELECT count(subdispatch.publish('resumed', to_jsonb(n)) IS NULL) FROM generate_series(1, 5) n;
SELECT tst.dispatched();
CREATE TABLE tst.seen AS SELECT (response::jsonb #>> '{payload,data}')::int AS n, event_id FROM subdispatch.poll('first');
-- After the third; the first; the last, after which there is nothing.
SELECT subdispatch.subscribe('resumed', id => 'third', after_event => (SELECT event_id FROM tst.seen WHERE n = 3));
SELECT * FROM tst.caught_up('third');
SELECT subdispatch.subscribe('resumed', id => 'last', after_event => (SELECT event_id FROM tst.seen WHERE n = 5));
SELECT * FROM tst.caught_up('last');
-- Then what is new; a subscription without after_event has nothing of before.
SELECT subdispatch.subscribe('resumed', id => 'new', after_event => NULL);
SELECT subdispatch.publish('resumed', '6');
SELECT id, array(SELECT data FROM tst.caught_up(id)) AS data FROM unnest('{third,last,new}'::text[]) id;
-- Filter, resolver and key are those of the subscription that resumes; '*' has its own copies only while somebody subscribes to it.
CREATE FUNCTION tst.plus(event jsonb, variables jsonb) RETURNS jsonb LANGUAGE sql AS $$ SELECT to_jsonb((event->>'data')::int + (variables->>'by')::int) $$;
SELECT subdispatch.subscribe('resumed', 'tst.plus', '{"by": 100}', response_key => 'k', id => 'plus', after_event => (SELECT event_id FROM tst.seen WHERE n = 4));
SELECT * FROM tst.caught_up('plus');
-- The channel lingers: what comes while nobody subscribes is there for who comes back.
SELECT count(subdispatch.unsubscribe(id)) FROM subdispatch.subscriptions;
SELECT count(*) FROM subdispatch.channels WHERE channel = 'resumed';
SELECT subdispatch.publish('resumed', '7');
SELECT subdispatch.subscribe('resumed', id => 'back', after_event => (SELECT event_id FROM tst.seen WHERE n = 5));
SELECT * FROM tst.caught_up('back');
-- Beyond what is known: a gap is told, and what is there comes.
SELECT subdispatch.subscribe('resumed', id => 'all', after_event => 0);
SELECT * FROM tst.caught_up('all');
SELECT subdispatch.subscribe('never seen', id => 'nothing', after_event => (SELECT event_id FROM tst.seen WHERE n = 5));
SELECT * FROM tst.caught_up('nothing');
-- No such place.
SELECT subdispatch.subscribe('resumed', after_event => -1);
\set VERBOSITY sqlstate
SELECT subdispatch.subscribe('resumed', after_event => 9007199254740993);
SELECT subdispatch.subscribe('resumed', after_event => 9223372036854775807);
\set VERBOSITY default
-- What is not read is limited by its bytes, too: a replay runs ahead by half of the limit.
SELECT subdispatch.subscribe('wide', id => 'live', consumer => 'wide');
SELECT count(subdispatch.publish('wide', to_jsonb(repeat('x', 10000))) IS NULL) FROM generate_series(1, 12);
SELECT tst.dispatched();
SELECT min(event_id) - 1 AS before FROM subdispatch.poll('wide') \gset
SET subdispatch.max_pending_bytes = '64kB';
SELECT subdispatch.subscribe('wide', id => 'narrow', after_event => :before);
RESET subdispatch.max_pending_bytes;
CREATE PROCEDURE tst.wait_for_pending(id text, n int) LANGUAGE plpgsql AS $$
BEGIN
  FOR i IN 1 .. 1000 LOOP
    EXIT WHEN EXISTS (SELECT FROM subdispatch.subscriptions s WHERE s.id = wait_for_pending.id AND pending >= n);
    PERFORM pg_sleep(0.01);
  END LOOP;
END $$;
CALL tst.wait_for_pending('narrow', 4);
SELECT subdispatch.publish('wide', '1');
SELECT tst.dispatched();
SELECT subdispatch.publish('wide', '2');
SELECT tst.dispatched();
SELECT state, pending FROM subdispatch.subscriptions WHERE id = 'narrow';
SELECT count(*) FROM subdispatch.next_responses('narrow', 4);
CALL tst.wait_for_pending('narrow', 4);
SELECT count(*) FROM subdispatch.next_responses('narrow', 4);
CALL tst.wait_for_pending('narrow', 4);
SELECT count(*) FROM subdispatch.next_responses('narrow', 4);
SELECT data FROM tst.caught_up('narrow');
-- Undone with its transaction.
BEGIN;
SELECT subdispatch.subscribe('resumed', id => 'undone', after_event => 0);
ROLLBACK;
SELECT count(*) FROM subdispatch.subscriptions WHERE id = 'undone';
-- Ended at once.
SELECT subdispatch.subscribe('resumed', id => 'short', after_event => 0), subdispatch.unsubscribe('short');
SELECT responses_replayed > 0 AS replayed FROM subdispatch.stats;
DROP TABLE tst.seen;
SELECT tst.clean();
