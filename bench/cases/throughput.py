"""One publisher, one consumer, end to end: events per second."""

from harness.suite import Benchmark, Metric

from .common import OUTBOX, RESOLVER

#           series: (stream's way, resolver)
WAYS = {
    "poll": ("poll", None),
    "poll, PL/Python resolver": ("poll", "bench_resolver"),
    "NOTIFY": ("notify", None),
    "outbox table": ("outbox", None),
    "Redis pub/sub": ("redis", None),
}
IDLE = 99


class Throughput(Benchmark):
    metrics = [Metric("rate", "events/s", "higher", label="events from publisher to consumer"),
               Metric("cpu", "µs per event", label="processor time of all processes")]
    series = list(WAYS)
    baseline = "NOTIFY"

    def setup(self):
        self.server.start_redis()
        self.server.execute(RESOLVER)
        self.server.execute(OUTBOX)

    def stream(self, series, place, events, per_transaction, window):
        way, resolver = WAYS[series]
        if way == "poll":
            self.server.subscribe(resolver=resolver)
        if way == "outbox":
            self.server.execute("TRUNCATE bench_outbox")
        self.server.place(place)
        if self.quick:
            events = max(events // 50, per_transaction)
        figures = self.server.run_measured("stream", way, events, per_transaction, 1, window)
        self.server.end()
        return {"rate": figures["events_per_second"], "cpu": figures["cpu_seconds"] / figures["events"] * 1e6}


class Single(Throughput):
    name = "single"
    title = "One publisher, an event per transaction"
    what = "transactions are sent ahead (pipelined), or each when the one before it has ended"
    placement = "one core, or free (all cores)"
    xs = ["sent ahead, one core", "sent ahead, all cores", "one by one, one core", "one by one, all cores",
          "sent ahead, all cores, 99 idle listeners"]

    def events(self, x, series):
        if series == "outbox table":
            return 5000
        if series == "NOTIFY" and "idle" in x:
            return 3000
        return 20000

    def run(self, x, series):
        idle = []
        try:
            if "idle" in x and series != "Redis pub/sub":
                idle = self.open_idle(WAYS[series][0])
            place = "one core" if "one core" in x else "free"
            return self.stream(series, place, self.events(x, series), 1, 1 if "one by one" in x else 64)
        finally:
            # Ends the waiting, which a closed connection does not.
            self.server.end(*(f"idle{i}" for i in range(len(idle))))
            for connection in idle:
                connection.close()
            if idle:
                self.server.wait_until("SELECT count(*) < 20 FROM pg_stat_activity WHERE backend_type = 'client backend'",
                                       "the end of idle connections")

    def has(self, x, series):
        return not ("idle" in x and series in ("Redis pub/sub", "outbox table"))

    def open_idle(self, way):
        """Connections that wait for what never comes."""
        connections = []
        for i in range(IDLE):
            connection = self.server.connect()
            connections.append(connection)
            if way == "notify":
                connection.execute("LISTEN bench_idle")
            else:
                self.server.subscribe(consumer=f"idle{i}", channel="bench_idle", prefix=f"idle{i}.")
                connection.pgconn.send_query(f"CALL subdispatch.await_responses('idle{i}', '1h')".encode())
        if way != "notify":
            self.server.wait_until(f"SELECT count(*) = {IDLE} FROM subdispatch.consumers WHERE waiting_pid IS NOT NULL",
                                   "waiting consumers")
        return connections

    def targets(self, result):
        targets = []
        for x in self.xs[:4]:
            c = result.compare(x, "poll", x, "NOTIFY")
            targets.append(result.at_least(f"{x}: at least NOTIFY's rate [{c.low:.2f}..{c.high:.2f}]", c.median, 1, "x"))
        c = result.compare(self.xs[4], "poll", self.xs[1], "poll")
        targets.append(result.at_least(f"99 idle listeners: at least 0.95 of the rate without [{c.low:.2f}..{c.high:.2f}]",
                                       c.median, 0.95, "x"))
        return targets


class Batch(Throughput):
    name = "batch"
    title = "One publisher, 100 events per transaction in one statement"
    what = "8 transactions are sent ahead"
    placement = "one core, or free (all cores)"
    xs = ["one core", "all cores"]

    def run(self, x, series):
        events = {"poll, PL/Python resolver": 40000, "outbox table": 40000}.get(series, 200000)
        return self.stream(series, "one core" if x == "one core" else "free", events, 100, 8)

    def targets(self, result):
        return [
            result.at_least("all cores: at least 300,000 events/s", result.median("all cores", "poll"), 300000),
            result.at_least("all cores, PL/Python resolver: at least 80,000 events/s",
                            result.median("all cores", "poll, PL/Python resolver"), 80000),
        ]


class Many(Benchmark):
    """100 subscriptions, all of which get every event, read by one consumer."""

    name = "many"
    title = "100 subscriptions read by one consumer"
    what = "events published 100 per transaction, from the first sent to the last delivery read"
    metrics = [Metric("rate", "deliveries/s", "higher", label="deliveries"),
               Metric("cpu", "µs per delivery", label="processor time of all processes")]
    series = ["poll", "poll_shared", "NOTIFY, 100 connections", "Redis pub/sub, 100 connections"]
    baseline = "NOTIFY, 100 connections"
    xs = [None]
    log = False

    def setup(self):
        self.server.start_redis()

    def run(self, x, series):
        way = {"NOTIFY, 100 connections": "notify", "Redis pub/sub, 100 connections": "redis"}.get(series, series)
        if way.startswith("poll"):
            self.server.subscribe(100)
        self.server.place("free")
        events = {"poll": 5000, "poll_shared": 20000}.get(way, 10000)
        figures = self.server.run_measured("stream", way, events // 20 if self.quick else events, 100, 100, 4)
        self.server.end()
        return {"rate": figures["deliveries_per_second"], "cpu": figures["cpu_seconds"] / figures["events"] / 100 * 1e6}

    def targets(self, result):
        return [
            result.at_least("poll: at least 1M responses/s", result.median(None, "poll"), 1e6),
            result.at_least("poll_shared: at least 5M deliveries/s", result.median(None, "poll_shared"), 5e6),
        ]
