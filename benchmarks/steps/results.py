"""What the lines of a file of results say of each point: its time and its peak, divided by the limit of the same card and session."""

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from steps.points import Point

Line = dict[str, Any]
GIB = 2**30


@dataclass(frozen=True)
class Measured:
    """Medians over the repetitions of a point. `ratio` and `memory` are to the limit; None where it was not measured or has no meaning.

    `low` and `high` bound the ratios: all repetitions on a card, the quartiles of all rounds on a CPU. `failed` says why nothing is known.
    """

    ms: float = 0.0
    ratio: float | None = None
    low: float | None = None
    high: float | None = None
    peak: int = 0
    memory: float | None = None
    lines: tuple[Line, ...] = ()
    failed: str = ""


def measured(lines: Sequence[Line]) -> dict[Point, Measured]:
    """Every point of these lines, repetitions together, but for those with empty caches, whose first step alone is of interest.

    Raises ValueError if they are of unlike cards, which must not share a table.
    """
    lines = [line for line in lines if not line.get("cold")]
    devices = {line["device"] for line in lines if "device" in line}
    if len(devices) > 1:
        raise ValueError(f"results of unlike devices in one folder: {', '.join(sorted(devices))}")
    limits = {(line["session"], line["card"], Point(**line["point"])): line for line in lines if "failed" not in line}
    groups: dict[Point, list[Line]] = {}
    for line in lines:
        groups.setdefault(replace(Point(**line["point"]), repeat=0), []).append(line)
    return {point: together(found, limits) for point, found in groups.items()}


def together(lines: Sequence[Line], limits: dict[tuple[str, str, Point], Line]) -> Measured:
    """One point's lines."""
    good = [line for line in lines if "failed" not in line]
    if not good:
        return Measured(failed=str(lines[-1]["failed"]))
    ratios, memories = [], []
    for line in good:
        limit = limits.get((line["session"], line["card"], Point(**line["point"]).anchor))
        if "cpu_ratio" in line:
            ratios += line["cpu_ratio"]
        elif limit:
            ratios.append(line["ms"] / limit["ms"])
            memories += [line["peak_bytes"] / limit["peak_bytes"]] if limit.get("peak_bytes") else []
    return Measured(
        ms=statistics.median(line["ms"] for line in good),
        ratio=middle(ratios),
        low=min(ratios, default=None),
        high=max(ratios, default=None),
        peak=max(line.get("peak_bytes", 0) for line in good),
        memory=middle(memories),
        lines=tuple(good),
    )


def middle(values: Sequence[float]) -> float | None:
    """The median, if there is any value."""
    return statistics.median(values) if values else None


def machine(lines: Iterable[Line]) -> str:
    """The card, the versions and the days of these lines, in a sentence."""
    found = [line for line in lines if "device" in line]
    if not found:
        return "Not measured yet."
    cards = sorted({line["device"] for line in found})
    versions: dict[str, set[str]] = {}
    for line in found:
        for name, value in line["versions"].items():
            versions.setdefault(name, set()).add(value)
    said = [f"{name} {' and '.join(sorted(values))}" for name, values in versions.items() if values != {""}]
    days = sorted({line["date"][:10] for line in found})
    return f"{', '.join(cards)}; {', '.join(said)}; measured {' and '.join(days[:1] + days[1:][-1:])}."
