-- Consumers with more to read, or to look at, than what the locks are held for.
SET client_min_messages = warning;

-- One stream: one row, however many share it.
SELECT count(subdispatch.subscribe('t', id => 's' || i, consumer => 'shared')) FROM generate_series(1, 1500) i;
SELECT subdispatch.publish('t', '1');
SELECT tst.dispatched();
SELECT cardinality(subscription_ids), payload::jsonb -> 'data' AS data FROM subdispatch.poll_shared('shared');
SELECT count(*) FROM subdispatch.poll_shared('shared');
-- With an acknowledgement there may be more rows, but each has its response once; the same again, until it is acknowledged.
SELECT subdispatch.publish('t', '2'), subdispatch.publish('t', '3');
SELECT tst.dispatched();
CREATE TEMPORARY TABLE batch AS
SELECT p.batch, p.event_id, u.id FROM subdispatch.poll_shared('shared', ack => 0) p, LATERAL unnest(p.subscription_ids) u(id);
SELECT count(*), count(DISTINCT id) AS ids, count(DISTINCT event_id) AS events, count(DISTINCT (event_id, id)) AS responses, count(DISTINCT b.batch) AS batches FROM batch b;
SELECT count(*), count(*) FILTER (WHERE (p.batch, p.event_id, u.id) IN (SELECT * FROM batch)) AS the_same
  FROM subdispatch.poll_shared('shared', ack => 0) p, LATERAL unnest(p.subscription_ids) u(id);
SELECT count(*) FROM subdispatch.poll_shared('shared', ack => (SELECT min(b.batch) FROM batch b));
-- Read one by one: each subscription has its own in order, and none is left out when a call ends in the middle of a turn.
SELECT subdispatch.publish('t', '4'), subdispatch.publish('t', '5');
SELECT tst.dispatched();
SELECT count(*), count(DISTINCT subscription_id) AS ids, bool_and(response::jsonb #> '{payload,data}' = '4') AS the_first FROM subdispatch.poll('shared', 1100);
SELECT count(*), count(DISTINCT subscription_id) AS ids FROM subdispatch.poll('shared', 10000);
SELECT subdispatch.close_consumer('shared');

-- Streams of their own.
SELECT count(subdispatch.subscribe('t', id => 'o' || i, consumer => 'own', filter => jsonb_build_object('n', jsonb_build_object('gt', -i)))) FROM generate_series(1, 700) i;
SELECT subdispatch.publish('t', '{"n": 1}'), subdispatch.publish('t', '{"n": 2}');
SELECT tst.dispatched();
SELECT count(*), count(DISTINCT subscription_id) AS ids, bool_and(response::jsonb #> '{payload,data,n}' = '1') AS the_first FROM subdispatch.poll('own', 700);
SELECT count(*), count(DISTINCT subscription_id) AS ids FROM subdispatch.poll('own', 10000);
SELECT subdispatch.publish('t', '{"n": 3}');
SELECT tst.dispatched();
SELECT count(*), count(DISTINCT subscription_id) AS ids, count(DISTINCT p.batch) AS batches FROM subdispatch.poll('own', 10000, ack => 0) p;
SELECT count(*), count(DISTINCT subscription_id) AS ids FROM subdispatch.poll('own', 10000, ack => 0);
SELECT count(*) FROM subdispatch.poll('own', ack => (SELECT batch FROM subdispatch.consumers WHERE consumer = 'own'));
SELECT subdispatch.close_consumer('own');

-- All hold back a notice of a loss, but one has a response: poll() finds it behind them, and so does waiting.
SELECT count(subdispatch.subscribe('t', id => 'l' || i, consumer => 'held', response_key => 'k' || i, rate_limit => 0.0001, burst => 1)) FROM generate_series(1, 700) i;
SELECT subdispatch.subscribe('u', id => 'free', consumer => 'held');
SELECT subdispatch.publish('t', '1'), subdispatch.publish('t', '2');
SELECT tst.dispatched();
SELECT count(*) FILTER (WHERE dropped = 0) AS responses, count(*) FILTER (WHERE dropped = 1) AS losses FROM subdispatch.poll('held', 10000);
SELECT subdispatch.publish('t', '3'), subdispatch.publish('u', '4');
SELECT tst.dispatched();
CALL subdispatch.await_responses('held', '10s');
SELECT count(*) FROM subdispatch.poll('held', 10000) WHERE subscription_id = 'free';
-- Nor does it go round and round until they are due: it says that there is nothing yet. On a slow machine they may be due.
DO $$
DECLARE
	n bigint;
	counts bigint[];
BEGIN
	FOR i IN 1..5 LOOP
		PERFORM pg_sleep(1.1);
		PERFORM count(*) FROM subdispatch.poll('held', 10000);
		PERFORM subdispatch.publish('t', '5');
		COMMIT;
		PERFORM subdispatch.wait_dispatched('10s');
		SELECT count(*) INTO n FROM subdispatch.poll('held', 10000);
		IF n = 0 THEN
			RETURN;
		END IF;
		counts := counts || n;
	END LOOP;
	RAISE 'not nothing, but responses: %', counts;
END $$;
-- They come when they are due.
CALL subdispatch.await_responses('held', '10s');
SELECT count(*) > 0 AS come FROM subdispatch.poll('held', 10000);
SELECT subdispatch.close_consumer('held');
