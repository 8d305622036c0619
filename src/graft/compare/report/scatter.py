"""Scatter plots of score against a cost, each point named, its family told by colour and shape.

Text that comes from records is never read as mathematics (`parse_math=False`).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from graft.compare import wording
from graft.compare.report.canvas import FONT, Canvas, Plot, blank, finish, matplotlib, score_label, short
from graft.compare.report.labels import Box, place_labels, spread
from graft.compare.report.summary import Row, Summary


@dataclass(frozen=True)
class Axis:
    """The horizontal axis of a scatter plot."""

    label: str
    value: Callable[[Row], float | None]
    spell: Callable[[float], str]
    log: bool = False


def costs(summary: Summary, name: str, title: str, caption: str, label: str, axis: Axis) -> Plot | None:
    """Plan a scatter plot of score against a cost; None with fewer than two points."""
    rows = [row for row in summary.tuned if row.score is not None and axis.value(row) is not None]
    if len(rows) < 2:
        return None
    ends = f"{rows[0].entry.title} scores {wording.score(summary.metric, rows[0].score)}, {rows[-1].entry.title} scores "
    text = f"Scatter plot: {label} for {wording.plural(len(rows), 'method')}. {ends}{wording.score(summary.metric, rows[-1].score)}."
    return Plot(name, title, caption, text, lambda canvas: scatter(canvas, summary, rows, axis, title))


def scatter(canvas: Canvas, summary: Summary, rows: Sequence[Row], axis: Axis, title: str) -> Any:
    """Draw score against a cost: points by family, whiskers, baselines as lines, and a label at every point."""
    figure, axes = blank(canvas)
    metric, theme = summary.metric, canvas.theme
    points = [(float(axis.value(row) or 0), wording.shown(metric, row.score or 0)) for row in rows]
    if axis.log:
        axes.set_xscale("log")
    for row, (x, y) in zip(rows, points, strict=True):
        colour = theme.families[row.entry.family.key]
        if row.low is not None and row.high is not None:
            axes.plot([x, x], [wording.shown(metric, row.low), wording.shown(metric, row.high)], color=colour, linewidth=1.2, alpha=0.55)
        size, top = 10 if row.entry.family.marker in "^vP" else 9, 4 if row is summary.pick else 3
        axes.plot(
            [x], [y], row.entry.family.marker, color=colour, markersize=size, markeredgecolor=theme.halo, markeredgewidth=1.2, zorder=top
        )
    frame_scatter(canvas, axes, axis, [x for x, _ in points])
    finish(canvas, figure, axes, score_label(metric), axis.label, title)
    taken = reference_lines(canvas, axes, summary)
    bars = [whisker(axes, metric, row, x) for row, (x, _) in zip(rows, points, strict=True)]
    write_labels(canvas, axes, summary, rows, points, taken, [bar for bar in bars if bar])
    return figure


def frame_scatter(canvas: Canvas, axes: Any, axis: Axis, values: Sequence[float]) -> None:
    """Set the horizontal limits with room for labels, and ticks in words."""
    low, high = min(values), max(values)
    ticker = matplotlib().ticker
    if axis.log:
        axes.set_xlim(low / 2.2, high * 2.6)
        axes.xaxis.set_major_locator(ticker.LogLocator(base=10, numticks=6))
        axes.xaxis.set_minor_locator(ticker.NullLocator())
    else:
        room = (high - low or high or 1) * 0.14
        axes.set_xlim(low - room, high + room)
        axes.xaxis.set_major_locator(ticker.MaxNLocator(4 if canvas.narrow else 6))
    axes.xaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _: axis.spell(value)))


def reference_lines(canvas: Canvas, axes: Any, summary: Summary) -> list[Box]:
    """Draw the baselines across the plot, named at the right end; returns the boxes their names take, in pixels."""
    rows = [row for row in summary.baselines if row.score is not None]
    if not rows:
        return []
    values = [wording.shown(summary.metric, row.score or 0) for row in rows]
    low, high = axes.get_ylim()
    room = (max(high, *values) - min(low, *values)) * 0.06
    axes.set_ylim(min(low, min(values) - room), max(high, max(values) + room))
    boxes = []
    pixels = axes.transData.transform([(axes.get_xlim()[1], value) for value in values])
    heights = spread([float(y) + 7 for _, y in pixels], 14, 0, canvas.height)
    for row, value, height in zip(rows, values, heights, strict=True):
        axes.axhline(value, color=canvas.theme.muted, linewidth=1.1, linestyle=(0, (4, 3)), zorder=1)
        at = axes.transData.inverted().transform((0, height))[1]
        text = axes.text(axes.get_xlim()[1], at, f"{row.entry.title} {wording.score(summary.metric, row.score)}", ha="right",
                         va="center", color=canvas.theme.muted, fontsize=FONT - 1, parse_math=False)  # fmt: skip
        extent = text.get_window_extent()
        line = axes.transData.transform((0, value))[1]
        boxes += [Box(extent.x0, extent.y0, extent.x1, extent.y1), Box(0, line - 1, canvas.width, line + 1)]
    return boxes


def whisker(axes: Any, metric: str, row: Row, x: float) -> Box | None:
    """Return the box of a row's error bar in pixels."""
    if row.low is None or row.high is None:
        return None
    ends = axes.transData.transform([(x, wording.shown(metric, row.low)), (x, wording.shown(metric, row.high))])
    return Box(float(ends[0][0]) - 1.5, float(ends[:, 1].min()), float(ends[0][0]) + 1.5, float(ends[:, 1].max()))


def write_labels(
    canvas: Canvas,
    axes: Any,
    summary: Summary,
    rows: Sequence[Row],
    points: Sequence[tuple[float, float]],
    hard: list[Box],
    soft: list[Box],
) -> None:
    """Write every point's name where it covers nothing, with a thin line to points that are not next to it."""
    pixels = [(float(x), float(y)) for x, y in axes.transData.transform(points)]
    texts = [axes.text(0, 0, short(row.entry.title), color=canvas.theme.ink, fontsize=FONT - 0.5, ha="center", va="center",
                       weight="bold" if row is summary.pick else "normal", parse_math=False) for row in rows]  # fmt: skip
    extents = [text.get_window_extent() for text in texts]
    area = axes.get_window_extent()
    frame = Box(area.x0, area.y0 + 2, canvas.width - 4, area.y1 + 6)
    places = place_labels(pixels, [(each.width + 2, each.height) for each in extents], frame, hard, soft)
    back = axes.transData.inverted()
    for text, place, pixel in zip(texts, places, pixels, strict=True):
        box = place.box
        side = "left" if box.left >= pixel[0] else "right" if box.right <= pixel[0] else "center"
        across = {"left": box.left, "right": box.right, "center": (box.left + box.right) / 2}[side]
        text.set_horizontalalignment(side)  # the page's font is not the measured one: text is held at the end next to its point
        text.set_position(back.transform((across, (box.bottom + box.top) / 2)))
        if place.leader:
            end = (min(max(pixel[0], box.left), box.right), min(max(pixel[1], box.bottom + 2), box.top - 2))
            (x0, y0), (x1, y1) = back.transform([pixel, end])
            axes.plot([x0, x1], [y0, y1], color=canvas.theme.muted, linewidth=0.7, zorder=1.5)
