"""The plot of training curves: a small panel a method, each way of training a line."""

from collections.abc import Mapping, Sequence
from math import ceil
from typing import Any

from graft.compare.report.canvas import FONT, LIGHT, RC, Canvas, blank, matplotlib
from steps.agreement import WINDOW, smoothed
from steps.plots import saved

COLUMNS, WIDTH, HEIGHT = 5, 900, 190
WAYS = {
    "float32": (LIGHT.families["neck"], "-", 1.2),
    "reference": (LIGHT.families["scale"], "-", 3.4),
    "fast": (LIGHT.families["rank"], "-", 1.3),
}
"""Colour, dash and width, in the order they are drawn: where two agree, the thin line runs inside the thick one."""


def plotted(records: Sequence[Mapping[str, Any]]) -> bytes | None:
    """All methods that have a reference, as a PNG of twice its size; None if there is none."""
    curves = {(record["method"], record["way"]): record["losses"] for record in records}
    methods = [method for method in dict.fromkeys(record["method"] for record in records) if (method, "reference") in curves]
    if not methods:
        return None
    lines = ceil(len(methods) / COLUMNS)
    canvas = Canvas(LIGHT, WIDTH, HEIGHT * lines + 40)
    with matplotlib().rc_context(RC):
        figure, axes = blank(canvas, nrows=lines, ncols=COLUMNS, squeeze=False)
        figure.subplots_adjust(left=0.045, right=0.99, bottom=58 / canvas.height, top=1 - 44 / canvas.height, wspace=0.28, hspace=0.36)
        for place, method in zip(axes.ravel(), methods, strict=False):
            panel(place, method, {way: curves[method, way] for way in WAYS if (method, way) in curves})
        for place in axes.ravel()[len(methods) :]:
            place.set_visible(False)
        legend(canvas, figure)
        return saved(figure)


def panel(axes: Any, method: str, curves: Mapping[str, Sequence[float]]) -> None:
    """One method's curves."""
    ticker = matplotlib().ticker
    for way, losses in curves.items():
        colour, dash, width = WAYS[way]
        means = smoothed(losses)
        first = len(losses) - len(means) + 1
        axes.plot(range(first, len(losses) + 1), means, color=colour, linestyle=dash, linewidth=width, alpha=0.55 if width > 2 else 1)
    axes.set_yscale("log")
    axes.set_title(method, loc="left", fontsize=FONT - 0.5, color=LIGHT.ink, pad=4)
    axes.yaxis.set_major_locator(ticker.LogLocator(base=10, subs=(1, 2, 3, 5), numticks=12))
    axes.yaxis.set_minor_locator(ticker.NullLocator())
    axes.yaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_major_locator(ticker.MaxNLocator(3))


def legend(canvas: Canvas, figure: Any) -> None:
    """What the lines are, above, and what the axes are, below."""
    x = 0.045
    for way, (colour, _, width) in reversed(WAYS.items()):
        line = matplotlib().lines.Line2D([x, x + 0.025], [1 - 14 / canvas.height] * 2, color=colour, linewidth=width)
        figure.add_artist(line)
        figure.text(x + 0.03, 1 - 14 / canvas.height, way, color=LIGHT.ink, va="center", fontsize=FONT - 0.5)
        x += 0.13
    words = f"training loss (log scale), mean of {WINDOW} steps, against steps"
    figure.text(0.045, 12 / canvas.height, words, color=LIGHT.muted, va="bottom", fontsize=FONT - 0.5)
