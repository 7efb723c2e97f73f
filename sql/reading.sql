-- Reading: single, many, a consumer's all, shared rows; ends and unknown names.
SET client_min_messages = warning;
-- next_response: the oldest, once; NULL when there is nothing.
SELECT subdispatch.subscribe('c', id => 'r');
SELECT subdispatch.next_response('r') IS NULL AS nothing, subdispatch.next_response('r', '50ms') IS NULL AS nothing_yet;
SELECT count(subdispatch.publish('c', to_jsonb(n)) IS NULL) FROM generate_series(1, 5) n;
SELECT subdispatch.next_response('r', '20s')::jsonb #> '{payload,data}' AS first;
SELECT tst.dispatched();
SELECT subdispatch.next_response('r')::jsonb #> '{payload,data}' AS second;
SELECT r::jsonb #> '{payload,data}' AS two_more FROM subdispatch.next_responses('r', 2) r;
SELECT r::jsonb #> '{payload,data}' AS rest FROM subdispatch.next_responses('r') r;
SELECT count(*) FROM subdispatch.next_responses('r', 10, '50ms');
-- One subscription each for three readers of the same stream: a cursor each.
SELECT subdispatch.subscribe('c', id => 'a'), subdispatch.subscribe('c', id => 'b');
SELECT subdispatch.publish('c', '6');
SELECT tst.dispatched();
SELECT subdispatch.subscribe('c', id => 'late');
SELECT subdispatch.publish('c', '7');
SELECT id, array(SELECT * FROM tst.results(id)) FROM unnest('{r,a,b,late}'::text[]) id;

-- What never was, is gone, or is no consumer: 42704, from every way of reading.
SELECT subdispatch.unsubscribe('late');
SELECT i AS id, tst.sqlstate(format('SELECT subdispatch.next_response(%L)', i)) AS next_response, tst.sqlstate(format('SELECT subdispatch.next_response(%L, ''1min'')', i)) AS waiting,
       tst.sqlstate(format('SELECT * FROM subdispatch.next_responses(%L)', i)) AS next_responses, tst.sqlstate(format('SELECT * FROM subdispatch.poll(%L)', i)) AS poll,
       tst.sqlstate(format('SELECT * FROM subdispatch.poll_shared(%L)', i)) AS poll_shared, tst.sqlstate(format('SELECT * FROM subdispatch.poll(%L, timeout => ''1min'')', i)) AS poll_waiting
  FROM unnest('{late,"never was"}'::text[]) i;
-- The message is the same for both.
CREATE FUNCTION tst.message(cmd text) RETURNS text LANGUAGE plpgsql AS $$ BEGIN EXECUTE cmd; RETURN 'no error'; EXCEPTION WHEN OTHERS THEN RETURN SQLERRM; END $$;
SELECT replace(tst.message($$SELECT subdispatch.next_response('late')$$), 'late', 'never') = tst.message($$SELECT subdispatch.next_response('never')$$) AS same_message;

-- Negative and absurd timeouts, sizes and NULLs.
SELECT subdispatch.open_consumer('g');
SELECT call, tst.fails('SELECT * FROM subdispatch.' || call) FROM unnest(array[
  $$next_response('a', '-1s')$$, $$next_response('a', '-1 month')$$, $$next_response('a', '100000 years')$$, $$next_response('a', NULL)$$, $$next_response(NULL)$$,
  $$next_responses('a', 1, '-1s')$$, $$next_responses('a', 1, '100000 years')$$, $$next_responses('a', 0)$$, $$next_responses('a', -1)$$, $$next_responses('a', NULL)$$, $$next_responses(NULL)$$,
  $$poll('g', timeout => '-1s')$$, $$poll('g', timeout => '100000 years')$$, $$poll('g', timeout => NULL)$$, $$poll('g', 0)$$, $$poll('g', -1)$$, $$poll('g', NULL)$$, $$poll('g', max_bytes => 0)$$, $$poll('g', max_bytes => -1)$$, $$poll('g', max_bytes => NULL)$$, $$poll(NULL)$$,
  $$poll_shared('g', timeout => '-1s')$$, $$poll_shared('g', 0)$$, $$poll_shared('g', max_bytes => -1)$$, $$poll_shared(NULL)$$,
  $$wait_dispatched('-1s')$$, $$wait_dispatched('100000 years')$$, $$wait_dispatched(NULL)$$]) call;
SELECT subdispatch.wait_dispatched('20s') AS dispatched, subdispatch.wait_dispatched() AS by_default;
SELECT tst.clean();

-- poll: all of a consumer's subscriptions, each in order, none starved.
SELECT subdispatch.open_consumer('g') AS ended;
SELECT count(*) FROM subdispatch.poll('g', timeout => '50ms');
SELECT subdispatch.subscribe('c', id => 'busy', consumer => 'g', connection_id => 'ws-1', operation_id => '1');
SELECT subdispatch.subscribe('d', id => 'quiet', consumer => 'g');
SELECT subdispatch.subscribe('c', id => 'not g''s', consumer => 'other');
SELECT count(subdispatch.publish('c', to_jsonb(n)) IS NULL) FROM generate_series(1, 50) n;
SELECT subdispatch.publish('d', '"quiet"');
SELECT tst.dispatched();
CREATE TABLE tst.polled AS SELECT 1 AS round, * FROM subdispatch.poll('g', 10);
SELECT count(*), count(*) FILTER (WHERE subscription_id = 'quiet') AS quiet_in_first_round FROM tst.polled;
INSERT INTO tst.polled SELECT 2, * FROM subdispatch.poll('g', timeout => '20s');
SELECT count(*), count(DISTINCT (subscription_id, event_id)) AS different FROM tst.polled;
SELECT subscription_id, connection_id, operation_id, array_agg(response::jsonb #> '{payload,data}' ORDER BY ord) = array_agg(response::jsonb #> '{payload,data}' ORDER BY event_id) AS in_order,
       count(*), min(dropped) AS dropped, bool_and(response::jsonb->>'id' = operation_id) AS echoed
  FROM (SELECT *, row_number() OVER () AS ord FROM tst.polled) p GROUP BY 1, 2, 3 ORDER BY 1;
SELECT count(*) FROM subdispatch.poll('g');
SELECT count(*) FROM subdispatch.poll('other');
DROP TABLE tst.polled;
-- A subscription of a consumer can be read by itself, too; each response is returned once.
SELECT subdispatch.publish('d', '"once"');
SELECT subdispatch.next_response('quiet', '20s')::jsonb #> '{payload,data}' AS once;
SELECT count(*) FROM subdispatch.poll('g');

-- max_bytes still lets one row through, and no more than fits.
SELECT count(subdispatch.publish('d', to_jsonb(repeat('x', 1000))) IS NULL) FROM generate_series(1, 5) n;
SELECT tst.dispatched();
SELECT count(*) AS one FROM subdispatch.poll('g', max_bytes => 1);
SELECT count(*) AS two FROM subdispatch.poll('g', max_bytes => 2500);
SELECT count(*) AS rest FROM subdispatch.poll('g');
SELECT count(subdispatch.publish('d', to_jsonb(repeat('x', 1000))) IS NULL) FROM generate_series(1, 3) n;
SELECT tst.dispatched();
SELECT count(*) AS one FROM subdispatch.poll_shared('g', max_bytes => 1);
SELECT count(*) AS rest FROM subdispatch.poll_shared('g');

-- poll_shared: a row for a response, however many share it; other streams have rows of their own.
SELECT subdispatch.subscribe('d', id => 'quiet too', consumer => 'g', operation_id => '9'), subdispatch.subscribe('d', id => 'keyed', consumer => 'g', response_key => 'k');
SELECT subdispatch.publish('d', '"shared"');
SELECT tst.dispatched();
SELECT array(SELECT i FROM unnest(subscription_ids) i ORDER BY i COLLATE "C") AS ids, type, event_id IS NOT NULL AS has_event, payload::jsonb AS payload FROM subdispatch.poll_shared('g') ORDER BY 1;
-- Where the cursors stand apart, so do the rows; nothing comes twice.
SELECT subdispatch.publish('d', '1');
SELECT tst.dispatched();
SELECT subdispatch.next_response('quiet')::jsonb #> '{payload,data}' AS data;
SELECT subdispatch.publish('d', '2');
SELECT tst.dispatched();
SELECT i, array_agg(payload::jsonb->'data' ORDER BY event_id) AS data FROM subdispatch.poll_shared('g'), unnest(subscription_ids) i GROUP BY i ORDER BY i COLLATE "C";

-- Nor do those share a row whose limits have made them lose it, who stand elsewhere, or who know of less.
SELECT subdispatch.subscribe('e', id => i, consumer => 'k', max_pending => m, overflow => o)
  FROM (VALUES ('1 all', NULL, NULL), ('2 few', 2, 'drop_oldest'), ('3 early', NULL, NULL), ('4 first', 2, 'drop_newest'), ('5 all', NULL, NULL), ('6 four', 4, NULL)) s (i, m, o);
SELECT subdispatch.publish('e', '1');
SELECT tst.dispatched();
SELECT subdispatch.next_response('3 early')::jsonb #> '{payload,data}' AS data;
SELECT count(subdispatch.publish('e', to_jsonb(n)) IS NULL) FROM generate_series(2, 5) n;
SELECT tst.dispatched();
SELECT i, array_agg(payload::jsonb->'data' ORDER BY event_id) AS data, array_agg(payload::jsonb #> '{extensions,subdispatch,dropped}' ORDER BY event_id) AS dropped
  FROM subdispatch.poll_shared('k'), unnest(subscription_ids) i GROUP BY i ORDER BY i COLLATE "C";
SELECT subdispatch.close_consumer('k');

-- complete(): what is queued, then "complete"; then it is gone.
SELECT subdispatch.publish('d', '"last"');
SELECT tst.dispatched();
SELECT subdispatch.complete('quiet too'), subdispatch.complete('keyed');
SELECT subdispatch.publish('d', '"too late"');
SELECT tst.dispatched();
SELECT subscription_id, event_id IS NULL AS no_event, dropped, response::jsonb AS response FROM subdispatch.poll('g') WHERE subscription_id <> 'quiet';
SELECT tst.sqlstate($$SELECT subdispatch.next_response('quiet too')$$) AS gone, subdispatch.complete('keyed') AS again, subdispatch.unsubscribe('keyed') AS unsubscribed;
SELECT subdispatch.subscribe('d', id => 'single', operation_id => 'op', consumer => 'g');
SELECT subdispatch.complete('single');
SELECT subdispatch.next_response('single');
SELECT tst.sqlstate($$SELECT subdispatch.next_response('single')$$) AS gone;
SELECT subdispatch.subscribe('d', id => 'shared end', operation_id => 'op', consumer => 'g');
SELECT subdispatch.complete('shared end');
SELECT subscription_ids, type, event_id FROM subdispatch.poll_shared('g') WHERE type <> 'next';
-- It leaves the consumer as it is: no row, no error.
SELECT subdispatch.unsubscribe('quiet'), subdispatch.unsubscribe('busy');
SELECT count(*) FROM subdispatch.poll('g');
SELECT tst.clean();

-- disconnect: a connection's subscriptions, of every consumer or of one.
SELECT subdispatch.subscribe('c', id => 'd1', connection_id => 'ws-1', consumer => 'g'), subdispatch.subscribe('c', id => 'd2', connection_id => 'ws-1', consumer => 'g'),
       subdispatch.subscribe('c', id => 'd3', connection_id => 'ws-1', consumer => 'h'), subdispatch.subscribe('c', id => 'd4', connection_id => 'ws-2', consumer => 'g'), subdispatch.subscribe('c', id => 'd5');
SELECT subdispatch.disconnect('ws-1', 'g') AS two, subdispatch.disconnect('ws-1', 'g') AS none, subdispatch.disconnect('ws-1', 'nobody') AS no_consumer, subdispatch.disconnect('ws-1') AS one, subdispatch.disconnect('ws-9') AS unknown;
SELECT id, tst.sqlstate(format('SELECT subdispatch.next_response(%L)', id)) FROM unnest('{d1,d2,d3,d4,d5}'::text[]) id;

-- A gateway's start ends what an earlier run of that name left; its end closes the consumer.
SELECT subdispatch.publish('c', '"for the earlier run"');
SELECT tst.dispatched();
SELECT subdispatch.open_consumer('g') AS one_left, subdispatch.open_consumer('g') AS nothing_left;
SELECT count(*) FROM subdispatch.poll('g');
SELECT tst.sqlstate($$SELECT subdispatch.next_response('d4')$$) AS gone;
SELECT subdispatch.subscribe('c', id => 'd4', consumer => 'g'), subdispatch.subscribe('c', id => 'd6', consumer => 'g');
SELECT subdispatch.close_consumer('g') AS two, subdispatch.close_consumer('g') AS closed_before;
SELECT tst.sqlstate($$SELECT * FROM subdispatch.poll('g')$$) AS poll, tst.sqlstate($$SELECT subdispatch.next_response('d6')$$) AS next_response;
SELECT subdispatch.open_consumer('g') AS fresh;
SELECT tst.clean();

-- The memory for rows is used again, however a query ends; who reads while another's query is not done has memory of his own.
SELECT subdispatch.subscribe('c', id => 'm', consumer => 'g'), subdispatch.subscribe('c', id => 'n', consumer => 'h');
SELECT count(subdispatch.publish('c', to_jsonb(repeat('x', 2000) || n)) IS NULL) FROM generate_series(1, 900) n;
SELECT tst.dispatched();
DO $$ BEGIN
  FOR i IN 1..8 LOOP
    BEGIN
      PERFORM 1 / (count(*) - 100) FROM subdispatch.poll('g', 100);
      RAISE 'no error';
    EXCEPTION WHEN division_by_zero THEN NULL;
    END;
  END LOOP;
END $$;
SELECT count(*) AS h FROM subdispatch.poll('h', 800);
SELECT name, total_bytes < 1200000 AS no_more_than_kept FROM pg_backend_memory_contexts WHERE name = 'subdispatch rows';
BEGIN;
DECLARE x CURSOR FOR SELECT (g.response::jsonb #>> '{payload,data}') = (h.response::jsonb #>> '{payload,data}') AS same, g.ordinality
  FROM subdispatch.poll('g', 50) WITH ORDINALITY g JOIN subdispatch.poll('h', 50) WITH ORDINALITY h USING (ordinality);
FETCH 1 FROM x;
SELECT count(*), min(response::jsonb #>> '{payload,data}') = repeat('x', 2000) || '851' AS first FROM subdispatch.poll('g', 1000);
MOVE 48 IN x;
FETCH ALL FROM x;
COMMIT;
SELECT count(*), max(response::jsonb #>> '{payload,data}') = repeat('x', 2000) || '900' AS last FROM subdispatch.poll('h', 1000);
SELECT tst.clean();
DROP FUNCTION tst.message;
