"""Plots of training: validation loss as tokens are seen, and what the search for a learning rate found."""

from collections.abc import Sequence
from math import ceil
from typing import Any

import numpy as np

from graft.compare import wording
from graft.compare.records import Run
from graft.compare.report.canvas import FONT, Canvas, Plot, blank, finish, matplotlib, short
from graft.compare.report.labels import spread
from graft.compare.report.summary import Row, Summary

DASHES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (2, 1.6)), (0, (6, 2, 1.5, 2)), (0, (1, 1.2)))
Line = tuple[Row, list[float], list[float]]


def learning(summary: Summary) -> Plot | None:
    """Plan the learning curves, a line a method, the mean over its seeds; None if nothing was measured along the way."""
    key = "validation_loss" if any(point.get("validation_loss") is not None for row in summary.tuned for run in row.runs
                                   for point in run.curve) else "train_loss"  # fmt: skip
    lines = [(row, *line) for row in summary.tuned if (line := curve(row, key))]
    if not lines:
        return None
    name = key.replace("_", " ").replace("train ", "training ")
    last = min(lines, key=lambda line: line[2][-1])
    label = f"Line plot: {name} against tokens seen, {wording.plural(len(lines), 'method')}. "
    label += f"{last[0].entry.title} ends lowest at {last[2][-1]:.3g}."
    caption = f"{name.capitalize()} as training sees more tokens; lower is better. Each line is the mean over its seeds."
    title = "How they learned"
    return Plot("learning-curves", title, caption, label, lambda canvas: draw_curves(canvas, lines, name, title), (430, 420))


def curve(row: Row, key: str) -> tuple[list[float], list[float]] | None:
    """Return (tokens, mean loss) over a row's seeds, on the points of its first seed; None with fewer than two points."""
    found = []
    for run in row.runs:
        points = [(float(p["tokens"]), float(p[key])) for p in run.curve if p.get(key) is not None and p.get("tokens") is not None]
        if len(points) > 1:
            found.append(sorted(points))
    if not found:
        return None
    tokens = [x for x, _ in found[0]]
    values = np.mean([np.interp(tokens, [x for x, _ in points], [y for _, y in points]) for points in found], axis=0)
    return tokens, [float(value) for value in values]


def draw_curves(canvas: Canvas, lines: Sequence[Line], name: str, title: str) -> Any:
    """Draw loss against tokens, colours by family and dashes within it, names at the lines' ends."""
    figure, axes = blank(canvas)
    ticker = matplotlib().ticker
    used: dict[str, int] = {}
    axes.set_yscale("log")
    for row, tokens, values in lines:
        key = row.entry.family.key
        dash = DASHES[used.get(key, 0) % len(DASHES)]
        used[key] = used.get(key, 0) + 1
        axes.plot(tokens, values, color=canvas.theme.families[key], linestyle=dash, solid_capstyle="round")
    axes.set_xlim(0, max(tokens[-1] for _, tokens, _ in lines))
    axes.yaxis.set_major_locator(ticker.LogLocator(base=10, subs=(1, 1.5, 2, 3, 4, 5, 7), numticks=30))
    axes.yaxis.set_minor_locator(ticker.NullLocator())
    axes.yaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:.2g}"))
    axes.xaxis.set_major_locator(ticker.MaxNLocator(3 if canvas.narrow else 5))
    axes.xaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _: wording.short_count(value)))
    names = 122 / canvas.width
    finish(canvas, figure, axes, f"{name} (log scale)", "tokens seen in training", title, 1 - names)
    end_labels(canvas, figure, axes, lines)
    return figure


def end_labels(canvas: Canvas, figure: Any, axes: Any, lines: Sequence[Line]) -> None:
    """Name each line in a column at the right, moved apart, a thin line from each name to its line's end."""
    ends = axes.transData.transform([(tokens[-1], values[-1]) for _, tokens, values in lines])
    area = axes.get_window_extent()
    heights = spread([float(y) for _, y in ends], 14.5, area.y0 - 30, area.y1 + 4)
    for (row, *_), (x, y), height in zip(lines, ends, heights, strict=True):
        line = matplotlib().lines.Line2D([x + 2, area.x1 + 8, area.x1 + 14], [y, height, height], transform=None, linewidth=0.8,
                                         color=canvas.theme.families[row.entry.family.key], alpha=0.8)  # fmt: skip
        figure.add_artist(line)
        figure.text((area.x1 + 17) / canvas.width, height / canvas.height, short(row.entry.title), color=canvas.theme.ink, ha="left",
                    va="center", fontsize=FONT - 0.5, parse_math=False)  # fmt: skip


def rates(summary: Summary) -> Plot | None:
    """Plan the learning-rate search: a small panel a method; None if there were no trials."""
    kind = (
        "validation_score" if all(run.validation_score is not None for run in summary.trials if run.status == "done") else "validation_loss"
    )
    panels = [(row, trials) for row in summary.tuned if len(trials := trials_of(summary, row)) > 1]
    if not panels or not any(measured(run, kind) for _, trials in panels for run in trials):
        return None
    title = "The search for a learning rate"
    label = f"Small plots: {kind.replace('_', ' ')} against learning rate, {wording.plural(len(panels), 'method')}, the chosen rate marked."
    caption = (
        "Each method was tried with the same number of learning rates around its own default. The ringed one was chosen and used for the "
        "final runs; a cross is a trial that failed."
    )

    def height(columns: int, each: int) -> int:
        return 70 + each * ceil(len(panels) / columns)

    return Plot("learning-rates", title, caption, label, lambda canvas: draw_rates(canvas, summary, panels, kind, title),
                (height(4, 112), height(2, 104)))  # fmt: skip


def trials_of(summary: Summary, row: Row) -> list[Run]:
    """Return a method's trials by rising learning rate."""
    found = [run for run in summary.trials if run.method == row.method and run.learning_rate]
    return sorted(found, key=lambda run: run.learning_rate or 0)


def measured(run: Run, kind: str) -> bool:
    """Say whether a trial has a validation result."""
    return run.status == "done" and getattr(run, kind) is not None


def draw_rates(canvas: Canvas, summary: Summary, panels: Sequence[tuple[Row, list[Run]]], kind: str, title: str) -> Any:
    """Draw one panel a method on common axes."""
    columns = 2 if canvas.narrow else 4
    lines = ceil(len(panels) / columns)
    figure, axes = blank(canvas, nrows=lines, ncols=columns, sharex=True, sharey=True, squeeze=False)
    metric = summary.metric if kind == "validation_score" else "loss"
    for place, (row, trials) in zip(axes.ravel(), panels, strict=False):
        panel(canvas, place, row, trials, kind, metric)
    for place in axes.ravel()[len(panels) :]:
        place.set_visible(False)
    scale(axes, panels, kind, metric)
    for number in range(len(panels)):  # the lowest panel of a column carries the axis, also above an empty place
        if number + columns >= len(panels):
            axes.ravel()[number].tick_params(axis="x", labelbottom=True)
    upper = f"{kind.replace('_', ' ')}{', %' if wording.is_share(metric) else ''}"
    finish(canvas, figure, axes.ravel()[0], upper, "", title)
    figure.subplots_adjust(hspace=0.42, wspace=0.12, bottom=46 / canvas.height, top=1 - (86 if canvas.titled else 50) / canvas.height)
    figure.text(
        0.5, 8 / canvas.height, "learning rate (log scale)", color=canvas.theme.muted, ha="center", va="bottom", fontsize=FONT - 0.5
    )
    return figure


def scale(axes: Any, panels: Sequence[tuple[Row, list[Run]]], kind: str, metric: str) -> None:
    """Set the common scales: all learning rates, all results, a little room for the labels."""
    ticker = matplotlib().ticker
    every = [run for _, trials in panels for run in trials]
    found = [run.learning_rate or 1 for run in every]
    values = [wording.shown(metric, getattr(run, kind)) for run in every if measured(run, kind)]
    room = (max(values) - min(values) or 1) * 0.3
    first = axes.ravel()[0]
    first.set_xscale("log")
    first.set_xlim(min(found) / 2.5, max(found) * 2.5)
    first.set_ylim(min(values) - room, max(values) + room)
    first.xaxis.set_major_locator(ticker.LogLocator(base=10, numticks=4))
    first.xaxis.set_minor_locator(ticker.NullLocator())
    first.yaxis.set_major_locator(ticker.MaxNLocator(3))
    first.xaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _: wording.rate(value)))
    first.yaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:g}"))


def panel(canvas: Canvas, axes: Any, row: Row, trials: Sequence[Run], kind: str, metric: str) -> None:
    """Draw one method's trials, the chosen learning rate ringed and named."""
    theme, family = canvas.theme, row.entry.family
    colour = theme.families[family.key]
    good = [(run.learning_rate or 1, wording.shown(metric, getattr(run, kind))) for run in trials if measured(run, kind)]
    axes.set_title(short(row.entry.title), loc="left", fontsize=FONT - 0.5, color=theme.ink, pad=4, parse_math=False)
    axes.plot([x for x, _ in good], [y for _, y in good], family.marker, linestyle="-", color=colour, linewidth=1.3, markersize=5)
    for run in trials:
        if not measured(run, kind):
            axes.plot([run.learning_rate or 1], [0.08], "x", transform=axes.get_xaxis_transform(), color=theme.muted, markersize=6,
                      markeredgewidth=1.5)  # fmt: skip
    for x, y in good:
        if row.learning_rate is not None and abs(x - row.learning_rate) <= 1e-6 * x:
            axes.plot([x], [y], "o", markersize=12, markerfacecolor="none", markeredgecolor=theme.ink, markeredgewidth=1.3)
            axes.annotate(wording.rate(x), (x, y), xytext=(0, 10), textcoords="offset points", ha="center", va="bottom", color=theme.ink,
                          fontsize=FONT - 2, parse_math=False)  # fmt: skip
