"""Rows on a CPU, each beside the limit: a step of the one, then a step of the other, so that what else the machine does meets both alike.

Each pair gives one ratio; what counts is their median and how far the quartiles lie apart. Time is taken twice: as the process's own (a
busy machine stretches it least) and as it passes. A row has a process of its own: what models before it left of the heap moves a ratio by a
tenth.
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


def measure(point: Point, rounds: int, profiles: bool) -> dict[str, Any]:
    """What a line of results says of a point; of the limit itself, its steps beside its own."""
    torch.set_num_threads(point.threads)
    where, anchor = torch.device("cpu"), point.anchor
    limit = prepared(anchor, where)
    row = limit if point == anchor else prepared(point, where)
    generator = torch.Generator().manual_seed(1)
    pairs = []
    for number in range(WARM + rounds):
        batch = batch_of(point, where, generator)
        pair = timed(limit, anchor, batch), timed(row, point, batch)
        pairs += [pair] if number >= WARM else []
    own, passed = ([[spent[kind] for spent in side] for side in zip(*pairs, strict=True)] for kind in (0, 1))
    return {
        "ms": statistics.median(passed[1]), "all_ms": passed[1], "cpu_ms": statistics.median(own[1]), "all_cpu_ms": own[1],
        "ratio": spread(passed[1], passed[0]), "cpu_ratio": spread(own[1], own[0]),
        "trained": sum(value.numel() for value in row.trained),
    } | (kernels(row, point, batch) if profiles else {})  # fmt: skip


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
