-- 100 subscriptions, one event, one resolver call, and all 100 are answered, each with its own id.
SET client_min_messages = warning;
CREATE FUNCTION tst.counted(event jsonb, variables jsonb) RETURNS jsonb LANGUAGE plpython3u TRANSFORM FOR TYPE jsonb AS $$
plpy.execute("INSERT INTO tst.calls (resolver) VALUES ('counted')")
return {"answer": event["data"]["n"] * 2, "for": variables}
$$;
SELECT count(subdispatch.subscribe('parallel', 'tst.counted', '{"v": 1}', id => 'p' || n, operation_id => 'op' || n, consumer => 'gateway', connection_id => 'ws' || n % 10)) FROM generate_series(1, 100) n;
SELECT resolver_calls AS calls_before FROM subdispatch.stats \gset
SELECT subdispatch.publish('parallel', '{"n": 21}');
SELECT tst.dispatched();
SELECT count(*) AS calls FROM tst.calls;
SELECT resolver_calls - :calls_before AS calls_counted FROM subdispatch.stats;
SELECT response_streams, subscriptions FROM subdispatch.channels WHERE channel = 'parallel';
SELECT count(*) AS answered, count(DISTINCT subscription_id) AS subscriptions,
       bool_and(response::jsonb = jsonb_build_object('type', 'next', 'id', operation_id, 'payload', '{"data": {"answer": 42, "for": {"v": 1}}, "errors": null}'::jsonb)) AS right,
       bool_and(operation_id = 'op' || substr(subscription_id, 2)) AS own_operation, count(DISTINCT connection_id) AS connections,
       count(DISTINCT event_id) AS events, sum(dropped) AS dropped
  FROM subdispatch.poll('gateway');
SELECT count(*) FROM subdispatch.poll('gateway');

-- Shared reading: one row for all 100.
SELECT subdispatch.publish('parallel', '{"n": 22}');
SELECT tst.dispatched();
SELECT type, cardinality(subscription_ids) AS subscriptions, (SELECT count(DISTINCT i) FROM unnest(subscription_ids) i) AS different, event_id IS NOT NULL AS has_event, payload::jsonb AS payload FROM subdispatch.poll_shared('gateway');
SELECT count(*) FROM subdispatch.poll_shared('gateway');
SELECT count(*) AS calls FROM tst.calls;

-- 100 different variables: 100 calls, or one of the batched form; each is answered by its own.
SELECT subdispatch.close_consumer('gateway');
TRUNCATE tst.calls;
CREATE FUNCTION tst.counted_batch(event jsonb, variables jsonb[]) RETURNS jsonb[] LANGUAGE plpython3u TRANSFORM FOR TYPE jsonb AS $$
plpy.execute("INSERT INTO tst.calls (resolver) VALUES ('counted_batch')")
return [{"for": v} for v in variables]
$$;
SELECT count(subdispatch.subscribe('parallel', 'tst.counted', jsonb_build_object('v', n), id => 'one' || n)), count(subdispatch.subscribe('parallel', 'tst.counted_batch', jsonb_build_object('v', n), id => 'batch' || n)) FROM generate_series(1, 100) n;
SELECT subdispatch.publish('parallel', '{"n": 1}');
SELECT tst.dispatched();
SELECT resolver, count(*) FROM tst.calls GROUP BY resolver ORDER BY resolver;
SELECT count(*) FILTER (WHERE subdispatch.next_response('one' || n)::jsonb #> '{payload,data,for,v}' = to_jsonb(n)) AS ones_right,
       count(*) FILTER (WHERE subdispatch.next_response('batch' || n)::jsonb #> '{payload,data,for,v}' = to_jsonb(n)) AS batch_right FROM generate_series(1, 100) n;
SELECT tst.clean();
DROP FUNCTION tst.counted, tst.counted_batch;
TRUNCATE tst.calls;
