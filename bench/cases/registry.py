"""Many subscriptions: what they take, and what the rest of the interface takes while they are there."""

import threading
import time

from harness.suite import Benchmark, Metric

from .common import MILLION

#         series: (statement, its parameter; # is the number of the call)
CALLS = {
    "subscribe()": ("SELECT subdispatch.subscribe('bench', id => $1, consumer => 'extra')", "new#"),
    "unsubscribe()": ("SELECT subdispatch.unsubscribe($1)", "old#"),
    "next_response()": ("SELECT subdispatch.next_response($1)", "bench7"),
    "poll()": ("SELECT * FROM subdispatch.poll($1)", "bench"),
    "publish(), nobody subscribes": ("SELECT subdispatch.publish($1, '1')", "nobody#"),
    "view stats": ("TABLE subdispatch.stats", None),
    "health()": ("SELECT subdispatch.health()", None),
    "metrics()": ("SELECT subdispatch.metrics()", None),
    "view consumers": ("TABLE subdispatch.consumers", None),
    "view channels": ("TABLE subdispatch.channels", None),
    "view subscriptions, one id": ("SELECT * FROM subdispatch.subscriptions WHERE id = $1", "bench7"),
    "view subscriptions, count": ("SELECT count(*) FROM subdispatch.subscriptions", None),
}
SLOW = {name for name in CALLS if name.startswith("view subscriptions") or name == "view consumers"}
OLD = 1100               # as many as unsubscribe() will end


class Calls(Benchmark):
    name = "registry"
    title = "One call while N subscriptions exist, a filter each"
    what = "median of calls one after the other, a round trip to the server included"
    metrics = [Metric("time", "µs", label="time of a call")]
    settings = MILLION
    placement = "two cores"
    xs = [1000, 100000, 1000000]
    quick_xs = [1000]
    x_label = "subscriptions"
    series = list(CALLS)
    chart = "lines"
    rounds = 0.4
    have = None             # how many subscriptions there are

    def run(self, x, series):
        server = self.server
        if self.have != x:
            server.end("bench", "extra")
            server.subscribe(x, filter_="jsonb_build_object('customer', i)")
            server.subscribe(OLD, consumer="extra", prefix="old")
            server.place(self.placement)
            self.have = x
        statement, parameter = CALLS[series]
        calls = 3 if series in SLOW else 1000
        figures = server.run("calls", statement, calls, *([parameter] if parameter else []))
        if series == "subscribe()":
            server.execute("SELECT count(subdispatch.unsubscribe('new' || i)) FROM generate_series(1, 1100) i")
        elif series == "unsubscribe()":
            server.subscribe(OLD, consumer="extra", prefix="old")
        return {"time": figures["p50"]}

    def teardown(self):
        self.server.end("bench", "extra")


class Beside(Benchmark):
    """Whether what takes long holds up the others."""

    name = "beside"
    title = "An event to a waiting consumer, beside work on very many subscriptions"
    what = "another session works on 300,000 subscriptions meanwhile; time from sending the transaction to poll(timeout) having its event"
    metrics = [Metric("p99", "µs", label="99th percentile"), Metric("p50", "µs", label="median"), Metric("max", "µs", label="maximum")]
    settings = MILLION
    placement = "free"
    series = ["nothing else", "subscribing", "view subscriptions", "ending them"]
    baseline = "nothing else"
    comparison = "difference"
    log = False
    rounds = 0.7
    many = 300000

    def subscribe_many(self):
        self.server.subscribe(2000 if self.quick else self.many, consumer="many", channel="many", prefix="m",
                              filter_="jsonb_build_object('customer', i)")

    def run(self, x, series):
        server = self.server
        work = {
            "nothing else": lambda: None,
            "subscribing": self.subscribe_many,
            "view subscriptions": lambda: server.execute("SELECT count(*) FROM subdispatch.subscriptions"),
            "ending them": lambda: server.end("many"),
        }[series]
        server.subscribe()
        if series in ("view subscriptions", "ending them"):
            self.subscribe_many()
        server.place(self.placement)
        process = server.start("latency", "poll", 100 if self.quick else 1000)
        time.sleep(0.05)
        thread = threading.Thread(target=work)
        thread.start()
        try:
            figures = server.finish(process)
        finally:
            thread.join()
        server.end("bench", "many")
        return {key: figures[key] for key in ("p99", "p50", "max")}


class Memory(Benchmark):
    name = "memory"
    title = "Subscribing N times in one statement, and the shared memory it takes"
    what = "the share of the hash tables, which are of a fixed size, included"
    metrics = [Metric("rate", "subscriptions/s", "higher", label="subscribing in one statement"),
               Metric("bytes", "bytes", label="shared memory each"),
               Metric("end", "subscriptions/s", "higher", label="ending them with their consumer")]
    settings = MILLION
    placement = "two cores"
    xs = [10000, 100000, 1000000]
    quick_xs = [1000]
    x_label = "subscriptions"
    series = ["sharing one stream", "a filter each"]
    chart = "lines"
    log = False
    rounds = 0.4

    def run(self, x, series):
        server = self.server
        before = server.stats()["shared_memory_used"]
        server.subscribe()          # the workers are there
        server.place(self.placement)
        start = time.perf_counter()
        server.subscribe(x, consumer="many", prefix="m", filter_="jsonb_build_object('customer', i)" if series == "a filter each" else None)
        took = time.perf_counter() - start
        used = server.stats()["shared_memory_used"] - before
        fixed = server.value("""SELECT sum(allocated_size) - pg_size_bytes(current_setting('subdispatch.shared_memory_size'))
                                FROM pg_shmem_allocations WHERE name LIKE 'subdispatch%'""")
        fixed = float(fixed) / int(MILLION["subdispatch.max_subscriptions"])
        start = time.perf_counter()
        server.end("many")
        end = time.perf_counter() - start
        server.end("bench")
        return {"rate": x / took, "bytes": float(used) / x + fixed, "end": x / end}

    def targets(self, result):
        n = max(self.xs)
        return [
            result.at_most(f"{n:,} sharing one stream: at most 400 bytes each",
                           result.median(n, "sharing one stream", "bytes"), 400, " bytes"),
            result.at_most(f"{n:,} with a filter each: in 1 GB", result.median(n, "a filter each", "bytes") * n / 2 ** 30, 1, " GB"),
            result.at_least(f"{n:,} sharing one stream: at least 50,000/s", result.median(n, "sharing one stream", "rate"), 50000, "/s"),
            result.at_least(f"{n:,} with a filter each: at least 50,000/s", result.median(n, "a filter each", "rate"), 50000, "/s"),
        ]
