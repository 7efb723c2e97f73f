"""What a benchmark is, and how its rounds are run: A B C, B C A, C A B …"""

import sys
import time

from .figures import Comparison, median, number


class Metric:
    """One figure that a run gives. better is "lower" or "higher"."""

    def __init__(self, key, unit, better="lower", label=None):
        self.key, self.unit, self.better, self.label = key, unit, better, label or key


class Benchmark:
    """A subclass says what is measured; instances live for one run of the suite.

    A point is a pair (x, series): x what is varied (a chart's axis, or its groups), series what is compared. run() gives the
    metrics' values for one point, once; the first metric is charted.
    """

    name = title = None
    what = ""               # a sentence for the table's head and the chart
    metrics = []
    settings = {}           # the server's, beyond harness.server.SETTINGS
    placement = "free"
    xs = [None]
    x_label = ""
    series = []
    baseline = None         # a series: the others are compared with it
    comparison = "ratio"    # or "difference"
    chart = "bars"          # or "lines"
    log = True              # the chart's scale of values
    rounds = 1.0            # times the number of rounds asked for
    quick_xs = None         # what of xs a quick run does

    def __init__(self, server, quick, seconds):
        self.server, self.quick, self.seconds = server, quick, seconds
        if quick and self.quick_xs is not None:
            self.xs = self.quick_xs

    def points(self):
        return [(x, series) for x in self.xs for series in self.series if self.has(x, series)]

    def has(self, x, series):
        """Whether there is such a point."""
        return True

    def setup(self):
        """Once, before the first round."""

    def run(self, x, series):
        raise NotImplementedError

    def teardown(self):
        """Once, after the last round; also after an error."""

    def targets(self, result):
        """[(what, value as text, reached)]: what issue and README promise, judged by the result."""
        return []


class Result:
    """The figures of one benchmark."""

    def __init__(self, benchmark):
        self.benchmark = benchmark
        self.rounds = {point: [] for point in benchmark.points()}

    def values(self, x, series, metric=None):
        key = metric or self.benchmark.metrics[0].key
        return [round_[key] for round_ in self.rounds.get((x, series), []) if round_.get(key) is not None]

    def median(self, x, series, metric=None):
        values = self.values(x, series, metric)
        return median(values) if values else float("nan")

    def compare(self, x, series, baseline_x, baseline, metric=None, kind=None):
        return Comparison(self.values(x, series, metric), self.values(baseline_x, baseline, metric),
                          kind or self.benchmark.comparison)

    def at_most(self, what, value, limit, unit=""):
        return (what, f"{number(value)}{unit}", value <= limit)

    def at_least(self, what, value, limit, unit=""):
        return (what, f"{number(value)}{unit}", value >= limit)


def run_rounds(benchmark, rounds, log=sys.stderr):
    """Runs every point once per round, interleaved, each round beginning with another series."""
    result = Result(benchmark)
    rounds = max(1, round(rounds * benchmark.rounds))
    benchmark.server.configure(benchmark.settings)
    started = time.monotonic()
    try:
        benchmark.setup()
        for number_ in range(rounds):
            for x in benchmark.xs:
                turn = number_ % max(1, len(benchmark.series))
                for series in benchmark.series[turn:] + benchmark.series[:turn]:
                    if (x, series) in result.rounds:
                        result.rounds[(x, series)].append(benchmark.run(x, series))
            print(f"   {benchmark.name}: round {number_ + 1} of {rounds}, {time.monotonic() - started:.0f} s",
                  file=log, flush=True)
    finally:
        benchmark.teardown()
    return result
