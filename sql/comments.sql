-- The interface as it is installed: signatures, comments, rights.
SET client_min_messages = warning;
SET intervalstyle = 'postgres';
\pset format unaligned
SELECT p.prokind AS kind, p.proname AS name, pg_get_function_arguments(p.oid) AS arguments, pg_get_function_result(p.oid) AS result
  FROM pg_proc p WHERE p.pronamespace = 'subdispatch'::regnamespace AND p.proname IN ('publish', 'publish_change', 'subscribe', 'unsubscribe', 'complete', 'disconnect', 'open_consumer', 'close_consumer',
   'next_response', 'next_responses', 'poll', 'poll_shared', 'await_response', 'await_responses', 'wait_dispatched', 'reset_stats', 'metrics', 'health') ORDER BY 2;
\pset format aligned
-- Everything has a comment.
SELECT pg_describe_object(classid, objid, objsubid) FROM (
  SELECT 'pg_proc'::regclass AS classid, oid AS objid, 0 AS objsubid FROM pg_proc WHERE pronamespace = 'subdispatch'::regnamespace
  UNION ALL SELECT 'pg_class'::regclass, oid, 0 FROM pg_class WHERE relnamespace = 'subdispatch'::regnamespace AND relkind IN ('r', 'v', 'm', 'S')
  UNION ALL SELECT 'pg_type'::regclass, oid, 0 FROM pg_type WHERE typnamespace = 'subdispatch'::regnamespace AND typtype IN ('e', 'd')
  UNION ALL SELECT 'pg_extension'::regclass, oid, 0 FROM pg_extension WHERE extname = 'subdispatch') o
 WHERE coalesce(obj_description(objid, classid::regclass::name), '') = '' ORDER BY 1;
-- EXECUTE is not PUBLIC's, except on what a view calls.
SELECT p.oid::regprocedure FROM pg_proc p WHERE p.pronamespace = 'subdispatch'::regnamespace AND has_function_privilege('regress_sub_nobody', p.oid, 'EXECUTE')
   AND NOT EXISTS (SELECT FROM pg_depend d JOIN pg_rewrite r ON d.classid = 'pg_rewrite'::regclass AND d.objid = r.oid WHERE d.refclassid = 'pg_proc'::regclass AND d.refobjid = p.oid) ORDER BY 1::text;
-- No function can be led astray: in C, or with a search_path of its own; none is SECURITY DEFINER.
SELECT p.oid::regprocedure FROM pg_proc p JOIN pg_language l ON l.oid = p.prolang WHERE p.pronamespace = 'subdispatch'::regnamespace
   AND (l.lanname <> 'c' AND NOT coalesce(p.proconfig::text ~ 'search_path', false) OR p.prosecdef) ORDER BY 1::text;
-- VOLATILE and PARALLEL UNSAFE unless it only reads views.
SELECT p.proname, p.provolatile, p.proparallel FROM pg_proc p WHERE p.pronamespace = 'subdispatch'::regnamespace AND p.prorettype <> 'trigger'::regtype AND (p.provolatile <> 'v' OR p.proparallel <> 'u')
   AND p.proname IN ('publish', 'subscribe', 'unsubscribe', 'complete', 'disconnect', 'open_consumer', 'close_consumer', 'next_response', 'next_responses', 'poll', 'poll_shared', 'wait_dispatched', 'reset_stats') ORDER BY 1;
-- All of it belongs to the extension.
SELECT pg_describe_object('pg_proc'::regclass, p.oid, 0) FROM pg_proc p WHERE p.pronamespace = 'subdispatch'::regnamespace
   AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_proc'::regclass AND d.objid = p.oid AND d.deptype = 'e') ORDER BY 1;
-- A pg_catalog before which somebody put their own operators and functions makes no difference.
CREATE SCHEMA hijack;
CREATE FUNCTION hijack.fail(a jsonb, b jsonb) RETURNS boolean LANGUAGE plpgsql AS $$ BEGIN RAISE 'hijacked'; END $$;
CREATE OPERATOR hijack.= (LEFTARG = jsonb, RIGHTARG = jsonb, FUNCTION = hijack.fail);
CREATE FUNCTION hijack.jsonb_typeof(jsonb) RETURNS text LANGUAGE plpgsql AS $$ BEGIN RAISE 'hijacked'; END $$;
CREATE FUNCTION hijack.current_database() RETURNS name LANGUAGE plpgsql AS $$ BEGIN RAISE 'hijacked'; END $$;
SET search_path = hijack, pg_catalog;
SELECT subdispatch.subscribe('h', filter => '{"a": 1}', id => 'h');
SELECT subdispatch.publish('h', '{"a": 1}');
SELECT tst.dispatched();
SELECT subdispatch.next_response('h') IS NOT NULL AS answered, subdispatch.health() IS NOT NULL AS health, subdispatch.metrics() IS NOT NULL AS metrics;
SELECT (SELECT count(*) FROM subdispatch.subscriptions) AS subscriptions, (SELECT count(*) FROM subdispatch.channels) AS channels, (SELECT count(*) FROM subdispatch.stats) AS stats;
RESET search_path;
DROP SCHEMA hijack CASCADE;
SELECT tst.clean();
