"""The Redis bus against the memory bus, on one server and between two."""

import os
import signal
import time

from harness.server import BenchError, Server
from harness.suite import Benchmark, Metric

from .insert import Insert

ONE, TWO, MEMORY, PLAIN = "Redis bus, same server", "Redis bus, to another server", "memory bus, same server", "Redis pub/sub"
BUS = {ONE: "redis", TWO: "redis", MEMORY: "memory"}


def redis_settings():
    return {
        "subdispatch.redis_url": f"unix://{os.environ['PGHOST']}/redis.sock",
        "subdispatch.bus_key": "a key for benchmarks only",
        # for what is committed in a minute
        "subdispatch.event_queue_size": "512MB",
        # as long as the benchmark stops Redis, and more
        "subdispatch.redis_timeout": "600s",
    }


class Bus(Benchmark):
    """What needs two servers of one group."""

    series = [MEMORY, ONE, TWO]
    baseline = MEMORY
    log = False
    rounds = 0.7
    other = None

    def __init__(self, server, quick, seconds):
        super().__init__(server, quick, seconds)
        self.settings = redis_settings()

    def setup(self):
        self.server.start_redis()
        self.other = Server(self.server.bindir, self.server.source, os.path.join(os.path.dirname(self.server.directory), "other"))
        if not os.path.exists(self.other.data):
            self.other.create()
            self.other.configure(self.other_settings())
            self.other.execute("CREATE EXTENSION subdispatch")
        self.other.configure(self.other_settings())

    def other_settings(self):
        # It publishes nothing, so the setting alone keeps it reading while nothing comes.
        return {**self.settings, "subdispatch.event_bus": "redis"}

    def teardown(self):
        if self.other:
            self.other.shut_down()

    def place(self, name):
        for server in (self.server, self.other):
            server.place(name)

    def subscribed(self, series, count=1):
        """The server that subscribes, once what is published reaches it, and the programs' environment."""
        server = self.other if series == TWO else self.server
        bus = BUS[series]
        env = {"PGOPTIONS": f"-c subdispatch.event_bus={bus}", "BENCH_CONSUMER": f"host={server.directory}"}
        for each in (self.server, self.other):
            each.execute(f"SET subdispatch.event_bus = '{bus}'")
        server.subscribe(count)
        deadline = time.monotonic() + 30
        while server.value("SELECT count(*) FROM subdispatch.poll('bench')") == 0:
            if time.monotonic() > deadline:
                raise BenchError(f"{series}: nothing arrives")
            self.server.execute("SELECT subdispatch.publish('bench', '0')")
            time.sleep(0.05)
        time.sleep(0.2)
        server.execute("SELECT count(*) FROM subdispatch.poll('bench', 100000)")
        return server, env


class BusLatency(Bus):
    name = "bus_latency"
    title = "From a committing transaction to a waiting consumer, through Redis"
    what = "time from sending the transaction to poll(timeout) having its event, one event at a time"
    metrics = [Metric("p50", "µs", label="median"), Metric("p99", "µs", label="99th percentile")]
    series = [*Bus.series, PLAIN]
    comparison = "difference"

    def run(self, x, series):
        if series == PLAIN:
            self.place(self.placement)
            figures = self.server.run("latency", "redis", 100 if self.quick else 1000)
        else:
            server, env = self.subscribed(series)
            self.place(self.placement)
            figures = self.server.run("latency", "poll", 100 if self.quick else 1000, env=env)
            server.end()
        return {"p50": figures["p50"], "p99": figures["p99"]}


class BusRate(Bus):
    name = "bus_rate"
    title = "One publisher, one consumer, through Redis"
    what = "end to end, transactions sent ahead"
    metrics = [Metric("rate", "events/s", "higher", label="events from publisher to consumer"),
               Metric("cpu", "µs per event", label="processor time of all processes")]
    xs = ["an event per transaction", "100 events per transaction"]
    series = [*Bus.series, PLAIN]

    def run(self, x, series):
        per, window = (1, 64) if x == self.xs[0] else (100, 8)
        events = (500 if self.quick else 20000) if per == 1 else (2000 if self.quick else 100000)
        if series == PLAIN:
            self.place(self.placement)
            figures = self.server.run_measured("stream", "redis", events, per, 1, window)
        else:
            server, env = self.subscribed(series)
            self.place(self.placement)
            # Redis is in the first server's sum
            figures = self.server.run_measured("stream", "poll", events, per, 1, window, env=env, others=[self.other])
            server.end()
        return {"rate": figures["events_per_second"], "cpu": figures["cpu_seconds"] / figures["events"] * 1e6}


class BusBacklog(Bus):
    """Redis stops answering for a minute while transactions go on, and answers again."""

    name = "bus_backlog"
    title = "After an outage of Redis under load: draining what has waited"
    what = "8 clients publish while Redis stands still, for a minute; then, from Redis going on to the other server having dispatched all"
    metrics = [Metric("rate", "events/s", "higher", label="drained"), Metric("backlog", "events", label="waited when Redis went on"),
               Metric("seconds", "s", label="until all was drained"),
               Metric("tps", "transactions/s", "higher", label="commits during the outage")]
    series = [TWO]
    baseline = None
    rounds = 0.3

    def run(self, x, series):
        server, env = self.subscribed(series)
        self.place(self.placement)
        outage = 0.5 if self.quick else 15 * self.seconds
        script = os.path.join(os.environ["TMPDIR"], "backlog.sql")
        with open(script, "w", encoding="ascii") as f:
            f.write("SELECT subdispatch.publish('bench', '{\"id\": 1, \"total\": \"9.99\", \"customer\": 7}');\n")
        server.execute("SELECT subdispatch.reset_stats()")
        published = self.server.stats()["events_published"]
        # At a rate that the queue has room for.
        self.server.redis.send_signal(signal.SIGSTOP)
        try:
            load = self.server.start("/usr/bin/env", "pgbench", "-n", "-M", "prepared", "-c", 8, "-j", 1, "-T", max(1, round(outage)),
                                     "-R", 10000, "-f", script, env=env)
            output, _ = load.communicate()
        finally:
            self.server.redis.send_signal(signal.SIGCONT)
        start = time.monotonic()
        if load.returncode != 0:
            raise BenchError(f"pgbench failed:\n{output}")
        waited = self.server.stats()["events_published"] - published
        deadline = start + 120
        while (arrived := server.stats()["events_dispatched"]) < waited:
            if time.monotonic() > deadline:
                raise BenchError(f"{arrived} of {waited} events arrived within 120 s")
            time.sleep(0.005)
        took = time.monotonic() - start
        tps = float(next(line for line in output.splitlines() if line.startswith("tps = ")).split()[2])
        server.end()
        return {"rate": waited / took, "backlog": waited, "seconds": took, "tps": tps}


class BusInsert(Insert):
    """What publishing through Redis costs the writers."""

    name = "bus_insert"
    title = "INSERT with a trigger that calls publish(), 32 clients: memory bus and Redis bus"
    metrics = [*Insert.metrics, Metric("others", "µs per transaction", label="of Redis, the workers and the consumer's backend")]
    baseline = "memory bus, 1 subscription"
    rounds = 6

    def __init__(self, server, quick, seconds):
        super().__init__(server, quick, seconds)
        self.settings = {**self.settings, **redis_settings()}

    variants = {
        "empty trigger": ("empty", "bench_nothing()", None, 0, {}),
        "memory bus, 1 subscription": ("memory", "bench_publish('memory')", "poll", 1, {"PGOPTIONS": "-c subdispatch.event_bus=memory"}),
        "Redis bus, 1 subscription": ("redis", "bench_publish('redis')", "poll", 1, {"PGOPTIONS": "-c subdispatch.event_bus=redis"}),
    }

    def setup(self):
        self.server.start_redis()
        super().setup()

    def targets(self, result):
        c = result.compare(None, self.series[2], None, self.series[1])
        return [result.at_least(f"Redis bus: at least 0.95 of the memory bus' commits [{c.low:.3f}..{c.high:.3f}]", c.median, 0.95, "x")]
