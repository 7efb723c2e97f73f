-- What all other files need: the extensions, roles, and a few helpers.
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS subdispatch;
CREATE EXTENSION IF NOT EXISTS plpython3u;
CREATE EXTENSION IF NOT EXISTS jsonb_plpython3u;

-- Roles belong to the server: an interrupted earlier run may have left them.
DROP ROLE IF EXISTS regress_sub_alice, regress_sub_bob, regress_sub_gateway, regress_sub_nobody, regress_sub_monitor;
CREATE ROLE regress_sub_alice;
CREATE ROLE regress_sub_bob;
CREATE ROLE regress_sub_gateway;
CREATE ROLE regress_sub_nobody;
CREATE ROLE regress_sub_monitor IN ROLE pg_monitor;
GRANT regress_sub_alice TO regress_sub_gateway;
GRANT USAGE ON SCHEMA subdispatch TO regress_sub_alice, regress_sub_bob, regress_sub_gateway, regress_sub_monitor;
GRANT EXECUTE ON ALL ROUTINES IN SCHEMA subdispatch TO regress_sub_alice, regress_sub_bob, regress_sub_gateway;
REVOKE EXECUTE ON FUNCTION subdispatch.metrics(), subdispatch.reset_stats(), subdispatch.grant_channel, subdispatch.revoke_channel
  FROM regress_sub_alice, regress_sub_bob, regress_sub_gateway;

CREATE SCHEMA tst;
GRANT USAGE ON SCHEMA tst TO PUBLIC;

-- Runs a command that must fail. Few error codes and no wording are part of the interface, so the answer is only whether it
-- failed as a user's error should, and whether the message, its detail or its hint names what it must name.
CREATE FUNCTION tst.fails(cmd text, names text DEFAULT NULL) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
  state text; message text; detail text; hint text; told text;
BEGIN
  BEGIN
    EXECUTE cmd;
  EXCEPTION WHEN OTHERS OR query_canceled OR assert_failure THEN
    GET STACKED DIAGNOSTICS state = RETURNED_SQLSTATE, message = MESSAGE_TEXT,
      detail = PG_EXCEPTION_DETAIL, hint = PG_EXCEPTION_HINT;
  END;
  told := concat_ws(' / ', message, nullif(detail, ''), nullif(hint, ''));
  RETURN CASE
    WHEN state IS NULL THEN 'NO ERROR'
    WHEN state LIKE 'XX%' THEN 'INTERNAL ERROR: ' || told
    WHEN state = '42601' OR state = '42883' AND told ~ 'explicit type casts' THEN 'MISTAKE IN THE TEST: ' || told
    WHEN names IS NULL THEN 'refused'
    WHEN told ~ names THEN 'refused, names ' || names
    ELSE 'refused, DOES NOT NAME ' || names || ': ' || told END;
END $$;

-- The SQLSTATE of a command, where its form is fixed.
CREATE FUNCTION tst.sqlstate(cmd text) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
  EXECUTE cmd;
  RETURN '00000';
EXCEPTION WHEN OTHERS OR query_canceled THEN
  RETURN SQLSTATE;
END $$;

-- Everything that has been committed is dispatched, or the test ends here and says so.
CREATE FUNCTION tst.dispatched() RETURNS void LANGUAGE plpgsql AS $$
BEGIN
  IF subdispatch.wait_dispatched('60s') IS NOT TRUE THEN
    RAISE EXCEPTION 'what was committed is not dispatched after 60 s';
  END IF;
END $$;

-- All that is queued for a subscription, as jsonb, in order.
CREATE FUNCTION tst.drain(id text) RETURNS SETOF jsonb LANGUAGE plpgsql AS $$
BEGIN
  PERFORM tst.dispatched();
  RETURN QUERY SELECT r::jsonb FROM subdispatch.next_responses(drain.id, 1000) r;
END $$;

-- The results only.
CREATE FUNCTION tst.results(id text) RETURNS SETOF jsonb LANGUAGE plpgsql AS $$
BEGIN
  RETURN QUERY SELECT r #> '{payload,data}' FROM tst.drain(results.id) r;
END $$;

-- Ends what this role's subscriptions and consumers are.
CREATE FUNCTION tst.clean() RETURNS void LANGUAGE plpgsql AS $$
BEGIN
  PERFORM subdispatch.close_consumer(consumer) FROM subdispatch.consumers WHERE owner::text = current_user;
  PERFORM subdispatch.unsubscribe(s.id) FROM subdispatch.subscriptions s WHERE owner::text = current_user;
END $$;

-- A resolver that shows the whole event.
CREATE FUNCTION tst.echo(event jsonb, variables jsonb) RETURNS jsonb LANGUAGE sql AS 'SELECT event';

-- Resolvers note their calls here: what a resolver writes is committed with its responses.
CREATE TABLE tst.calls (resolver text, variables jsonb, event jsonb);
GRANT ALL ON tst.calls TO PUBLIC;

GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA tst TO PUBLIC;

SELECT extname FROM pg_extension WHERE extname = 'subdispatch';
SELECT tst.fails('SELECT 1'), tst.fails('SELECT 1/0', 'by zero'), tst.sqlstate('SELECT 1/0');
