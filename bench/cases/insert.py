"""What publishing costs the writers: INSERT with a trigger, 32 clients."""

from harness.load import Drain, Load
from harness.suite import Benchmark, Metric

from .common import OUTBOX

CLIENTS = 32

# More than is written in a run, so that old ones can be used again.
SEGMENTS = 40
WAL_SETTINGS = {"min_wal_size": f"{(SEGMENTS + 10) * 16}MB"}

SCRIPT = r"""\set customer random(1, 1000)
INSERT INTO bench_insert_{table} (customer, total, note) VALUES (:customer, 9.99, 'two of the large ones');
"""

# Autovacuum would come to one table or another in the midst of it.
TABLE = """
DROP TABLE IF EXISTS bench_insert_{table};
CREATE TABLE bench_insert_{table} (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, customer int NOT NULL, total numeric NOT NULL,
                            note text NOT NULL) WITH (autovacuum_enabled = off);
"""

ROWS = "SELECT CASE WHEN is_called THEN last_value ELSE 0 END FROM bench_insert_{table}_id_seq"

FUNCTIONS = """
CREATE OR REPLACE FUNCTION bench_nothing() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';
CREATE OR REPLACE FUNCTION bench_notify() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_notify('notify', json_build_object('op', TG_OP, 'table', TG_TABLE_NAME, 'row', NEW)::text);
    RETURN NULL;
END $$;
CREATE OR REPLACE FUNCTION bench_publish() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM subdispatch.publish(TG_ARGV[0], to_jsonb(NEW), TG_OP);
    RETURN NULL;
END $$;
CREATE OR REPLACE FUNCTION bench_to_outbox() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO bench_outbox (payload) VALUES (json_build_object('op', TG_OP, 'table', TG_TABLE_NAME, 'row', NEW)::text);
    RETURN NULL;
END $$;
"""

#           series: (table, channel and consumer in one, trigger's function, the consumer's way, subscriptions, pgbench's environment)
VARIANTS = {
    "no trigger": ("plain", None, None, 0, {}),
    "empty trigger": ("empty", "bench_nothing()", None, 0, {}),
    "publish_change, nobody subscribes": ("nobody", "subdispatch.publish_change('nobody')", None, 0, {}),
    "publish_change, 1 subscription": ("one", "subdispatch.publish_change('one')", "poll", 1, {}),
    "publish_change, 100 subscriptions": ("hundred", "subdispatch.publish_change('hundred')", "poll_shared", 100, {}),
    "pg_notify, 1 listener": ("notify", "bench_notify()", "notify", 0, {}),
    "outbox table, polled": ("outbox", "bench_to_outbox()", "outbox", 0, {}),
}


class Insert(Benchmark):
    name = "insert"
    title = f"INSERT with a trigger, {CLIENTS} clients, synchronous_commit on"
    what = "pgbench, prepared, in slices of half a second; what is published is read meanwhile, on the same cores"
    metrics = [Metric("tps", "transactions/s", "higher", label="throughput"), Metric("p50", "ms", label="latency, median"),
               Metric("p99", "ms", label="latency, 99th percentile"),
               Metric("read", "of the rows", "higher", label="read by the end of a slice"),
               Metric("cpu", "µs per transaction", label="processor time of all processes"),
               Metric("backends", "µs per transaction", label="of these the writers' backends"),
               Metric("dispatchers", "µs per transaction", label="the dispatchers"),
               Metric("consumer", "µs per transaction", label="the consumer and its backend"),
               Metric("switches", "per transaction", label="context switches of the writers' backends"),
               Metric("sleeps", "per transaction", label="the dispatchers go to sleep")]
    variants = VARIANTS
    baseline = "empty trigger"
    log = False
    rounds = 8              # of an eighth of the time each

    def __init__(self, server, quick, seconds):
        super().__init__(server, quick, seconds)
        self.series = list(self.variants)
        self.loads = {}
        if quick:
            self.rounds = 1
        else:
            self.seconds = max(seconds / 8, 0.25)
            self.settings = {**self.settings, **WAL_SETTINGS}

    def setup(self):
        self.server.execute(FUNCTIONS)
        self.server.execute(OUTBOX)
        for series in self.series:
            self.loads[series] = self.load(series)
        if not self.quick:
            self.make_segments()
        # A checkpoint of what went before must not run into it.
        self.server.execute("CHECKPOINT")
        self.server.place(self.placement)

    def load(self, series):
        table, function, way, subscriptions, env = self.variants[series]
        server = self.server
        server.execute(TABLE.format(table=table))
        if function:
            server.execute(f"CREATE TRIGGER publish AFTER INSERT ON bench_insert_{table} FOR EACH ROW EXECUTE FUNCTION {function}")
        if subscriptions:
            server.subscribe(subscriptions, consumer=table, channel=table, prefix=table)
        drain = Drain(server, way, table, env) if way else None
        return Load(server, table, SCRIPT.format(table=table), ROWS.format(table=table), CLIENTS, drain=drain,
                    deliveries=max(1, subscriptions), env=env)

    def make_segments(self):
        """WAL for all that is to come: a backend that has to make a segment holds up the others for as long as that takes."""
        for _ in range(SEGMENTS):
            self.server.execute("SELECT pg_logical_emit_message(false, 'bench', 'a segment more'), pg_switch_wal()")
        self.server.execute("CHECKPOINT")

    def run(self, x, series):
        return self.loads[series].slice(self.seconds)

    def teardown(self):
        for series, load in self.loads.items():
            load.end()
            if self.variants[series][3]:
                self.server.end(self.variants[series][0])
        self.server.execute("DROP TABLE IF EXISTS bench_outbox")

    def targets(self, result):
        targets = []
        for series in self.series:
            if series.startswith("publish_change"):
                c = result.compare(None, series, None, "empty trigger")
                targets.append(result.at_least(f"{series}: at least 0.95 of the empty trigger [{c.low:.3f}..{c.high:.3f}]",
                                               c.median, 0.95, "x"))
        return targets
