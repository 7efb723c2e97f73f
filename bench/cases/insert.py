"""What publishing costs the writers: INSERT with a trigger, 32 clients."""

import glob
import os
import re
import signal

from harness.server import BenchError
from harness.suite import Benchmark, Metric

from .common import OUTBOX

CLIENTS = 32

SCRIPT = r"""\set customer random(1, 1000)
INSERT INTO bench_insert_{table} (customer, total, note) VALUES (:customer, 9.99, 'two of the large ones');
"""

TABLE = """
DROP TABLE IF EXISTS bench_insert_{table};
CREATE TABLE bench_insert_{table} (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, customer int NOT NULL, total numeric NOT NULL,
                            note text NOT NULL);
"""

FUNCTIONS = """
CREATE OR REPLACE FUNCTION bench_nothing() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';
CREATE OR REPLACE FUNCTION bench_notify() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_notify('bench', json_build_object('op', TG_OP, 'table', TG_TABLE_NAME, 'row', NEW)::text);
    RETURN NULL;
END $$;
CREATE OR REPLACE FUNCTION bench_publish() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM subdispatch.publish('bench', to_jsonb(NEW), TG_OP);
    RETURN NULL;
END $$;
CREATE OR REPLACE FUNCTION bench_to_outbox() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO bench_outbox (payload) VALUES (json_build_object('op', TG_OP, 'table', TG_TABLE_NAME, 'row', NEW)::text);
    RETURN NULL;
END $$;
"""

#           series: (table, trigger's function, the consumer's way, subscriptions, pgbench's environment)
VARIANTS = {
    "no trigger": ("plain", None, None, 0, {}),
    "empty trigger": ("empty", "bench_nothing()", None, 0, {}),
    "publish_change, nobody subscribes": ("nobody", "subdispatch.publish_change('bench')", None, 0, {}),
    "publish_change, 1 subscription": ("one", "subdispatch.publish_change('bench')", "poll", 1, {}),
    "publish_change, 100 subscriptions": ("hundred", "subdispatch.publish_change('bench')", "poll_shared", 100, {}),
    "pg_notify, 1 listener": ("notify", "bench_notify()", "notify", 0, {}),
    "outbox table, polled": ("outbox", "bench_to_outbox()", "outbox", 0, {}),
}


class Insert(Benchmark):
    name = "insert"
    title = f"INSERT with a trigger, {CLIENTS} clients, synchronous_commit on"
    what = "pgbench, prepared; what is published is read meanwhile, on the same cores"
    metrics = [Metric("tps", "transactions/s", "higher", label="throughput"), Metric("p50", "ms", label="latency, median"),
               Metric("p99", "ms", label="latency, 99th percentile"),
               Metric("read", "of the rows", "higher", label="read by the end of the run")]
    variants = VARIANTS
    series = list(VARIANTS)
    baseline = "empty trigger"
    log = False
    rounds = 1.3

    def setup(self):
        self.server.execute(FUNCTIONS)
        self.server.execute(OUTBOX)
        self.directory = os.environ["TMPDIR"]

    def run(self, x, series):
        table, function, way, subscriptions, env = self.variants[series]
        server = self.server
        server.execute(TABLE.format(table=table))
        server.execute("TRUNCATE bench_outbox")
        if function:
            server.execute(f"CREATE TRIGGER publish AFTER INSERT ON bench_insert_{table} FOR EACH ROW EXECUTE FUNCTION {function}")
        if subscriptions:
            server.subscribe(subscriptions)
        # A checkpoint of what went before must not run into this one.
        server.execute("CHECKPOINT")
        server.place(self.placement)
        reader = server.start("drain", way, 1) if way else None
        try:
            figures = self.pgbench(table, env)
        finally:
            if reader:
                reader.send_signal(signal.SIGTERM)
        if reader:
            rows = server.value(f"SELECT count(*) FROM bench_insert_{table}")
            figures["read"] = server.finish(reader)["deliveries"] / max(1, subscriptions) / rows
        server.end()
        return figures

    def pgbench(self, table, env):
        prefix = os.path.join(self.directory, "pgbench")
        script = prefix + ".sql"
        for old in glob.glob(prefix + "_log.*"):
            os.unlink(old)
        with open(script, "w", encoding="ascii") as f:
            f.write(SCRIPT.format(table=table))
        ended, before = self.server.ended_cpu_seconds(), self.server.cpu_seconds()
        process = self.server.start("/usr/bin/env", "pgbench", "-n", "-M", "prepared", "-c", CLIENTS, "-j", 2,
                                    "-T", max(1, round(self.seconds)), "-f", script, "-l", "--sampling-rate=0.1", "--log-prefix", prefix + "_log", env=env)
        output, _ = process.communicate()
        tps = re.search(r"^tps = ([0-9.]+)", output, re.M)
        count = re.search(r"^number of transactions actually processed: ([0-9]+)", output, re.M)
        if process.returncode != 0 or not tps or not count:
            raise BenchError(f"pgbench failed:\n{output}")
        # pgbench has left before its backends
        self.server.wait_until("SELECT count(*) = 0 FROM pg_stat_activity WHERE application_name = 'pgbench'", "pgbench's backends end")
        backend = self.server.ended_cpu_seconds() - ended
        after = self.server.cpu_seconds()
        others = sum(seconds - before[pid] for pid, seconds in after.items() if pid in before)
        latencies = []
        for log in glob.glob(prefix + "_log.*"):
            with open(log, encoding="ascii") as f:
                latencies += [int(line.split()[2]) for line in f]
        latencies.sort()
        commits = int(count.group(1))
        return {"tps": float(tps.group(1)), "p50": latencies[len(latencies) // 2] / 1000,
                "p99": latencies[len(latencies) * 99 // 100] / 1000,
                "backend": backend / commits * 1e6, "others": others / commits * 1e6}

    def targets(self, result):
        targets = []
        for series in self.series:
            if series.startswith("publish_change"):
                c = result.compare(None, series, None, "empty trigger")
                targets.append(result.at_least(f"{series}: at least 0.95 of the empty trigger [{c.low:.3f}..{c.high:.3f}]",
                                               c.median, 0.95, "x"))
        return targets
