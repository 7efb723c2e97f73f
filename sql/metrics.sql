-- metrics(), health(), reset_stats(). The format of metrics() is checked by a parser in test/t.
SET client_min_messages = warning;
SELECT subdispatch.subscribe('m', id => 'm', max_pending => 2);
SELECT count(subdispatch.publish('m', to_jsonb(n)) IS NULL) FROM generate_series(1, 3) n;
SELECT tst.dispatched();
SELECT subdispatch.next_response('m') IS NOT NULL AS read;
SELECT m ~ '^# (HELP|TYPE) subdispatch_' AS begins, m ~ E'\n$' AS ends_in_newline, m ~ 'subdispatch_events_dispatched_total' AS a_counter FROM subdispatch.metrics() m;
SELECT events_dispatched > 0 AS events, responses_queued > 0 AS queued, responses_delivered > 0 AS delivered, responses_dropped > 0 AS dropped FROM subdispatch.stats;
-- The same number in both.
SELECT substring(subdispatch.metrics() FROM 'subdispatch_events_dispatched_total(?:\{[^}]*\})? ([0-9.e+]+)')::numeric >= events_dispatched AS agree FROM subdispatch.stats;
SELECT jsonb_typeof(subdispatch.health()) AS health;
SELECT subdispatch.reset_stats();
SELECT events_dispatched, resolver_calls, resolver_errors, resolver_timeouts, responses_queued, responses_delivered, responses_dropped FROM subdispatch.stats;
SELECT subdispatch.publish('m', '4');
SELECT tst.dispatched();
SELECT events_dispatched FROM subdispatch.stats;
-- They are pg_monitor's.
SET ROLE regress_sub_alice;
SELECT tst.sqlstate('SELECT subdispatch.metrics()') AS metrics, tst.sqlstate('SELECT subdispatch.reset_stats()') AS reset_stats;
SET ROLE regress_sub_monitor;
SELECT tst.sqlstate('SELECT subdispatch.metrics()') AS metrics, tst.sqlstate('SELECT subdispatch.reset_stats()') AS reset_stats;
RESET ROLE;
SELECT tst.clean();
