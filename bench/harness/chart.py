"""Charts as SVG, without any library: lines over a logarithmic x, or bars in groups. Light ground, so that they can be read on
any page; every value that a bar stands for is written beside it."""

import itertools
import math
from xml.sax.saxutils import escape

from .figures import number
from .report import x_name

# What is compared with has these beginnings: it is shown in warm colors, subdispatch in cold ones.
OTHERS = ("NOTIFY", "pg_notify", "Python", "Redis pub/sub", "outbox", "SELECT", "no trigger", "empty trigger", "nothing else")
WARM = ["#d1242f", "#bf8700", "#8c6a5d", "#f0883e", "#6e7781"]
COLD = ["#1f6feb", "#1a7f37", "#8250df", "#54aeff", "#0a3069", "#3fb7a5", "#57606a"]
INK, PALE, GRID = "#1f2328", "#59636e", "#d8dee4"
FONT = "font-family=\"-apple-system,Segoe UI,Helvetica,Arial,sans-serif\""


def text_width(text, size):
    return len(text) * size * 0.6


class Canvas:
    def __init__(self, width, height):
        self.width, self.height, self.parts = width, height, []

    def line(self, x1, y1, x2, y2, color=GRID, width=1):
        self.parts.append(f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{color}" stroke-width="{width}"/>')

    def rect(self, x, y, w, h, color):
        self.parts.append(f'<rect x="{x:.1f}" y="{y:.1f}" width="{max(w, 0.5):.1f}" height="{h:.1f}" fill="{color}"/>')

    def text(self, x, y, text, size=12, anchor="start", color=INK, bold=False, turned=False):
        turn = f' transform="rotate(-90 {x:.1f} {y:.1f})"' if turned else ""
        weight = ' font-weight="600"' if bold else ""
        self.parts.append(f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" text-anchor="{anchor}" fill="{color}"{weight}{turn}>'
                          f"{escape(text)}</text>")

    def path(self, points, color):
        d = " ".join(f"{'M' if i == 0 else 'L'}{x:.1f} {y:.1f}" for i, (x, y) in enumerate(points))
        self.parts.append(f'<path d="{d}" fill="none" stroke="{color}" stroke-width="2"/>')
        for x, y in points:
            self.parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="{color}"/>')

    def svg(self):
        return (f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {self.width} {self.height}" width="{self.width}" '
                f'height="{self.height}" {FONT}>\n<rect width="100%" height="100%" fill="#ffffff"/>\n'
                + "\n".join(self.parts) + "\n</svg>\n")


class Scale:
    """Values to places, linear from 0 or logarithmic, with round ticks."""

    def __init__(self, values, start, end, log):
        values = [v for v in values if v > 0] or [1]
        self.start, self.end, self.log = start, end, log
        if log:
            self.low = math.floor(math.log10(min(values)) - 0.05)
            self.high = math.ceil(math.log10(max(values)) + 0.05)
            self.ticks = [10.0 ** e for e in range(self.low, self.high + 1)]
        else:
            step = 10 ** math.floor(math.log10(max(values)))
            while max(values) / step < 4:
                step /= 2
            self.low, self.high = 0, step * math.ceil(max(values) * 1.02 / step)
            self.ticks = [step * i for i in range(round(self.high / step) + 1)]

    def __call__(self, value):
        if self.log:
            value = math.log10(max(value, 10.0 ** self.low))
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)


def shown(result):
    """[(x, series, median, min, max)] of the first metric, and that metric."""
    metric = result["metrics"][0]
    points = [(p["x"], p["series"], m["median"], m["min"], m["max"]) for p in result["points"]
              for key, m in p["metrics"].items() if key == metric["key"]]
    return points, metric


def unique(items):
    return list(dict.fromkeys(items))


def colors(series):
    shades = {True: itertools.cycle(WARM), False: itertools.cycle(COLD)}
    return {s: next(shades[s.startswith(OTHERS)]) for s in series}


def heading(canvas, result, metric):
    canvas.text(16, 26, result["title"], 16, bold=True)
    direction = "lower is better" if metric["better"] == "lower" else "higher is better"
    scale = ", logarithmic scale" if result["log"] else ""
    canvas.text(16, 45, f"{metric['label']}, {metric['unit']} ({direction}{scale}); medians, with least and greatest", 12, color=PALE)


def footer(canvas, result):
    e = result["environment"]
    canvas.text(16, canvas.height - 10, f"{e['machine']}; PostgreSQL {e['postgresql']}; {e['date'][:10]}", 11, color=PALE)


def bars(result):
    """Horizontal bars, a group for each x."""
    points, metric = shown(result)
    xs = unique(p[0] for p in points)
    series = unique(p[1] for p in points)
    color = colors(series)
    label_width = 24 + max(text_width(s, 12) for s in series)
    height_of_bar, gap, top = 19, 14, 64
    named = [x for x in xs if x is not None]
    group_head = 20 if named else 0
    height = top + sum(group_head + gap + height_of_bar * sum(1 for p in points if p[0] == x) for x in xs) + 52
    canvas = Canvas(820, height)
    heading(canvas, result, metric)
    scale = Scale([p[2] for p in points] + [p[4] for p in points], label_width + 8, canvas.width - 90, result["log"])
    bottom = height - 52
    for tick in scale.ticks:
        canvas.line(scale(tick), top - 6, scale(tick), bottom)
        canvas.text(scale(tick), bottom + 16, number(tick), 11, "middle", PALE)
    y = top
    for x in xs:
        if named:
            canvas.text(16, y + 12, x_name(x) + (f" {result['x_label']}" if isinstance(x, int) else ""), 12, bold=True)
            y += group_head
        for s in series:
            for _, _, mid, low, high in [p for p in points if p[0] == x and p[1] == s]:
                canvas.text(label_width, y + 14, s, 12, "end")
                canvas.rect(scale.start, y + 3, scale(mid) - scale.start, height_of_bar - 5, color[s])
                canvas.line(scale(low), y + 10.5, scale(high), y + 10.5, INK)
                canvas.text(max(scale(mid), scale(high)) + 6, y + 14, number(mid), 12)
                y += height_of_bar
        y += gap
    canvas.line(scale.start, top - 6, scale.start, bottom, PALE)
    footer(canvas, result)
    return canvas.svg()


def lines(result):
    """Lines over a logarithmic x, with a bar from the least to the greatest value."""
    points, metric = shown(result)
    xs = sorted(unique(p[0] for p in points))
    series = unique(p[1] for p in points)
    right = 24 + max(text_width(s, 12) for s in series)
    canvas = Canvas(820, 420)
    heading(canvas, result, metric)
    top, bottom, left = 66, canvas.height - 66, 78
    across = Scale([0.8 * xs[0], 1.2 * xs[-1]], left, canvas.width - right, True)
    across.low, across.high = math.log10(xs[0]) - 0.15, math.log10(xs[-1]) + 0.15
    up = Scale([p[2] for p in points] + [p[3] for p in points], bottom, top, result["log"])
    for tick in up.ticks:
        canvas.line(left, up(tick), canvas.width - right, up(tick))
        canvas.text(left - 8, up(tick) + 4, number(tick), 11, "end", PALE)
    for x in xs:
        canvas.line(across(x), bottom, across(x), bottom + 5, PALE)
        canvas.text(across(x), bottom + 19, x_name(x), 11, "middle", PALE)
    canvas.text((left + canvas.width - right) / 2, bottom + 36, result["x_label"], 12, "middle")
    canvas.text(22, (top + bottom) / 2, metric["unit"], 12, "middle", turned=True)
    taken = []
    ends = []
    for s, color in colors(series).items():
        mine = sorted((p for p in points if p[1] == s), key=lambda p: p[0])
        for x, _, _, low, high in mine:
            canvas.line(across(x), up(low), across(x), up(high), color)
        canvas.path([(across(p[0]), up(p[2])) for p in mine], color)
        ends.append((up(mine[-1][2]), across(mine[-1][0]), s, color))
    for y, x, s, color in sorted(ends):
        # names stand at their lines' ends, and not over each other
        while any(abs(y - other) < 15 for other in taken):
            y += 1
        taken.append(y)
        canvas.text(canvas.width - right + 10, y + 4, s, 12, color=color, bold=True)
    footer(canvas, result)
    return canvas.svg()


def write(result, directory):
    if not any(p["metrics"] for p in result["points"]):
        return
    with open(f"{directory}/{result['name']}.svg", "w", encoding="utf-8") as f:
        f.write((lines if result["chart"] == "lines" else bars)(result))
