"""Paired bootstrap over test items: intervals, differences, and which methods cannot be told apart.

Every method is scored on the same N test items by each of its S seeds: a matrix [S, N] (a vector [N] is one seed). One
resample draws N items with replacement, the same for every method (that is what "paired" means: an item that is hard is hard
for all), and S seeds with replacement, for each method its own. The mean over both is one draw. From many draws:

    interval      the 2.5 % and 97.5 % percentiles of one method's draws
    difference    the same of draws(a) - draws(b)
    tie           the difference's interval contains 0

With few seeds the seeds' part of the spread is underestimated by a factor (S - 1) / S, and with one seed it is not seen at all:
intervals then speak of the test items only. Efron and Tibshirani, An Introduction to the Bootstrap, 1993;
Koehn, Statistical significance tests for machine translation evaluation, EMNLP 2004, https://aclanthology.org/W04-3250/.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from graft.errors import DataError

Floats = NDArray[np.float64]
SAMPLES = 10_000
LEVEL = 0.95
CHUNK = 4_000_000  # cells of one block of resampling counts: about 32 MB


def matrix(scores: ArrayLike) -> Floats:
    """Return scores [N] or [S, N] as float64 [S, N]; raises DataError if there are none or one is not finite."""
    values = np.atleast_2d(np.asarray(scores, dtype=np.float64))
    if values.ndim != 2 or values.size == 0 or not np.isfinite(values).all():
        raise DataError("Scores for a bootstrap must be finite numbers, one row a seed and one column a test item.")
    return values


def draws(scores: Sequence[ArrayLike], *, samples: int = SAMPLES, seed: int = 0) -> Floats:
    """Resample M methods' scores, each [S, N] or [N] with one common N: mean score of each draw, [M, samples].

    Raises DataError when the methods were not scored on the same number of items.
    """
    values = [matrix(each) for each in scores]
    items = {each.shape[1] for each in values}
    if len(items) != 1:
        raise DataError(f"A paired bootstrap needs the same test items for every method, but they have {sorted(items)} items.")
    rng = np.random.default_rng(seed)
    by_seed = resample_items(np.concatenate(values), samples, rng)
    out = np.empty((len(values), samples))
    start = 0
    for row, each in enumerate(values):
        count = len(each)
        weights = rng.multinomial(count, np.full(count, 1 / count), size=samples) / count
        out[row] = (by_seed[start : start + count] * weights.T).sum(0)
        start += count
    return out


def resample_items(values: Floats, samples: int, rng: np.random.Generator) -> Floats:
    """Return the mean of every row of `values` [R, N] over each of `samples` draws of N items, the same draws for all rows."""
    items = values.shape[1]
    step = max(1, CHUNK // items)
    parts = []
    for start in range(0, samples, step):
        rows = min(step, samples - start)
        picked = rng.integers(0, items, size=(rows, items)) + np.arange(rows)[:, None] * items
        counts = np.bincount(picked.ravel(), minlength=rows * items).reshape(rows, items)
        parts.append(values @ counts.T / items)
    return np.concatenate(parts, axis=1)


def bounds(sample: Floats) -> tuple[float, float]:
    """Return the 95 % percentile interval of draws [samples]."""
    low, high = np.quantile(sample, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def interval(scores: ArrayLike, *, samples: int = SAMPLES, seed: int = 0) -> tuple[float, float]:
    """Return the 95 % interval (low, high) of the mean of scores [N] or [S, N], in the scores' own unit."""
    return bounds(draws([scores], samples=samples, seed=seed)[0])


def paired_bootstrap(a: ArrayLike, b: ArrayLike, *, samples: int = SAMPLES, seed: int = 0) -> tuple[float, float, float]:
    """Return (mean difference a - b, low, high): the 95 % interval over the same N items, for scores [N] or [S, N].

    Raises DataError when a and b differ in their number of items.
    """
    first, second = draws([a, b], samples=samples, seed=seed)
    return float(matrix(a).mean() - matrix(b).mean()), *bounds(first - second)


def tied(first: Floats, second: Floats) -> bool:
    """Say whether two methods, given their paired draws [samples], cannot be told apart."""
    low, high = bounds(first - second)
    return low <= 0 <= high


def tie_groups(ranked: Mapping[str, Floats]) -> list[tuple[str, ...]]:
    """Group methods, given best first with their paired draws [samples].

    A group is its best method and all that tie with that one; the next group starts at the best of the rest. So every method of
    the first group ties with the best of all, and no method outside it does.
    """
    left = list(ranked)
    groups = []
    while left:
        group = tuple(name for name in left if name == left[0] or tied(ranked[left[0]], ranked[name]))
        groups.append(group)
        left = [name for name in left if name not in group]
    return groups
