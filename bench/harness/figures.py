"""Figures of several rounds: medians, spread, and comparisons of what ran side by side.

A comparison is paired: each round gives one ratio (or difference) of two variants that ran one after the other, and what is
told is the median of these. Its interval is that of the sign test (order statistics): it assumes nothing about how times are
distributed, and is honest with few rounds, where a bootstrap is not.
"""

import math
import statistics

WANTED = 0.95


def median(values):
    return statistics.median(values)


def interval(values):
    """(low, high, confidence) of the median: the narrowest pair of order statistics that holds it with WANTED confidence.

    With fewer than six values not even the extremes do; then these are given, with the confidence that they have.
    """
    ordered = sorted(values)
    n = len(ordered)
    best = (ordered[0], ordered[-1], 1 - 2 * 0.5 ** n)
    tail = 0.0
    for k in range(1, n // 2 + 1):
        tail += math.comb(n, k - 1) * 0.5 ** n
        if 1 - 2 * tail < WANTED:
            break
        best = (ordered[k - 1], ordered[n - k], 1 - 2 * tail)
    return best


class Comparison:
    """Of one variant's rounds with the baseline's."""

    def __init__(self, values, baseline, kind="ratio"):
        pairs = list(zip(values, baseline))
        self.kind = kind
        self.each = [a / b if kind == "ratio" else a - b for a, b in pairs if kind != "ratio" or b]
        self.median = median(self.each) if self.each else float("nan")
        self.low, self.high, self.confidence = interval(self.each) if self.each else (self.median, self.median, 0)

    def as_dict(self):
        return {"kind": self.kind, "median": self.median, "low": self.low, "high": self.high,
                "confidence": round(self.confidence, 4), "rounds": self.each}


def number(value):
    """Three digits that count, with separators: 0.0412, 7.31, 156, 33,600, 1,250,000."""
    if value is None or value != value:
        return "–"
    if value == 0:
        return "0"
    size = math.floor(math.log10(abs(value)))
    digits = max(0, 2 - size)
    if size > 2:
        value = round(value, 2 - size)
    text = f"{value:,.{digits}f}"
    # 10, not 10.0, where that is all there is to it
    return text[:-2] if text.endswith(".0") and value == round(value) else text
