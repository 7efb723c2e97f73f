"""A benchmark's result as a table's rows and as JSON; the README and the charts are made of the JSON alone."""

import json
import os

from .figures import median, number


def as_dict(result, environment):
    """Everything that is to be known of one benchmark's run."""
    b = result.benchmark
    points = []
    for (x, series), rounds in result.rounds.items():
        metrics = {}
        for metric in b.metrics:
            values = result.values(x, series, metric.key)
            if values:
                metrics[metric.key] = {"median": median(values), "min": min(values), "max": max(values), "rounds": values}
                if b.baseline and series != b.baseline and (x, b.baseline) in result.rounds:
                    if result.values(x, b.baseline, metric.key):
                        metrics[metric.key]["compared"] = result.compare(x, series, x, b.baseline, metric.key).as_dict()
        points.append({"x": x, "series": series, "rounds": len(rounds), "metrics": metrics})
    return {
        "name": b.name, "title": b.title, "what": b.what, "x_label": b.x_label, "baseline": b.baseline,
        "placement": b.placement, "chart": b.chart, "log": b.log,
        "metrics": [{"key": m.key, "label": m.label, "unit": m.unit, "better": m.better} for m in b.metrics],
        "points": points,
        "targets": [{"what": what, "value": value, "reached": reached} for what, value, reached in ([] if b.quick else b.targets(result))],
        "environment": environment,
    }


def x_name(x):
    return "" if x is None else f"{x:,}" if isinstance(x, int) else str(x)


def compared_text(compared):
    """1.07x [0.95..1.20], or +3.1 [2.0..4.4]"""
    if not compared:
        return ""
    ratio = compared["kind"] == "ratio"
    text = f"{number(compared['median'])}x" if ratio else f"{compared['median']:+.1f}"
    if len(compared["rounds"]) > 1:
        text += f" [{number(compared['low'])}..{number(compared['high'])}]"
    return text


def table(results):
    """One table of all results, as lines of text."""
    head = ("benchmark", "case", "variant", "figure", "median", "min..max", "unit", "against the baseline [interval]")
    rows = []
    for r in results:
        units = {m["key"]: m for m in r["metrics"]}
        for point in r["points"]:
            for key, m in point["metrics"].items():
                variant = point["series"] + (" (baseline)" if point["series"] == r["baseline"] else "")
                rows.append((r["name"], x_name(point["x"]), variant, units[key]["label"], number(m["median"]),
                             f"{number(m['min'])}..{number(m['max'])}", units[key]["unit"],
                             compared_text(m.get("compared"))))
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    right = {4, 5}

    def line(row):
        return "  ".join(cell.rjust(w) if i in right else cell.ljust(w)
                         for i, (cell, w) in enumerate(zip(row, widths))).rstrip()

    lines = [line(head), line(tuple("-" * w for w in widths))]
    last = None
    for row in rows:
        # what repeats is left out
        shown = tuple("" if last and i < 3 and row[: i + 1] == last[: i + 1] else cell for i, cell in enumerate(row))
        lines.append(line(shown))
        last = row
    return lines


def target_lines(results):
    lines = []
    for r in results:
        for t in r["targets"]:
            lines.append(f"{'reached' if t['reached'] else 'MISSED ':8} {r['name']}: {t['what']}: {t['value']}")
    return lines


def write(result, directory):
    path = os.path.join(directory, result["name"] + ".json")
    with open(path, "w", encoding="utf-8") as f:
        json.dump(result, f, indent=1, ensure_ascii=False)
        f.write("\n")


def read_all(directory, order):
    results = []
    for name in order:
        path = os.path.join(directory, name + ".json")
        if os.path.exists(path):
            with open(path, encoding="utf-8") as f:
                results.append(json.load(f))
    return results
