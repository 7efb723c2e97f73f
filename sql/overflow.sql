-- More than max_pending: what is kept, what is dropped, and that it is told.
SET client_min_messages = warning;
-- What is read until there is nothing more, each with what it says was dropped. A loss notice comes when the queue is empty.
CREATE FUNCTION tst.read(id text) RETURNS TABLE (type text, data jsonb, dropped jsonb) LANGUAGE plpgsql AS $$
DECLARE r jsonb;
BEGIN
  PERFORM tst.dispatched();
  LOOP
    r := subdispatch.next_response(read.id, '1500ms');
    EXIT WHEN r IS NULL;
    type := r->>'type'; data := coalesce(r #> '{payload,data}', r->'payload'); dropped := r #> '{payload,extensions,subdispatch,dropped}';
    IF type = 'error' THEN data := NULL; END IF;
    RETURN NEXT;
    EXIT WHEN type <> 'next';
  END LOOP;
END $$;

-- drop_oldest keeps the newest.
SELECT subdispatch.subscribe('o', id => 'oldest', max_pending => 3, overflow => 'drop_oldest'), subdispatch.subscribe('o', id => 'all of them');
SELECT count(subdispatch.publish('o', to_jsonb(n)) IS NULL) FROM generate_series(1, 5) n;
SELECT * FROM tst.read('oldest');
-- Its neighbour in the same stream lost nothing.
SELECT count(*), count(r #> '{payload,extensions}') AS told FROM tst.drain('all of them') r;
-- Told once.
SELECT subdispatch.publish('o', '6');
SELECT * FROM tst.read('oldest');
SELECT id, pending, delivered, dropped FROM subdispatch.subscriptions ORDER BY id;
-- The response with the loss, byte by byte where its form is fixed.
SELECT count(subdispatch.publish('o', to_jsonb(n)) IS NULL) FROM generate_series(7, 10) n;
SELECT tst.dispatched();
SELECT replace(subdispatch.next_response('oldest'), ': ', ':') LIKE '{"type":"next","id":"oldest","payload":{"data":8,"errors":null%"extensions":{"subdispatch":{"dropped":1}}}}' AS response;
SELECT tst.clean();

-- drop_newest keeps what is queued, and drops until that is drained: one gap.
SELECT subdispatch.subscribe('o', id => 'newest', max_pending => 3, overflow => 'drop_newest');
SELECT count(subdispatch.publish('o', to_jsonb(n)) IS NULL) FROM generate_series(1, 5) n;
SELECT tst.dispatched();
SELECT subdispatch.next_response('newest')::jsonb #> '{payload,data}' AS data;
SELECT subdispatch.publish('o', '6');
SELECT * FROM tst.read('newest');
SELECT subdispatch.publish('o', '7');
SELECT * FROM tst.read('newest');
SELECT delivered >= 4 AS delivered, dropped FROM subdispatch.subscriptions;
SELECT tst.clean();
-- A response that follows the gap brings the number itself.
SELECT subdispatch.subscribe('o', id => 'newest', max_pending => 1, overflow => 'drop_newest', consumer => 'g');
SELECT count(subdispatch.publish('o', to_jsonb(n)) IS NULL) FROM generate_series(1, 3) n;
SELECT tst.dispatched();
SELECT response::jsonb #> '{payload,data}' AS data, event_id IS NULL AS no_event, dropped FROM subdispatch.poll('g', 1);
SELECT subdispatch.publish('o', '4');
SELECT tst.dispatched();
CREATE TABLE tst.told AS SELECT * FROM subdispatch.poll('g', timeout => '20s');
SELECT sum(dropped) AS dropped, max(response::jsonb #>> '{payload,data}') AS data FROM tst.told;
DROP TABLE tst.told;
SELECT tst.clean();

-- error ends the subscription: what is queued, then the error.
SELECT subdispatch.subscribe('o', id => 'error', max_pending => 3, overflow => 'error', operation_id => 'op'), subdispatch.subscribe('o', id => 'neighbour');
SELECT count(subdispatch.publish('o', to_jsonb(n)) IS NULL) FROM generate_series(1, 5) n;
SELECT * FROM tst.read('error');
SELECT tst.sqlstate($$SELECT subdispatch.next_response('error')$$) AS gone;
SELECT count(*) FROM tst.results('neighbour');
SELECT tst.clean();
-- Exactly max_pending is no overflow.
SELECT subdispatch.subscribe('o', id => o, max_pending => 3, overflow => o) FROM unnest('{drop_oldest,drop_newest,error}'::text[]) o;
SELECT count(subdispatch.publish('o', to_jsonb(n)) IS NULL) FROM generate_series(1, 3) n;
SELECT o, array(SELECT r->'payload' FROM tst.drain(o) r) FROM unnest('{drop_oldest,drop_newest,error}'::text[]) o;
SELECT tst.clean();

-- In poll and poll_shared: the row with a loss is the subscription's own, its neighbours keep sharing.
SELECT subdispatch.subscribe('o', id => 'small', max_pending => 2, overflow => 'drop_oldest', consumer => 'g');
SELECT subdispatch.subscribe('o', id => 'large ' || n, consumer => 'g') FROM generate_series(1, 2) n;
SELECT count(subdispatch.publish('o', to_jsonb(n)) IS NULL) FROM generate_series(1, 3) n;
SELECT tst.dispatched();
SELECT array(SELECT i FROM unnest(subscription_ids) i ORDER BY i) AS ids, type, payload::jsonb->'data' AS data, payload::jsonb #> '{extensions,subdispatch,dropped}' AS dropped
  FROM subdispatch.poll_shared('g') WHERE (payload::jsonb->'data')::int < 3 ORDER BY 3, 1;
SELECT count(subdispatch.publish('o', to_jsonb(n)) IS NULL) FROM generate_series(4, 6) n;
SELECT tst.dispatched();
SELECT subscription_id, response::jsonb #> '{payload,data}' AS data, dropped FROM subdispatch.poll('g') WHERE subscription_id = 'small';
SELECT tst.clean();

-- max_pending_bytes: at most 10 MB wait, however few they are.
SELECT subdispatch.subscribe('o', id => 'bytes');
SELECT count(subdispatch.publish('o', to_jsonb(repeat('x', 900000))) IS NULL) FROM generate_series(1, 14) n;
SELECT tst.dispatched();
CREATE TABLE tst.kept AS SELECT r::jsonb FROM subdispatch.next_responses('bytes', 1000) r;
SELECT count(*) BETWEEN 8 AND 11 AS at_most_10_mb, count(*) + sum((r #> '{payload,extensions,subdispatch,dropped}')::int) AS accounted_for FROM tst.kept;
DROP TABLE tst.kept;
SELECT tst.clean();
DROP FUNCTION tst.read;
