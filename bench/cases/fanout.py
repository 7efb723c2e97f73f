"""One event to many subscriptions: from taking the event to all responses being readable."""

from harness.server import SECOND
from harness.suite import Benchmark, Metric

from .common import DISPATCH, RESOLVER, dispatch_time


class Shared(Benchmark):
    """Subscriptions of one response stream."""

    name = "fanout"
    title = "One event to N subscriptions, PL/Python resolver"
    what = "time from taking an event to all its responses being readable"
    metrics = [Metric("time", "µs per event", label="time until all can read")]
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
            time, _ = dispatch_time(self.server, "bench", events)
            self.server.end()
        else:
            self.server.place(self.placement)
            events = max(5, min(events, 200000 // x))
            time = self.server.python("python_fanout.py", "each" if "each" in series.split(":")[1].split(",")[0] else "once", x, events,
                                      cores=SECOND)["us"]
        return {"time": time}

    def targets(self, result):
        n100, n10k, n100k = (result.median(x, "subdispatch") for x in (100, 10000, 100000))
        return [
            result.at_most("at N=100 at most 30 µs", n100, 30, " µs"),
            result.at_most("at N=10,000 no more", n10k, max(30, 1.1 * n100), " µs"),
            result.at_most("at N=100,000 no more", n100k, max(30, 1.1 * n100), " µs"),
        ]
