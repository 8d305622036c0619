"""Numbers in words: how a report prints scores, counts, bytes and times. None is an em dash everywhere.

Scores of metrics that are shares (accuracy, exact match, ROUGE) are stored in 0..1 and printed as per cent; BLEU and chrF are
stored in 0..100 and printed as they are; losses get three decimals.
"""

from collections.abc import Iterable

DASH = "—"
MINUS = "−"
NBSP = "\u00a0"
SHARES = ("exact_match", "accuracy", "answer", "rouge", "f1", "match")
NAMES = {
    "exact_match": "exact match", "accuracy": "accuracy", "final_answer": "final answer right",
    "rouge1": "ROUGE-1", "rouge2": "ROUGE-2", "rougeL": "ROUGE-L", "bleu": "BLEU", "chrf": "chrF", "loss": "loss",
}  # fmt: skip


def is_share(metric: str) -> bool:
    """Say whether a metric's scores lie in 0..1 and are printed as per cent."""
    return any(part in metric.lower() for part in SHARES)


def lower_is_better(metric: str) -> bool:
    """Say whether small scores are the good ones."""
    return "loss" in metric.lower() or "perplexity" in metric.lower()


def metric_name(metric: str) -> str:
    """Name a metric as in running text."""
    return NAMES.get(metric, metric.replace("_", " "))


def shown(metric: str, score: float) -> float:
    """Return the number that is printed for a score: per cent for shares, the score itself otherwise."""
    return 100 * score if is_share(metric) else score


def places(metric: str) -> int:
    """Return how many decimals a printed score has."""
    return 1 if is_share(metric) or metric.lower() in ("bleu", "chrf") else 3


def score(metric: str, value: float | None) -> str:
    """Print a score: "72.4%", "31.2" (BLEU), "1.234" (loss)."""
    if value is None:
        return DASH
    return f"{shown(metric, value):.{places(metric)}f}{'%' if is_share(metric) else ''}".replace("-", MINUS)


def span(metric: str, low: float | None, high: float | None) -> str:
    """Print an interval in a score's unit, the unit left out: "69.8 to 74.1"."""
    if low is None or high is None:
        return DASH
    ends = (f"{shown(metric, end):.{places(metric)}f}".replace("-", MINUS) for end in (low, high))
    return " to ".join(ends).replace(" ", NBSP)


def signed(metric: str, value: float | None) -> str:
    """Print a difference of two scores with its sign: "+1.2", "−0.8" (percentage points for shares)."""
    if value is None:
        return DASH
    number = round(shown(metric, value), places(metric)) + 0.0
    return f"{number:+.{places(metric)}f}".replace("-", MINUS) if number else f"{0:.{places(metric)}f}"


def points(metric: str) -> str:
    """Return the unit of a difference: " points" for shares, nothing otherwise."""
    return " points" if is_share(metric) else ""


def count(value: float | None) -> str:
    """Print a whole number with thousands separators."""
    return DASH if value is None else f"{round(value):,}"


def short_count(value: float) -> str:
    """Print a count with three figures at most: "950", "12.3k", "1.2M", "134M"."""
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:g}"


def percent(part: float | None, whole: float | None) -> str:
    """Print a share of the base in per cent with two figures that count: "0.66%", "0.0082%"."""
    if part is None or not whole:
        return DASH
    value = 100 * part / whole
    return f"{value:.2g}%" if 1e-4 <= value < 10 or value == 0 else f"{value:.0f}%" if value >= 10 else f"{value:.0e}%"


def size(value: float | None) -> str:
    """Print bytes in decimal units: "812 B", "3.5 MB", "1.92 GB"."""
    if value is None:
        return DASH
    for unit, power, digits in (("GB", 1e9, 2), ("MB", 1e6, 1), ("kB", 1e3, 1)):
        if value >= power:
            return f"{value / power:.{digits}f}{NBSP}{unit}"
    return f"{value:.0f}{NBSP}B"


def figures(value: float | None, unit: str = "") -> str:
    """Print a measured number with three figures and its unit: "0.413 s", "41.2 ms", "512"."""
    if value is None:
        return DASH
    text = f"{value:,.0f}" if abs(value) >= 100 else f"{value:.{3 if abs(value) < 1 else 2 if abs(value) < 10 else 1}f}"
    return f"{text}{NBSP}{unit}" if unit else text


def rate(value: float | None) -> str:
    """Print a learning rate as one types it: "3e-4", "1.5e-3"."""
    if value is None:
        return DASH
    mantissa, exponent = f"{value:.1e}".split("e")
    return f"{mantissa.removesuffix('.0')}e{int(exponent)}"


def times(ratio: float) -> str:
    """Print how many times smaller something is: "1.8", "18", "1,200"."""
    return f"{ratio:.1f}" if ratio < 10 else f"{round(ratio, -2 if ratio >= 1000 else 0):,.0f}"


def listed(names: Iterable[str]) -> str:
    """Join names as in a sentence: "a", "a and b", "a, b and c"."""
    *front, last = list(names) or [DASH]
    return f"{', '.join(front)} and {last}" if front else last


def plural(number: int, noun: str) -> str:
    """Print a count with its noun: "1 seed", "3 seeds"."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
