"""How far training curves lie apart: smoothed over a window, relative to the reference, at worst, on average, and at the end."""

from collections.abc import Mapping, Sequence
from typing import Any

WINDOW = 20
REFERENCE = "reference"
WAYS = (REFERENCE, "fast", "accumulated", "float32")
CONTROLS = WAYS[2:]


def smoothed(losses: Sequence[float], window: int = WINDOW) -> list[float]:
    """The mean of each `window` losses in a row (fewer, if there are not as many)."""
    size = min(window, max(1, len(losses) // 2))
    return [sum(losses[end - size : end]) / size for end in range(size, len(losses) + 1)]


def apart(one: Mapping[str, Any], reference: Mapping[str, Any]) -> tuple[float, float, float]:
    """Largest and mean relative difference of the smoothed training losses, and that of the last validation losses."""
    pairs = list(zip(smoothed(one["losses"]), smoothed(reference["losses"]), strict=True))
    differences = [abs(a - b) / b for a, b in pairs]
    end = abs(one["validation_loss"] - reference["validation_loss"]) / reference["validation_loss"]
    return max(differences), sum(differences) / len(differences), end


def table(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """One line a method: the fast way and the controls against the reference, and whether the fast way is as near as they are.

    It is where its mean difference is at most the larger of theirs.
    """
    curves = {(record["method"], record["way"]): record for record in records}
    lines = ["| method | validation loss | fast | accumulated | float32 | as near as the controls |", "|---|---:|---:|---:|---:|---|"]
    for method in dict.fromkeys(record["method"] for record in records):
        reference = curves.get((method, REFERENCE))
        if reference is None:
            continue
        found = {way: apart(curves[method, way], reference) for way in WAYS[1:] if (method, way) in curves}
        said = [" / ".join(f"{value:.2%}" for value in found[way]) if way in found else "–" for way in WAYS[1:]]
        controls = [found[way][1] for way in CONTROLS if way in found]
        verdict = "–" if "fast" not in found or not controls else "yes" if found["fast"][1] <= max(controls) else "**no**"
        lines.append(f"| {method} | {reference['validation_loss']:.4f} | {' | '.join(said)} | {verdict} |")
    return lines
