-- row_security: the dispatcher's time per change of a table with row-level security, for subscriptions that each have an
-- identity of their own (half of which may see the row), and for as many that share one. Run it by bench/run.sh.
\set ON_ERROR_STOP on
\set QUIET on
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS subdispatch;
-- Read by the dispatchers as well, so not only SET here.
ALTER SYSTEM SET subdispatch.context_settings = 'app.tenant';
ALTER SYSTEM SET subdispatch.max_subscriptions_per_role = 0;
SELECT pg_reload_conf() \g /dev/null
SELECT pg_sleep(0.5) \g /dev/null
SET subdispatch.context_settings = 'app.tenant';

CREATE ROLE bench_tenants;
CREATE TABLE bench_rows (id int PRIMARY KEY, tenant_id int, body text);
CREATE TABLE bench_members (tenant int PRIMARY KEY, sees int);
INSERT INTO bench_members SELECT i, i % 2 FROM generate_series(1, 5000) i;
ALTER TABLE bench_rows ENABLE ROW LEVEL SECURITY;
GRANT SELECT ON bench_rows, bench_members TO bench_tenants;
CREATE TRIGGER bench_change AFTER INSERT OR UPDATE OR DELETE ON bench_rows
  FOR EACH ROW EXECUTE FUNCTION subdispatch.publish_change('bench_rows');
INSERT INTO bench_rows VALUES (1, 1, 'x');
-- Grants exist from the version on that has them.
DO $$
BEGIN
  IF to_regproc('subdispatch.grant_channel') IS NOT NULL THEN
    EXECUTE $g$SELECT subdispatch.grant_channel('bench_rows', 'bench_tenants', 'subscribe')$g$;
  END IF;
END $$;

CREATE TEMP TABLE result (policy text, identities text, subscriptions int, mean_us numeric, us_per_identity numeric,
                          p50_us bigint, responses_per_event numeric);

CREATE PROCEDURE bench_rls(what text, own boolean, n int, events int) LANGUAGE plpgsql AS $$
DECLARE
  s subdispatch.stats%ROWTYPE;
BEGIN
  PERFORM subdispatch.open_consumer('bench');
  PERFORM subdispatch.subscribe('bench_rows', run_as => 'bench_tenants', id => 'bench' || i, consumer => 'bench', max_pending => 5,
                                settings => jsonb_build_object('app.tenant', CASE WHEN own THEN i ELSE 1 END))
     FROM generate_series(1, n) i;
  COMMIT;
  FOR i IN 1..20 LOOP
    UPDATE bench_rows SET body = i::text;
    COMMIT;
  END LOOP;
  PERFORM subdispatch.wait_dispatched('60s');
  PERFORM subdispatch.reset_stats();
  FOR i IN 1..events LOOP
    UPDATE bench_rows SET body = i::text;
    COMMIT;
    -- one change at a time: what is measured is a dispatch, not a queue
    PERFORM subdispatch.wait_dispatched('60s');
  END LOOP;
  SELECT * INTO s FROM subdispatch.stats;
  INSERT INTO result VALUES (what, CASE WHEN own THEN 'own' ELSE 'shared' END, n,
    round(s.dispatch_time_us::numeric / s.events_dispatched, 1),
    CASE WHEN own THEN round(s.dispatch_time_us::numeric / s.events_dispatched / n, 2) END,
    s.dispatch_time_p50_us, round(s.responses_queued::numeric / s.events_dispatched, 1));
  PERFORM subdispatch.close_consumer('bench');
  COMMIT;
END $$;

CREATE POLICY by_setting ON bench_rows FOR SELECT TO bench_tenants
  USING (tenant_id % 2 = current_setting('app.tenant')::int % 2);
CALL bench_rls('setting', true, 1, 500);
CALL bench_rls('setting', true, 10, 500);
CALL bench_rls('setting', true, 100, 500);
CALL bench_rls('setting', true, 1000, 200);
CALL bench_rls('setting', true, 5000, 50);
CALL bench_rls('setting', false, 1000, 500);
CALL bench_rls('setting', false, 5000, 500);
DROP POLICY by_setting ON bench_rows;
CREATE POLICY by_membership ON bench_rows FOR SELECT TO bench_tenants
  USING (EXISTS (SELECT FROM bench_members m WHERE m.tenant = current_setting('app.tenant')::int AND m.sees = tenant_id % 2));
CALL bench_rls('sub-select', true, 100, 200);
CALL bench_rls('sub-select', true, 1000, 100);
CALL bench_rls('sub-select', false, 1000, 200);
TABLE result;

DROP TABLE bench_rows, bench_members;
DROP OWNED BY bench_tenants;
DROP ROLE bench_tenants;
DROP PROCEDURE bench_rls;
ALTER SYSTEM RESET subdispatch.context_settings;
ALTER SYSTEM RESET subdispatch.max_subscriptions_per_role;
