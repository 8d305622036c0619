"""Plots of docs/performance.md: time and peak memory to the frozen limit, against tokens a step and against rank."""

import io
from collections.abc import Sequence
from typing import Any, NamedTuple

from graft.compare.report.canvas import FONT, LIGHT, RC, Canvas, blank, matplotlib
from graft.compare.report.labels import spread
from steps.goals import NONE, Results
from steps.plans import LENGTHS, RANKS
from steps.points import Point
from steps.results import Measured

WIDTH, HEIGHT = 860, 380


class Look(NamedTuple):
    """How a row is drawn."""

    row: str
    name: str
    colour: str
    dash: Any


LOOKS = (
    Look("lora", "LoRA", LIGHT.families["rank"], "-"),
    Look("dora", "DoRA", LIGHT.families["rank"], (0, (5, 2))),
    Look("peft-lora-best", "PEFT LoRA", LIGHT.families["scale"], "-"),
    Look("peft-dora-best", "PEFT DoRA", LIGHT.families["scale"], (0, (5, 2))),
)
VALUES = {"time of a step, frozen limit = 1": "ratio", "peak memory, frozen limit = 1": "memory"}
AXES = {
    "tokens": ("tokens a step, rank 16", [(batch * length, {"batch": batch, "tokens": length}) for batch, length in LENGTHS]),
    "rank": ("rank, 4096 tokens a step", [(rank, {"rank": rank}) for rank in RANKS]),
}


def series(results: Results, look: Look, settings: Sequence[tuple[int, dict[str, int]]], value: str) -> list[tuple[int, float]]:
    """Where a row was measured, and what it was."""
    found: list[tuple[int, Measured]] = [(x, results.get(Point(row=look.row, **setting), NONE)) for x, setting in settings]
    return [(x, getattr(one, value)) for x, one in found if getattr(one, value) is not None]


def plotted(results: Results, name: str) -> bytes | None:
    """The plot as a PNG of twice its size; None where no line would have two points."""
    label, settings = AXES[name]
    lines = [[(look, series(results, look, settings, value)) for look in LOOKS] for value in VALUES.values()]
    if not any(len(points) > 1 for panel in lines for _, points in panel):
        return None
    canvas = Canvas(LIGHT, WIDTH, HEIGHT)
    with matplotlib().rc_context(RC):
        figure, axes = blank(canvas, nrows=1, ncols=2)
        figure.subplots_adjust(left=0.055, right=0.885, bottom=0.15, top=0.86, wspace=0.48)
        for place, title, panel in zip(axes, VALUES, lines, strict=True):
            draw(canvas, figure, place, panel, title, label, [x for x, _ in settings])
        return saved(figure)


def draw(canvas: Canvas, figure: Any, axes: Any, panel: Sequence[tuple[Look, Any]], title: str, label: str, ticks: Sequence[int]) -> None:
    """One panel: a line a row, named at its end, and the limit itself at 1."""
    theme, ticker = canvas.theme, matplotlib().ticker
    axes.set_xscale("log", base=2)
    axes.axhline(1.0, color=theme.muted, linewidth=1.1, linestyle=(0, (1, 1.5)))
    drawn = [(look, points) for look, points in panel if points]
    for look, points in drawn:
        axes.plot([x for x, _ in points], [y for _, y in points], "o", linestyle=look.dash, color=look.colour, markersize=4.5)
    top = max([y for _, points in drawn for _, y in points], default=1.0)
    axes.set_ylim(min(0.95, *(y - 0.05 for _, points in drawn for _, y in points)), 1 + 1.06 * max(top - 1, 0.05))
    axes.set_xlim(ticks[0] / 1.15, ticks[-1] * 1.15)
    axes.xaxis.set_major_locator(ticker.FixedLocator(ticks))
    axes.xaxis.set_minor_locator(ticker.NullLocator())
    axes.xaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:.2f}"))
    axes.set_title(title, loc="left", fontsize=FONT, color=theme.ink, pad=14)
    axes.set_xlabel(label, color=theme.muted, fontsize=FONT - 0.5, labelpad=8)
    names(canvas, figure, axes, [("limit", theme.muted, 1.0), *((look.name, look.colour, points[-1][1]) for look, points in drawn)])


def names(canvas: Canvas, figure: Any, axes: Any, ends: Sequence[tuple[str, str, float]]) -> None:
    """Each line's name beside the panel, moved apart."""
    area = axes.get_window_extent()
    heights = [float(axes.transData.transform((1, y))[1]) for _, _, y in ends]
    for (name, colour, _), height in zip(ends, spread(heights, 14.5, area.y0, area.y1 + 6), strict=True):
        figure.text((area.x1 + 6) / canvas.width, height / canvas.height, name, color=colour, va="center", fontsize=FONT - 0.5)


def saved(figure: Any) -> bytes:
    """The figure's bytes, the same for the same drawing."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=144, metadata={"Software": None})
    return buffer.getvalue()
