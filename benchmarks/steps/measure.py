"""One point on the device that this process sees: the time of each step, the peak of each step, the first step apart.

A step is forward, loss and backward on fresh random ids; the gradients are dropped after it. Steps are timed one at a time, with device
events on a card, so that what the host needs to start a step counts as it does in training, where the loss is read after each.
"""

import statistics
import time
from typing import Any

import torch

from graft.model.supervised import IGNORED, token_losses
from steps.points import Point
from steps.rows import SHAPES, Row, bits, prepared

WARM = 3
LEAST, MOST, SECONDS = 8, 40, 2.0  # timed steps: at least so many, then until so much time was measured


def device() -> torch.device:
    """The card, or the CPU where there is none."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def batch_of(point: Point, where: torch.device, generator: torch.Generator) -> dict[str, torch.Tensor]:
    """Random ids, and labels for the supervised end of each row."""
    ids = torch.randint(SHAPES[point.shape].get("vocab_size", 32000), (point.batch, point.tokens), generator=generator, device=where)
    labels = ids.clone()
    labels[:, : round(point.tokens * (1 - point.supervised))] = IGNORED
    return {"input_ids": ids, "labels": labels}


def step(row: Row, point: Point, batch: dict[str, torch.Tensor]) -> None:
    """Forward, loss, backward."""
    if point.loss == "chunked":
        token_losses(row.runs, batch)[0].mean().backward()
    else:
        row.runs(**batch, use_cache=False).loss.backward()


class Clock:
    """Milliseconds of what runs inside the block, and the peak of memory in it (bytes of tensors; 0 on a CPU)."""

    def __init__(self, where: torch.device) -> None:
        self.cuda = where.type == "cuda"
        self.ms, self.peak = 0.0, 0

    def __enter__(self) -> "Clock":
        if self.cuda:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            self.marks = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
            self.marks[0].record()
        self.started = time.perf_counter()
        return self

    def __exit__(self, *raised: object) -> None:
        if self.cuda:
            self.marks[1].record()
            torch.cuda.synchronize()
            self.ms, self.peak = self.marks[0].elapsed_time(self.marks[1]), torch.cuda.max_memory_allocated()
        else:
            self.ms = 1000 * (time.perf_counter() - self.started)


def measure(point: Point, profiles: bool) -> dict[str, Any]:
    """What a line of results says of a point."""
    started, where = time.perf_counter(), device()
    row = prepared(point, where)
    setup = time.perf_counter() - started
    generator = torch.Generator(where).manual_seed(1)
    clocks: list[Clock] = []
    while len(clocks) < WARM + LEAST or (sum(one.ms for one in clocks[WARM:]) < 1000 * SECONDS and len(clocks) < WARM + MOST):
        batch = batch_of(point, where, generator)
        with Clock(where) as clock:
            step(row, point, batch)
        clocks.append(clock)
        for value in row.trained:
            value.grad = None
    times, peaks = [one.ms for one in clocks[WARM:]], [one.peak for one in clocks[WARM:]]
    return {
        "ms": statistics.median(times),
        "all_ms": times,
        "peak_bytes": max(peaks),
        "peak_after_4": peaks[3],
        "peak_last": peaks[-1],
        "setup_s": setup,
        "cold_s": clocks[0].ms / 1000,
        "trained": sum(value.numel() for value in row.trained),
        "graphs": torch._dynamo.utils.counters["stats"]["unique_graphs"],
        "bits": bits(row.model),
    } | (kernels(row, point, batch) if profiles else {})


def kernels(row: Row, point: Point, batch: dict[str, torch.Tensor]) -> dict[str, Any]:
    """Where the time of one step goes: milliseconds and calls of each kernel (on a CPU: operator), the longest first, and their sum."""
    cuda = batch["input_ids"].is_cuda
    kinds = torch.profiler.ProfilerActivity
    with torch.profiler.profile(activities=[kinds.CUDA if cuda else kinds.CPU]) as profile:
        step(row, point, batch)
        torch.cuda.synchronize() if cuda else None
    for value in row.trained:
        value.grad = None
    spent = "self_device_time_total" if cuda else "self_cpu_time_total"
    found = sorted(((getattr(e, spent) / 1000, e.count, e.key[:120]) for e in profile.key_averages()), reverse=True)
    return {"kernels": [entry for entry in found[:60] if entry[0] > 0], "kernels_ms": sum(entry[0] for entry in found)}
