"""One event to many subscriptions: from taking the event to all responses being readable."""

from harness.server import SECOND, BenchError
from harness.suite import Benchmark, Metric

from .common import DISPATCH, DISPATCH_METRIC, MILLION, RESOLVER, dispatch_time


PYTHON = {"Python: once, an envelope each": "once", "Python: resolver and json.dumps each": "each"}


def python_time(server, variant, subscriptions, events):
    events = max(3, min(events, 200000 // subscriptions))
    return server.python("python_fanout.py", variant, subscriptions, events, cores=SECOND)["us"]


class Shared(Benchmark):
    """Subscriptions of one response stream."""

    name = "fanout"
    title = "One event to N subscriptions, PL/Python resolver"
    what = "time from taking an event to all its responses being readable"
    metrics = [Metric("time", "µs per event", label="time until all can read"), DISPATCH_METRIC]
    placement = "apart"
    xs = [1, 100, 10000, 100000]
    quick_xs = [1, 100]
    x_label = "subscriptions"
    series = ["subdispatch", "Python: once, an envelope each", "Python: resolver and json.dumps each"]
    baseline = "Python: once, an envelope each"
    chart = "lines"

    def setup(self):
        self.server.execute(RESOLVER)
        self.server.execute(DISPATCH)

    def run(self, x, series):
        events = 50 if self.quick else 1000
        if series == "subdispatch":
            self.server.subscribe(x, resolver="bench_resolver", max_pending=10)
            self.server.place(self.placement)
            time, cpu, _ = dispatch_time(self.server, "bench", events)
            self.server.end()
        else:
            self.server.place(self.placement)
            time, cpu = python_time(self.server, PYTHON[series], x, events), None
        return {"time": time, "cpu": cpu}

    def targets(self, result):
        n100, n10k, n100k = (result.median(x, "subdispatch") for x in (100, 10000, 100000))
        return [
            result.at_most("at N=100 at most 30 µs", n100, 30, " µs"),
            result.at_most("at N=10,000 no more", n10k, max(30, 1.1 * n100), " µs"),
            result.at_most("at N=100,000 no more", n100k, max(30, 1.1 * n100), " µs"),
        ]


class Own(Benchmark):
    """Every subscription in a stream of its own: an identity each, no row-level security, no resolver."""

    name = "own_streams"
    title = "One event to N subscriptions, a response stream for each"
    what = "time from taking an event to all its responses being readable, for each subscription"
    metrics = [Metric("each", "µs per event and subscription", label="time until all can read"),
               Metric("time", "µs per event", label="the same for all"), DISPATCH_METRIC]
    placement = "apart"
    xs = [1, 100, 1000, 10000, 100000]
    quick_xs = [1, 100]
    x_label = "subscriptions"
    series = ["subdispatch", "Python: resolver and json.dumps each"]
    baseline = "Python: resolver and json.dumps each"
    chart = "lines"

    def setup(self):
        self.server.execute(DISPATCH)

    def run(self, x, series):
        # Nobody reads meanwhile, and nothing is dropped either.
        events = 50 if self.quick else max(5, min(500, 500000 // x))
        if series == "subdispatch":
            self.server.subscribe(x, identity="i::text")
            self.server.place(self.placement)
            time, cpu, stats = dispatch_time(self.server, "bench", events, warm=2)
            if stats["responses_queued"] != events * x:
                raise BenchError(f"{stats['responses_queued']} responses, not {events * x}")
            self.server.end()
        else:
            self.server.place(self.placement)
            time, cpu = python_time(self.server, "each", x, events), None
        return {"each": time / x, "time": time, "cpu": cpu}

    def targets(self, result):
        return [result.at_most(f"at N={x:,} at most 0.2 µs each", result.median(x, "subdispatch", "each"), 0.2, " µs")
                for x in (1000, 10000, 100000)]


class Filters(Benchmark):
    """A million subscriptions that each wait for another customer, and one that waits for all."""

    name = "filters"
    title = "One event, N subscriptions with an equality filter each, one matches"
    what = "time from taking an event to its response being readable"
    metrics = [Metric("time", "µs per event", label="time until it can be read"), DISPATCH_METRIC]
    settings = MILLION
    placement = "apart"
    xs = [1, 1000000]
    quick_xs = [1, 10000]
    x_label = "subscriptions"
    series = ["subdispatch"]
    rounds = 2

    def setup(self):
        self.server.execute(DISPATCH)
        for x in self.xs:
            self.server.subscribe(x, consumer=f"bench{x}", channel=f"bench{x}", prefix=f"bench{x}.", max_pending=10,
                                  filter_="jsonb_build_object('customer', i)")
        self.server.place(self.placement)

    def run(self, x, series):
        events = 50 if self.quick else 1000
        time, cpu, stats = dispatch_time(self.server, f"bench{x}", events, customers=x)
        if stats["responses_queued"] != events:
            raise BenchError(f"{stats['responses_queued']} responses, not {events}")
        return {"time": time, "cpu": cpu}

    def teardown(self):
        self.server.end(*(f"bench{x}" for x in self.xs))

    def targets(self, result):
        more = result.compare(1000000, "subdispatch", 1, "subdispatch", kind="difference")
        return [result.at_most(f"1,000,000 at most 10 µs more than one [{more.low:.1f}..{more.high:.1f}]", more.median, 10, " µs")]
