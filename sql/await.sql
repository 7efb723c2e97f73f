-- await_response and await_responses: the waits that hold no snapshot.
SET client_min_messages = warning;
SELECT subdispatch.subscribe('c', id => 'a', consumer => 'g');
-- Nothing comes: they return at the timeout.
CALL subdispatch.await_response('a', '50ms');
CALL subdispatch.await_responses('g', '50ms');
CALL subdispatch.await_response('a', '0');
-- Something is there: they return at once and leave it to be read.
SELECT subdispatch.publish('c', '1');
CALL subdispatch.await_response('a', '20s');
CALL subdispatch.await_responses('g', '20s');
CALL subdispatch.await_response('a');
CALL subdispatch.await_responses('g');
SELECT subdispatch.next_response('a')::jsonb #> '{payload,data}' AS data;
-- In a transaction at READ COMMITTED too; statements after it work, and see what was committed meanwhile.
BEGIN;
SELECT 1 AS before;
CALL subdispatch.await_responses('g', '50ms');
SELECT count(*) FROM pg_class WHERE relname = 'pg_class';
CALL subdispatch.await_response('a', '50ms');
SELECT 2 AS after;
COMMIT;
-- A last message and a loss are something to be read.
SELECT subdispatch.complete('a');
CALL subdispatch.await_responses('g', '20s');
CALL subdispatch.await_response('a', '20s');
SELECT subdispatch.next_response('a')::jsonb->>'type' AS type;
-- A consumer without subscriptions can be waited on.
CALL subdispatch.await_responses('g', '50ms');

-- Unknown, gone, negative, absurd, NULL.
SELECT subdispatch.subscribe('c', id => 'a', consumer => 'g');
\set VERBOSITY sqlstate
CALL subdispatch.await_response('never was', '50ms');
CALL subdispatch.await_responses('never was', '50ms');
-- The codes below are no part of the interface; that each is an error, is.
CALL subdispatch.await_response('a', '-1s');
CALL subdispatch.await_responses('g', '-1s');
CALL subdispatch.await_response('a', '100000 years');
CALL subdispatch.await_responses('g', '100000 years');
CALL subdispatch.await_response('a', NULL);
CALL subdispatch.await_response(NULL);
CALL subdispatch.await_responses(NULL);
-- Where the snapshot cannot be given up, they refuse, also when there is something to read.
SELECT subdispatch.publish('c', '2');
SELECT tst.dispatched();
BEGIN ISOLATION LEVEL REPEATABLE READ;
CALL subdispatch.await_response('a', '50ms');
ROLLBACK;
BEGIN ISOLATION LEVEL SERIALIZABLE;
CALL subdispatch.await_responses('g', '50ms');
ROLLBACK;
BEGIN;
SELECT pg_current_xact_id() IS NOT NULL AS has_an_xid;
CALL subdispatch.await_response('a', '50ms');
ROLLBACK;
BEGIN;
DECLARE c CURSOR FOR SELECT 1;
CALL subdispatch.await_responses('g', '50ms');
ROLLBACK;
CREATE FUNCTION tst.calls_await() RETURNS void LANGUAGE plpgsql AS $$ BEGIN CALL subdispatch.await_response('a', '50ms'); END $$;
SELECT tst.calls_await();
CREATE FUNCTION tst.python_awaits() RETURNS void LANGUAGE plpython3u AS $$ plpy.execute("CALL subdispatch.await_response('a', '50ms')") $$;
SELECT tst.python_awaits();
-- The server is up, and the response is where it was.
SELECT subdispatch.next_response('a')::jsonb #> '{payload,data}' AS data;
-- From a procedure or a DO block it either waits or refuses, and what follows works.
CREATE PROCEDURE tst.await_nested() LANGUAGE plpgsql AS $$ BEGIN CALL subdispatch.await_response('a', '50ms'); EXCEPTION WHEN OTHERS THEN NULL; END $$;
CALL tst.await_nested();
DO $$ BEGIN BEGIN CALL subdispatch.await_response('a', '50ms'); EXCEPTION WHEN OTHERS THEN NULL; END; PERFORM count(*) FROM pg_class; END $$;
SELECT count(*) AS still_there FROM pg_namespace WHERE nspname = 'tst';
DROP PROCEDURE tst.await_nested;
DROP FUNCTION tst.calls_await, tst.python_awaits;
SELECT tst.clean();
