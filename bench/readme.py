"""Draws the charts, and writes the README's section "How fast", from the JSON in bench/results: readme.py CHECKOUT"""

import os
import re
import sys

import cases
from harness import chart, report
from harness.figures import number

BEGIN, END = "<!-- made by make bench README=1 -->", "<!-- end of what make bench README=1 made -->"
CHARTS = ["fanout", "insert", "latency", "many"]


class Results:
    """The figures of bench/results, by benchmark, case, variant and metric."""

    def __init__(self, checkout):
        self.all = {r["name"]: r for r in report.read_all(os.path.join(checkout, "bench", "results"), list(cases.ALL))}

    def metric(self, name, x, series, metric=None):
        result = self.all.get(name)
        if result is None:
            return None
        key = metric or result["metrics"][0]["key"]
        for point in result["points"]:
            if point["x"] == x and point["series"] == series:
                return point["metrics"].get(key)
        return None

    def text(self, name, x, series, unit, metric=None):
        """The median as the README has it; microseconds become ms or s where there are many."""
        m = self.metric(name, x, series, metric)
        if m is None:
            return "–"
        value = m["median"]
        if unit == " µs" and value >= 1000:
            value, unit = (value / 1e6, " s") if value >= 1e6 else (value / 1000, " ms")
        return f"{number(value)}{unit}"


def rows(r):
    """(what, subdispatch, what else users have)"""
    each, once = "Python: resolver and json.dumps each", "Python: once, an envelope each"
    us = " µs"

    def fan_out(n):
        return (f"One event to {n:,} subscriptions, with a PL/Python resolver",
                r.text("fanout", n, "subdispatch", us),
                f"Python process: {r.text('fanout', n, each, us)}; sharing the result {r.text('fanout', n, once, us)}")

    insert = "publish_change, 1 subscription"
    shown = [
        fan_out(100), fan_out(10000), fan_out(100000),
        ("The same, 10,000 response streams", r.text("own_streams", 10000, "subdispatch", us, "time"),
         f"Python process: {r.text('own_streams', 10000, each, us, 'time')}"),
        ("An event that one of 1,000,000 filters matches", r.text("filters", 1000000, "subdispatch", us),
         f"one subscription: {r.text('filters', 1, 'subdispatch', us)}"),
        ("A change under row-level security, 1,000 identities", r.text("row_security", 1000, "a setting", us),
         f"one identity: {r.text('row_security', 1000, 'one identity shared by all', us)}"),
        ("INSERTs with a trigger that publishes, 32 clients", r.text("insert", None, insert, "/s"),
         f"empty trigger: {r.text('insert', None, 'empty trigger', '/s')}; "
         f"NOTIFY: {r.text('insert', None, 'pg_notify, 1 listener', '/s')}; outbox: {r.text('insert', None, 'outbox table, polled', '/s')}"),
        ("From commit to a waiting consumer, one core", r.text("latency", "one core", "poll(timeout)", us),
         f"NOTIFY: {r.text('latency', 'one core', 'NOTIFY', us)}; Redis: {r.text('latency', 'one core', 'Redis pub/sub', us)}"),
        ("From commit to a waiting consumer, two cores", r.text("latency", "two cores", "poll(timeout)", us),
         f"NOTIFY: {r.text('latency', 'two cores', 'NOTIFY', us)}; Redis: {r.text('latency', 'two cores', 'Redis pub/sub', us)}"),
        ("One publisher, an event per transaction", r.text("single", "sent ahead, all cores", "poll", "/s"),
         f"NOTIFY: {r.text('single', 'sent ahead, all cores', 'NOTIFY', '/s')}"),
        ("The same, beside 99 idle listeners", r.text("single", "sent ahead, all cores, 99 idle listeners", "poll", "/s"),
         f"NOTIFY: {r.text('single', 'sent ahead, all cores, 99 idle listeners', 'NOTIFY', '/s')}"),
        ("One publisher, 100 events per transaction", r.text("batch", "all cores", "poll", "/s"),
         f"NOTIFY, which parses nothing: {r.text('batch', 'all cores', 'NOTIFY', '/s')}"),
        ("Deliveries to 100 subscriptions, poll_shared", r.text("many", None, "poll_shared", "/s"),
         f"100 LISTENing connections: {r.text('many', None, 'NOTIFY, 100 connections', '/s')}; "
         f"Redis: {r.text('many', None, 'Redis pub/sub, 100 connections', '/s')}"),
        ("Shared memory of a subscription", r.text("memory", 1000000, "sharing one stream", " bytes", "bytes"),
         f"with a filter of its own: {r.text('memory', 1000000, 'a filter each', ' bytes', 'bytes')}"),
    ]
    return [row for row in shown if row[1] != "–"]


def section(r):
    first = next(iter(r.all.values()))["environment"]
    lines = [
        BEGIN, "",
        f"Measured by `make bench` on {first['machine']}, PostgreSQL {first['postgresql']}, on one machine for everything, load generators",
        "included; commits wait for the disk. Medians; what is compared ran in turns. [bench](bench/README.md) tells what each",
        "figure means, and `make bench README=1` measures anew and rewrites this section.", "",
        "| What | subdispatch | Compared with |", "| --- | --- | --- |",
    ]
    disturbed = sorted(name for name, result in r.all.items() if result["environment"]["note"])
    if disturbed:
        lines[6:6] = [f"The machine had other work while some of it was measured ({', '.join(disturbed)}): those figures are less certain.", ""]
    lines += [f"| {what} | {mine} | {others} |" for what, mine, others in rows(r)]
    lines.append("")
    for name in CHARTS:
        if name in r.all:
            lines += [f"![{r.all[name]['title']}](bench/results/{name}.svg)", ""]
    lines.append(END)
    return "\n".join(lines)


def main(checkout):
    path = os.path.join(checkout, "README.md")
    with open(path, encoding="utf-8") as f:
        text = f.read()
    if BEGIN not in text or END not in text:
        sys.exit(f"README.md has no place for the figures: {BEGIN} … {END}")
    results = Results(checkout)
    for result in results.all.values():
        chart.write(result, os.path.join(checkout, "bench", "results"))
    made = section(results)
    text = re.sub(re.escape(BEGIN) + ".*?" + re.escape(END), lambda _: made, text, flags=re.S)
    with open(path, "w", encoding="utf-8") as f:
        f.write(text)


if __name__ == "__main__":
    main(sys.argv[1])
