"""Rows on a CPU: all models in one process, one step of each in turn, so that what else the machine does meets all of them alike.

Each round gives one ratio to the limit of the same round; what counts is their median and how far the quartiles lie apart. Time is taken
twice: as the process's own (a busy machine stretches it least) and as it passes.
"""

import statistics
import time
from collections.abc import Sequence
from typing import Any

import torch

from steps.measure import batch_of, kernels, step
from steps.points import Point
from steps.rows import Row, prepared

WARM = 2


def measure(points: Sequence[Point], rounds: int, profiles: bool) -> list[dict[str, Any]]:
    """What a line of results says of each point; the first is the limit, and all have the same number of threads."""
    torch.set_num_threads(points[0].threads)
    where = torch.device("cpu")
    rows = [prepared(point, where) for point in points]
    generator = torch.Generator().manual_seed(1)
    own, passed = [[] for _ in points], [[] for _ in points]
    for number in range(WARM + rounds):
        batch = batch_of(points[0], where, generator)
        for place, (row, point) in enumerate(zip(rows, points, strict=True)):
            spent = timed(row, point, batch)
            if number >= WARM:
                own[place].append(spent[0])
                passed[place].append(spent[1])
    extra = [kernels(row, point, batch) if profiles else {} for row, point in zip(rows, points, strict=True)]
    return [
        {"ms": statistics.median(passed[k]), "all_ms": passed[k], "cpu_ms": statistics.median(own[k]), "all_cpu_ms": own[k],
         "ratio": spread(passed[k], passed[0]), "cpu_ratio": spread(own[k], own[0]),
         "trained": sum(value.numel() for value in rows[k].trained)} | extra[k]
        for k in range(len(points))
    ]  # fmt: skip


def timed(row: Row, point: Point, batch: dict[str, torch.Tensor]) -> tuple[float, float]:
    """Milliseconds of one step: the process's, and those that passed."""
    own, passed = time.process_time(), time.perf_counter()
    step(row, point, batch)
    spent = 1000 * (time.process_time() - own), 1000 * (time.perf_counter() - passed)
    for value in row.trained:
        value.grad = None
    return spent


def spread(times: Sequence[float], limits: Sequence[float]) -> list[float]:
    """Lower quartile, median and upper quartile of the ratios, round by round."""
    ratios = [time / limit for time, limit in zip(times, limits, strict=True)]
    return statistics.quantiles(ratios, n=4, method="inclusive") if len(ratios) > 1 else ratios * 3
