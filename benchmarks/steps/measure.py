"""One point on the device that this process sees: the time of each step, the peak of each step, the first step apart.

A step is forward, loss and backward on fresh random ids; the gradients are dropped after it. Steps are timed one at a time, with device
events on a card, so that what the host needs to start a step counts as it does in training, where the loss is read after each. Where
training records steps as CUDA graphs by itself, they are recorded here (graft.model.recorded), and so are those that are to be in any
case; one that would be, had the others on its card left room, has failed and comes again alone. The peak is that of all steps but the
first, as they come and played. A large step takes a card to its power limit, where the clock falls with what else draws power: clock and
watts are noted beside the time.
"""

import shutil
import statistics
import subprocess
import time
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch

from graft.model.recorded import CROWDED, Recorder
from graft.model.supervised import IGNORED
from graft.train.gradient import gradient, inputs_of
from steps.points import Point
from steps.rows import SHAPES, Row, bits, prepared
from steps.turns import Turns

FIRST, SETTLED = 3, 4  # steps: compiling and recording, then, with the card to itself, about as long as its clock takes to settle
LEAST, MOST, SECONDS = 8, 60, 4.0  # timed steps: at least so many, then until so much time was measured
PAUSE_MS = 50  # between two readings of the clock


def device() -> torch.device:
    """The card, or the CPU where there is none."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def batch_of(point: Point, where: torch.device, generator: torch.Generator) -> dict[str, torch.Tensor]:
    """What a step reads: random ids, and the supervised end of each row as its loss wants it."""
    ids = torch.randint(SHAPES[point.shape].get("vocab_size", 32000), (point.batch, point.tokens), generator=generator, device=where)
    labels = ids.clone()
    labels[:, : round(point.tokens * (1 - point.supervised))] = IGNORED
    if point.loss == "hf":
        return {"input_ids": ids, "labels": labels}
    weight = 1 / max(1, int((labels[:, 1:] != IGNORED).sum()))
    return inputs_of({"input_ids": ids, "labels": labels.cpu()}, weight, torch.bfloat16, padded=False)[0]


def step(row: Row, point: Point, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Forward, loss, backward."""
    if point.loss == "chunked":
        return gradient(row.runs, batch)
    loss = row.runs(**batch, use_cache=False).loss
    loss.backward()
    return loss.detach()


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


class Power:
    """The processors' clock (MHz) and the power drawn (W) while the block runs, medians; nothing without a card."""

    def __init__(self, where: torch.device) -> None:
        self.read: dict[str, float] = {}
        asked = ["--query-gpu=clocks.sm,power.draw", "--format=csv,noheader,nounits", f"--loop-ms={PAUSE_MS}"]
        card = torch.cuda.get_device_properties(where).uuid if where.type == "cuda" else None
        self.command = ["nvidia-smi", f"--id=GPU-{card}", *asked] if card and shutil.which("nvidia-smi") else []

    def __enter__(self) -> "Power":
        if self.command:
            self.meter = subprocess.Popen(self.command, stdout=subprocess.PIPE, text=True)
        return self

    def __exit__(self, *raised: object) -> None:
        if self.command:
            self.meter.terminate()
            lines = [line.split(",") for line in self.meter.communicate()[0].splitlines() if line.count(",") == 1]
            read = [[float(value) for value in line] for line in lines]
            self.read = {name: statistics.median(line[k] for line in read) for k, name in enumerate(("mhz", "watts")) if read}


def one(run: Recorder | None, row: Row, point: Point, where: torch.device, generator: torch.Generator) -> Clock:
    """One step on fresh ids, its gradients dropped (set to zero where recorded steps add to them)."""
    batch = batch_of(point, where, generator)
    with Clock(where) as clock:
        run(batch) if run else step(row, point, batch)
    if run:
        run.clear()
    for value in row.trained if run is None else ():
        value.grad = None
    return clock


def measure(point: Point, profiles: bool, turns: Turns, alone: bool) -> dict[str, Any]:
    """What a line of results says of a point, which is prepared beside others or `alone`, and timed alone."""
    turns.take() if alone else turns.prepare()
    started, where = time.perf_counter(), device()
    row = prepared(point, where)
    setup = time.perf_counter() - started
    generator = torch.Generator(where).manual_seed(1)
    records = row.recorded != "off" and where.type == "cuda"
    run = Recorder(partial(step, row, point), row.trained, how=row.recorded, strict=True) if records else None
    warm = [one(run, row, point, where, generator) for _ in range(FIRST)]
    if run and CROWDED in run.report.left and not alone:
        raise MemoryError("those beside it leave no room for a recording")
    turns.take()
    warm += [one(run, row, point, where, generator) for _ in range(SETTLED)]
    clocks: list[Clock] = []
    with Power(where) as power:
        while len(clocks) < LEAST or (sum(clock.ms for clock in clocks) < 1000 * SECONDS and len(clocks) < MOST):
            clocks.append(one(run, row, point, where, generator))
    times, peaks = [clock.ms for clock in clocks], [clock.peak for clock in (*warm[1:], *clocks)]
    return (
        {
            "ms": statistics.median(times),
            "all_ms": times,
            "peak_bytes": max(peaks),
            "peak_after_4": peaks[3],
            "peak_last": peaks[-1],
            "setup_s": setup,
            "cold_s": warm[0].ms / 1000,
            "recorded": run is not None and run.report.times > 0,
            "unrecorded": next(iter(run.report.left), "") if run else "",
            "held_bytes": torch.cuda.memory_reserved() if where.type == "cuda" else 0,
            "trained": sum(value.numel() for value in row.trained),
            "graphs": torch._dynamo.utils.counters["stats"]["unique_graphs"],
            "bits": bits(row.model),
        }
        | power.read
        | (kernels(row, point, batch_of(point, where, generator)) if profiles else {})
    )


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
