"""How far training curves lie apart: the mean relative difference of two training losses, each smoothed over a window.

Curves that differ by rounding alone drift apart, as far as they please. So what counts is not how far the fast way is from the
reference but whether it is farther from the other ways than they are from each other: if it computes the same, it is one of them, and

    ratio = mean distance of the fast way from the others / mean distance of the others among themselves

lies about 1. The tolerance: at most `EACH` for a method, and `ALL` on average over the methods.
"""

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

WINDOW = 20
REFERENCE, FAST = "reference", "fast"
WAYS = (REFERENCE, FAST, "accumulated", "float32")
EACH, ALL = 2.0, 1.2


def smoothed(losses: Sequence[float], window: int = WINDOW) -> list[float]:
    """The mean of each `window` losses in a row (fewer, if there are not as many)."""
    size = min(window, max(1, len(losses) // 2))
    return [sum(losses[end - size : end]) / size for end in range(size, len(losses) + 1)]


def apart(one: Sequence[float], other: Sequence[float]) -> float:
    """The mean difference of two curves of losses, relative to their mean."""
    pairs = list(zip(smoothed(one), smoothed(other), strict=True))
    return sum(2 * abs(a - b) / (a + b) for a, b in pairs) / len(pairs)


def distances(curves: Mapping[str, Sequence[float]]) -> tuple[float, float]:
    """The mean distance of the fast way from the others, and that of the others among themselves."""
    found: dict[bool, list[float]] = {True: [], False: []}
    for one, other in combinations(curves, 2):
        found[FAST in (one, other)].append(apart(curves[one], curves[other]))
    return sum(found[True]) / len(found[True]), sum(found[False]) / len(found[False])


def table(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """A line a method that has all ways, with the validation loss of each, and a last line for all methods."""
    methods: dict[str, dict[str, Mapping[str, Any]]] = {}
    for record in records:
        methods.setdefault(record["method"], {})[record["way"]] = record
    heads = ["method", *(f"validation loss, {way}" for way in WAYS), "fast from the others", "the others among themselves", "ratio"]
    lines, ratios = [f"| {' | '.join(heads)} |", "| --- |" + " ---: |" * (len(heads) - 1)], []
    for method, ways in methods.items():
        ends = [f"{ways[way]['validation_loss']:.4f}" if way in ways else "–" for way in WAYS]
        said = ["–"] * 3
        if set(ways) == set(WAYS):
            ours, others = distances({way: ways[way]["losses"] for way in WAYS})
            ratios.append(ours / others)
            said = [f"{ours:.1%}", f"{others:.1%}", marked(ours / others, EACH)]
        lines.append(f"| {method} | {' | '.join([*ends, *said])} |")
    if ratios:
        lines.append("| all |" + " – |" * 6 + f" {marked(sum(ratios) / len(ratios), ALL)} |")
    return lines


def marked(ratio: float, most: float) -> str:
    """A ratio, loud where it is beyond the tolerance."""
    return f"{ratio:.2f}" if ratio <= most else f"**{ratio:.2f}**"
