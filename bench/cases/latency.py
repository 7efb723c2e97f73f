"""From a transaction that publishes to a consumer that waits for it."""

from harness.suite import Benchmark, Metric

from .common import RESOLVER

#           series: (latency's way, resolver)
WAYS = {
    "NOTIFY": ("notify", None),
    "poll(timeout)": ("poll", None),
    "next_response(timeout)": ("next_response", None),
    "CALL await_responses, then poll": ("await_poll", None),
    "CALL await_responses and poll, pipelined": ("await_poll_pipelined", None),
    "poll(timeout), PL/Python resolver": ("poll", "bench_resolver"),
    "Redis pub/sub": ("redis", None),
}


class Latency(Benchmark):
    name = "latency"
    title = "From a committing transaction to a waiting consumer"
    what = "time from sending the transaction to having its event, one event at a time"
    metrics = [Metric("p50", "µs", label="median"), Metric("p99", "µs", label="99th percentile"),
               Metric("cpu", "µs", label="processor time of all processes")]
    placement = "each in turn"
    xs = ["one core", "two cores", "free"]
    series = list(WAYS)
    baseline = "NOTIFY"
    comparison = "difference"
    log = False
    rounds = 1.3

    def setup(self):
        self.server.start_redis()
        self.server.execute(RESOLVER)

    def run(self, x, series):
        way, resolver = WAYS[series]
        if way not in ("notify", "redis"):
            self.server.subscribe(resolver=resolver)
        self.server.place(x)
        figures = self.server.run_measured("latency", way, 100 if self.quick else 2000)
        self.server.end()
        return {"p50": figures["p50"], "p99": figures["p99"], "cpu": figures["cpu_seconds"] / figures["count"] * 1e6}

    def targets(self, result):
        targets = []
        for x in self.xs:
            plain = result.compare(x, "poll(timeout)", x, "NOTIFY")
            resolved = result.compare(x, "poll(timeout), PL/Python resolver", x, "poll(timeout)")
            targets.append(result.at_most(f"{x}: poll(timeout) at most 15 µs more than NOTIFY", plain.median, 15, " µs more"))
            targets.append(result.at_most(f"{x}: a PL/Python resolver at most 15 µs more", resolved.median, 15, " µs more"))
        return targets


class EmptyCall(Benchmark):
    name = "empty_call"
    title = "A call that finds nothing to read"
    what = "time of one call of a prepared statement"
    metrics = [Metric("p50", "µs", label="median"), Metric("mean", "µs", label="mean"),
               Metric("cpu", "µs", label="processor time of client and server")]
    placement = "each in turn"
    xs = ["one core", "two cores"]
    series = ["next_response(id)", "SELECT length($1)"]
    baseline = "SELECT length($1)"
    log = False
    rounds = 2

    def run(self, x, series):
        self.server.subscribe()
        self.server.place(x)
        call = "SELECT length($1)" if "length" in series else "SELECT subdispatch.next_response($1)"
        figures = self.server.run("calls", call, 1000 if self.quick else 20000, "bench1")
        self.server.end()
        return {"p50": figures["p50"], "mean": figures["mean"], "cpu": figures["cpu_seconds"] / figures["count"] * 1e6}

    def targets(self, result):
        targets = []
        for x in self.xs:
            c = result.compare(x, "next_response(id)", x, self.baseline)
            targets.append(result.at_most(f"{x}: at most 1.2 times SELECT length($1) [{c.low:.2f}..{c.high:.2f}]", c.median, 1.2, "x"))
        return targets
