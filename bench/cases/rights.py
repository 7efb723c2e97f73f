"""Row-level security: what an event costs where every subscription may see something else."""

from harness.server import BenchError
from harness.suite import Benchmark, Metric

from .common import DISPATCH_METRIC, measure_dispatch

SETUP = """
DROP TABLE IF EXISTS bench_rows, bench_members;
DO $$ BEGIN
    IF to_regrole('bench_tenants') IS NULL THEN CREATE ROLE bench_tenants; END IF;
END $$;
CREATE TABLE bench_rows (id int PRIMARY KEY, tenant_id int, body text);
CREATE TABLE bench_members (tenant int PRIMARY KEY, sees int);
INSERT INTO bench_members SELECT i, i % 2 FROM generate_series(1, 10000) i;
ANALYZE bench_members;
ALTER TABLE bench_rows ENABLE ROW LEVEL SECURITY;
GRANT SELECT ON bench_rows, bench_members TO bench_tenants;
SELECT subdispatch.grant_channel('bench_rows', 'bench_tenants', 'subscribe');
CREATE TRIGGER publish AFTER INSERT OR UPDATE OR DELETE ON bench_rows
    FOR EACH ROW EXECUTE FUNCTION subdispatch.publish_change('bench_rows');
INSERT INTO bench_rows VALUES (1, 1, 'x');
CREATE OR REPLACE PROCEDURE bench_updates(events int) LANGUAGE plpgsql AS $$
BEGIN
    FOR i IN 1..events LOOP
        UPDATE bench_rows SET body = i::text;
        COMMIT;
        IF NOT subdispatch.wait_dispatched('60s') THEN
            RAISE 'not dispatched';
        END IF;
        COMMIT;
    END LOOP;
END $$;
"""

IDENTITY = "current_setting('bench.identity')::int"
POLICIES = {
    "a setting": f"tenant_id % 2 = {IDENTITY} % 2",
    "a sub-select on the identity": f"tenant_id % 2 = (SELECT sees FROM bench_members WHERE tenant = {IDENTITY})",
    "a sub-select on the row": f"EXISTS (SELECT FROM bench_members m WHERE m.tenant = {IDENTITY} AND m.sees = tenant_id % 2)",
}
SHARED = "one identity shared by all"


class RowSecurity(Benchmark):
    """An UPDATE of a table with a policy; half of the identities may see the row."""

    name = "row_security"
    title = "One change of a table with row-level security, an identity for each subscription"
    what = "time of dispatching an UPDATE (policies on both images); half of the subscriptions may see it; policies by"
    metrics = [Metric("time", "µs per change", label="time until all can read"), DISPATCH_METRIC]
    placement = "apart"
    xs = [1, 10, 100, 1000]
    quick_xs = [1, 10]
    x_label = "subscriptions"
    series = [*POLICIES, SHARED]
    baseline = SHARED
    chart = "lines"
    rounds = 0.7

    def setup(self):
        self.server.execute(SETUP)

    def run(self, x, series):
        server = self.server
        events = 20 if self.quick else max(20, min(300, 100000 // x))
        server.execute("DROP POLICY IF EXISTS bench ON bench_rows")
        policy = POLICIES.get(series, POLICIES["a setting"])
        server.execute(f"CREATE POLICY bench ON bench_rows FOR SELECT TO bench_tenants USING ({policy})")
        server.subscribe(x, channel="bench_rows", run_as="bench_tenants", max_pending=5,
                         identity="'1'" if series == SHARED else "i::text")
        server.place(self.placement)
        server.execute("CALL bench_updates(5)")
        time, cpu, stats = measure_dispatch(server, lambda: server.execute("CALL bench_updates(%s)", [events]), events)
        server.end()
        expected = events * (1 if series == SHARED else (x + 1) // 2)
        if stats["responses_queued"] != expected:
            raise BenchError(f"{stats['responses_queued']} responses, not {expected}")
        return {"time": time, "cpu": cpu}

    def teardown(self):
        self.server.execute("DROP TABLE IF EXISTS bench_rows, bench_members")

    def targets(self, result):
        return [
            result.at_most("1,000 identities, a sub-select on the row: at most 3 ms",
                           result.median(1000, "a sub-select on the row") / 1000, 3, " ms"),
            result.at_most("1,000 identities, a sub-select on the identity: at most 1 ms",
                           result.median(1000, "a sub-select on the identity") / 1000, 1, " ms"),
            result.at_most("1,000 identities, a setting: at most 1 ms", result.median(1000, "a setting") / 1000, 1, " ms"),
        ]
