"""Every score with its interval on one line each, best first: the page's first picture, in HTML so that it fits any width."""

from math import ceil, floor, log10

from graft.compare import wording
from graft.compare.report.canvas import escaped
from graft.compare.report.markup import section
from graft.compare.report.summary import Row, Summary


def forest_section(summary: Summary) -> str:
    """Return the section with every scored row; empty if nothing was scored."""
    rows = [row for row in summary.rows if row.score is not None]
    if not rows:
        return ""
    scale = Scale(summary.metric, rows)
    zero = next((row.score for row in rows if row.method == "zero-shot"), None)
    lines = "".join(f'<i style="left:{scale.place(tick)}"></i>' for tick in scale.ticks)
    lines += f'<i class="zero" style="left:{scale.at(zero)}"></i>' if zero is not None else ""
    names = "".join(f'<span style="left:{scale.place(tick)}">{tick:g}</span>' for tick in scale.ticks)
    body = "".join(line(summary, row, scale, lines) for row in rows)
    body += f'<div class="row axis"><span></span><span class="track">{names}</span><span></span><span class="mark"></span></div>'
    label = escaped(f"Scores of {wording.plural(len(rows), 'method')} with intervals; the same numbers stand in the table below.")
    return section(
        "scores",
        "Scores at a glance",
        intro(summary, zero is not None),
        f'<div class="forest card" role="img" aria-label="{label}">{body}</div>',
    )


def intro(summary: Summary, dashed: bool) -> str:
    """Say how the picture is read."""
    better = "lower" if wording.lower_is_better(summary.metric) else "higher"
    unit = (
        ", per cent of test rows"
        if summary.metric in ("exact_match", "accuracy")
        else ", per cent"
        if wording.is_share(summary.metric)
        else ""
    )
    text = f"{wording.metric_name(summary.metric)}{unit}; {better} is better. The dot is the mean over seeds, the bar its 95% interval. "
    text += "Coloured methods tie with the best" + ("; the dashed line is the base model without training." if dashed else ".")
    return escaped(text[0].upper() + text[1:])


def line(summary: Summary, row: Row, scale: "Scale", lines: str) -> str:
    """Return one method's line."""
    kind = " ".join(name for name, on in (("tie", row in summary.tied), ("pick", row is summary.pick), ("base", row.baseline)) if on)
    whisker = ""
    if row.low is not None and row.high is not None:
        whisker = f'<span class="whisker" style="left:{scale.at(row.low)};right:{scale.from_right(row.high)}"></span>'
    dot = f'<span class="dot" style="left:{scale.at(row.score or 0)}"></span>'
    name = f'<span class="name">{escaped(row.entry.title)}</span>'
    value = f'<span class="value">{wording.score(summary.metric, row.score)}</span><span class="mark">{escaped(mark(summary, row))}</span>'
    return f'<div class="row {kind}">{name}<span class="track">{lines}{whisker}{dot}</span>{value}</div>'


def mark(summary: Summary, row: Row) -> str:
    """Say how a row stands to the best one."""
    if row is summary.best:
        return "best" + (", recommended" if row is summary.pick else "")
    if row.gap is None:
        return ""
    if row.tier == 1:
        return "tie" + (", recommended" if row is summary.pick else "")
    return f"{wording.signed(summary.metric, row.gap[0])}{wording.points(summary.metric)}"


class Scale:
    """The horizontal scale: round ends around all intervals, from zero where that costs less than half of the width."""

    def __init__(self, metric: str, rows: list[Row]) -> None:
        """Choose ends and ticks for the rows' scores."""
        self.metric = metric
        ends = [wording.shown(metric, value) for row in rows for value in (row.score, row.low, row.high) if value is not None]
        low, high = min(ends), max(ends)
        low = 0.0 if 0 <= low < high / 2 else low
        step = nice((high - low or abs(high) or 1) / 5)
        self.low, self.high = floor(low / step + 1e-9) * step, ceil(high / step - 1e-9) * step
        self.ticks = [round(self.low + number * step, 10) for number in range(round((self.high - self.low) / step) + 1)]

    def place(self, number: float) -> str:
        """Return where a printed number stands, as a CSS length from the left."""
        return f"{100 * (number - self.low) / (self.high - self.low or 1):.2f}%"

    def at(self, score: float) -> str:
        """Return where a score stands, from the left."""
        return self.place(wording.shown(self.metric, score))

    def from_right(self, score: float) -> str:
        """Return where a score stands, from the right."""
        return f"{100 - float(self.at(score)[:-1]):.2f}%"


def nice(step: float) -> float:
    """Round a step up to 1, 2, 5 or 10 times a power of ten."""
    power = 10.0 ** floor(log10(step))
    return next(power * factor for factor in (1, 2, 5, 10) if power * factor >= step - 1e-12)
