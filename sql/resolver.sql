-- Resolvers: how often they run, and what their failures cost.
SET client_min_messages = warning;
CREATE FUNCTION tst.note(event jsonb, variables jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
  INSERT INTO tst.calls VALUES ('note', variables, event->'data');
  RETURN event->'data';
END $$;
-- One call for each event and distinct (resolver, variables, identity): filter, key, id, connection make no difference,
-- nor do spelling and order of the variables' JSON.
SELECT subdispatch.subscribe('r', 'tst.note', '{"a": 1, "b": 2}', id => 'one');
SELECT subdispatch.subscribe('r', 'tst.note', '{"b": 2, "a": 1}', id => 'same', connection_id => 'ws');
SELECT subdispatch.subscribe('r', 'tst.note', '{"a": 1, "b": 2}', '{"n": {"gt": 0}}', id => 'filtered', response_key => 'k');
SELECT subdispatch.subscribe('r', 'tst.note', '{"a": 1, "b": 3}', id => 'other variables');
SELECT subdispatch.subscribe('r', 'tst.note', '{"a": 9}', '{"n": {"lt": 0}}', id => 'filtered out');
SELECT subdispatch.publish('r', '{"n": 1}'), subdispatch.publish('r', '{"n": 2}');
SELECT tst.dispatched();
SELECT variables, event, count(*) FROM tst.calls GROUP BY 1, 2 ORDER BY 1, 2;
SELECT s.id, array(SELECT * FROM tst.results(s.id)) FROM subdispatch.subscriptions s ORDER BY 1;
SELECT tst.clean();
TRUNCATE tst.calls;

-- Errors cost only the subscriptions that share them; what the resolver had written is undone.
CREATE FUNCTION tst.fails_late(event jsonb, variables jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
  INSERT INTO tst.calls VALUES ('fails_late');
  IF (event->'data')::int = 2 THEN
    RAISE EXCEPTION 'number % is not "served"', event->'data' USING ERRCODE = 'ZZ123', DETAIL = 'secret detail';
  END IF;
  RETURN event->'data';
END $$;
SELECT subdispatch.subscribe('r', 'tst.fails_late', id => 'fails'), subdispatch.subscribe('r', 'tst.fails_late', id => 'keyed', response_key => 'k', operation_id => '1'),
       subdispatch.subscribe('r', 'tst.note', id => 'fine'), subdispatch.subscribe('r', id => 'none');
SELECT resolver_errors AS errors_before, resolver_timeouts AS timeouts_before FROM subdispatch.stats \gset
SELECT count(subdispatch.publish('r', to_jsonb(n)) IS NULL) FROM generate_series(1, 3) n;
SELECT s.id, array(SELECT * FROM tst.results(s.id)) FROM unnest('{fine,none}'::text[]) s(id);
SELECT id, r->'payload' AS payload FROM unnest('{fails,keyed}'::text[]) id, tst.drain(id) r;
SELECT resolver, count(*) FROM tst.calls GROUP BY 1 ORDER BY 1;
SELECT resolver_errors > :errors_before AS errors_counted, resolver_timeouts = :timeouts_before AS no_timeout FROM subdispatch.stats;
SELECT id, errors FROM subdispatch.subscriptions ORDER BY id;
SELECT tst.clean();
TRUNCATE tst.calls;

-- Other ways to fail.
CREATE FUNCTION tst.divides(event jsonb, variables jsonb) RETURNS jsonb LANGUAGE sql AS 'SELECT to_jsonb(1 / (event->>''data'')::int)';
CREATE FUNCTION tst.recurses(event jsonb, variables jsonb) RETURNS jsonb LANGUAGE plpgsql AS 'BEGIN RETURN tst.recurses(event, variables); END';
CREATE FUNCTION tst.deferred(event jsonb, variables jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$ BEGIN INSERT INTO tst.parent VALUES (1, 99); RETURN '"written"'; END $$;
CREATE FUNCTION tst.strict(event jsonb, variables jsonb) RETURNS jsonb STRICT LANGUAGE sql AS 'SELECT event->''data''';
CREATE TABLE tst.parent (id int PRIMARY KEY, other int REFERENCES tst.parent DEFERRABLE INITIALLY DEFERRED);
SELECT subdispatch.subscribe('r', ('tst.' || f)::regproc, id => f) FROM unnest('{divides,recurses,deferred,strict}'::text[]) f;
SELECT subdispatch.publish('r', '0');
SELECT tst.dispatched();
-- A deferred constraint fails with its resolver, whatever PostgreSQL says about it there, not with the batch.
SELECT f, r #> '{payload,data}' AS data, CASE f WHEN 'deferred' THEN (r #>> '{payload,errors,0,extensions,code}' IS NOT NULL)::text ELSE r #>> '{payload,errors,0,extensions,code}' END AS code FROM unnest('{divides,recurses,deferred,strict}'::text[]) f, LATERAL (SELECT subdispatch.next_response(f)::jsonb) x(r);
SELECT count(*) FROM tst.parent;
SELECT tst.clean();
DROP TABLE tst.parent;

-- NULL, and the batched form: as many results as variables, one NULL is nothing for that one; a wrong shape is an error.
CREATE FUNCTION tst.nothing(event jsonb, variables jsonb) RETURNS jsonb LANGUAGE sql AS 'SELECT NULL::jsonb';
CREATE FUNCTION tst.json_null(event jsonb, variables jsonb) RETURNS jsonb LANGUAGE sql AS $$ SELECT 'null'::jsonb $$;
CREATE FUNCTION tst.batch(event jsonb, variables jsonb[]) RETURNS jsonb[] LANGUAGE plpgsql AS $$
BEGIN
  INSERT INTO tst.calls VALUES ('batch', to_jsonb(cardinality(variables)), event->'data');
  RETURN CASE event->>'data'
    WHEN 'right' THEN array(SELECT CASE WHEN v->'n' = '2' THEN NULL ELSE v END FROM unnest(variables) WITH ORDINALITY u(v, o) ORDER BY o)
    WHEN 'too few' THEN variables[2:]
    WHEN 'too many' THEN variables || '1'::jsonb
    WHEN 'two dimensions' THEN array[variables]
    WHEN 'empty' THEN '{}'::jsonb[]
    WHEN 'null' THEN NULL END;
END $$;
SELECT subdispatch.subscribe('r', 'tst.nothing', id => 'nothing'), subdispatch.subscribe('r', 'tst.json_null', id => 'json null');
SELECT subdispatch.subscribe('r', 'tst.batch', jsonb_build_object('n', n), id => 'batch ' || n) FROM generate_series(1, 3) n;
SELECT count(subdispatch.publish('r', to_jsonb(k)) IS NULL) FROM unnest('{right,too few,too many,two dimensions,empty,"null",right}'::text[]) k;
SELECT tst.dispatched();
SELECT id, n, r #> '{payload,data}' AS data, r #>> '{payload,errors,0,extensions,code}' IS NOT NULL AS error
  FROM unnest('{nothing,batch 1,batch 2,batch 3}'::text[]) id, tst.drain(id) WITH ORDINALITY d(r, n) ORDER BY id, n;
SELECT count(*), count(DISTINCT r), min(r::text) FROM tst.drain('json null') r;
-- Called once per event, with all variables at once; where the shape was wrong, its writing is undone.
SELECT event, variables, count(*) FROM tst.calls GROUP BY 1, 2 ORDER BY 1;
SELECT tst.clean();
TRUNCATE tst.calls;

-- A resolver publishes on: the event that it made is dispatched as any other.
CREATE FUNCTION tst.chain(event jsonb, variables jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
  PERFORM subdispatch.publish('chained', jsonb_build_object('from', event->'data'));
  RETURN event->'data';
END $$;
SELECT subdispatch.subscribe('r', 'tst.chain', id => 'first'), subdispatch.subscribe('chained', id => 'second');
SELECT subdispatch.publish('r', '1'), subdispatch.publish('r', '2');
SELECT subdispatch.next_response('second', '20s')::jsonb #> '{payload,data}' AS chained FROM generate_series(1, 2);
SELECT * FROM tst.results('first');
SELECT tst.clean();

-- Waiting reads, wait_dispatched and subscribe are refused inside a resolver: the dispatcher would wait for itself.
CREATE FUNCTION tst.misuse(event jsonb, variables jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
  RETURN to_jsonb(tst.fails(variables->>'cmd'));
END $$;
CREATE TABLE tst.misuses (n serial, cmd text);
INSERT INTO tst.misuses (cmd) VALUES
  ($$SELECT subdispatch.wait_dispatched('1min')$$), ($$SELECT subdispatch.subscribe('r')$$), ($$SELECT subdispatch.next_response('victim', '1min')$$),
  ($$SELECT subdispatch.next_responses('victim', 1, '1min')$$), ($$SELECT subdispatch.poll('victims', 1, '1min')$$), ($$SELECT subdispatch.poll_shared('victims', 1, '1min')$$),
  ($$CALL subdispatch.await_response('victim', '1min')$$), ($$CALL subdispatch.await_responses('victims', '1min')$$);
SELECT subdispatch.open_consumer('victims'), subdispatch.subscribe('victim', id => 'victim');
SELECT count(subdispatch.subscribe('r', 'tst.misuse', jsonb_build_object('cmd', cmd), id => 'm' || n)) FROM tst.misuses;
SELECT subdispatch.publish('r', '1');
SELECT tst.dispatched();
SELECT cmd, subdispatch.next_response('m' || n)::jsonb #> '{payload,data}' AS answer FROM tst.misuses ORDER BY n;
DROP TABLE tst.misuses;
SELECT tst.clean();

-- Time limit: each of these is ended by resolver_timeout, and the dispatcher goes on with the next event.
CREATE FUNCTION tst.py_loop(event jsonb, variables jsonb) RETURNS jsonb LANGUAGE plpython3u AS $$
while True:
    pass
$$;
CREATE FUNCTION tst.py_sleep(event jsonb, variables jsonb) RETURNS jsonb LANGUAGE plpython3u AS $$
import time
time.sleep(60)
return "\"slept\""
$$;
CREATE FUNCTION tst.py_swallow_once(event jsonb, variables jsonb) RETURNS jsonb LANGUAGE plpython3u AS $$
try:
    while True:
        pass
except BaseException:
    pass
while True:
    pass
$$;
CREATE FUNCTION tst.py_swallow(event jsonb, variables jsonb) RETURNS jsonb LANGUAGE plpython3u AS $$
import time
while True:
    try:
        time.sleep(60)
    except BaseException:
        pass
$$;
CREATE FUNCTION tst.py_swallow_and_return(event jsonb, variables jsonb) RETURNS jsonb LANGUAGE plpython3u AS $$
try:
    while True:
        pass
except BaseException:
    return "\"returned all the same\""
$$;
CREATE FUNCTION tst.sql_sleep(event jsonb, variables jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(60); RETURN '"slept"'; END $$;
CREATE FUNCTION tst.sql_loop(event jsonb, variables jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$ BEGIN LOOP NULL; END LOOP; END $$;
CREATE FUNCTION tst.sql_swallow(event jsonb, variables jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
  LOOP
    BEGIN PERFORM pg_sleep(60); EXCEPTION WHEN query_canceled THEN NULL; WHEN OTHERS THEN NULL; END;
  END LOOP;
END $$;
SELECT resolver_timeouts AS timeouts_before FROM subdispatch.stats \gset
SELECT count(subdispatch.subscribe('slow ' || f, ('tst.' || f)::regproc, id => f)), count(subdispatch.subscribe('slow ' || f, 'tst.note', id => 'after ' || f)) FROM unnest('{py_loop,py_sleep,py_swallow_once,py_swallow,py_swallow_and_return,sql_sleep,sql_loop,sql_swallow}'::text[]) f;
SELECT count(subdispatch.publish('slow ' || f, '1') IS NULL) FROM unnest('{py_loop,py_sleep,py_swallow_once,py_swallow,py_swallow_and_return,sql_sleep,sql_loop,sql_swallow}'::text[]) f;
SELECT tst.dispatched();
SELECT f, r #> '{payload,data}' AS data, r #>> '{payload,errors,0,extensions,code}' AS code, jsonb_typeof(r #> '{payload,errors,0,message}') AS message,
       array(SELECT * FROM tst.results('after ' || f)) AS shared_channel
  FROM unnest('{py_loop,py_sleep,py_swallow_once,py_swallow,py_swallow_and_return,sql_sleep,sql_loop,sql_swallow}'::text[]) f, LATERAL (SELECT subdispatch.next_response(f)::jsonb) x(r);
SELECT resolver_timeouts - :timeouts_before >= 7 AS timeouts_counted FROM subdispatch.stats;
SELECT tst.clean();
TRUNCATE tst.calls;
-- Python is as it was.
CREATE FUNCTION tst.py_fine(event jsonb, variables jsonb) RETURNS jsonb LANGUAGE plpython3u AS $$
import time
time.sleep(0.01)
return "\"fine\""
$$;
SELECT subdispatch.subscribe('r', 'tst.py_fine', id => 'fine');
SELECT subdispatch.publish('r', '1');
SELECT * FROM tst.results('fine');
SELECT tst.clean();

-- resolver_max_timeouts in a row end the stream, with an error as its last message; a success in between starts the count anew.
CREATE FUNCTION tst.sometimes(event jsonb, variables jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
  IF event->'data' = '"slow"' THEN PERFORM pg_sleep(60); END IF;
  RETURN event->'data';
END $$;
SELECT current_setting('subdispatch.resolver_max_timeouts');
SELECT subdispatch.subscribe('r', 'tst.sometimes', id => 'broken', operation_id => '7'), subdispatch.subscribe('r', id => 'beside');
SELECT count(subdispatch.publish('r', to_jsonb(k)) IS NULL) FROM unnest('{slow,slow,quick,slow,slow,slow,never}'::text[]) k;
SELECT tst.dispatched();
SELECT r->'type' AS type, r->'id' AS id, r #> '{payload,data}' AS data, jsonb_typeof(coalesce(r #> '{payload,errors,0,extensions,code}', r #> '{payload,0,extensions,code}')) AS code FROM tst.drain('broken') r;
SELECT tst.sqlstate($$SELECT subdispatch.next_response('broken')$$);
SELECT count(*) FROM tst.results('beside');
SELECT tst.clean();
DROP FUNCTION tst.note, tst.fails_late, tst.divides, tst.recurses, tst.deferred, tst.strict, tst.nothing, tst.json_null, tst.batch, tst.chain, tst.misuse,
  tst.py_loop, tst.py_sleep, tst.py_swallow_once, tst.py_swallow, tst.py_swallow_and_return, tst.sql_sleep, tst.sql_loop, tst.sql_swallow, tst.py_fine, tst.sometimes;
