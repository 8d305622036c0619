"""Where a step goes: kernels by their share and the gaps between them (on a card), and the engine's thread by its functions."""

import sys
import threading
import time
from collections import Counter
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from graft.serve import Engine

WATCHED = 0.15  # seconds
TOP = 20


def functions(engine: Engine, seconds: float) -> dict[str, float]:
    """The share of samples, one a millisecond, in which the engine's thread was in each function."""
    thread: threading.Thread | None = getattr(getattr(engine.batching, "manager", None), "_generation_thread", None)
    found: Counter[str] = Counter()
    until = time.perf_counter() + seconds
    while thread is not None and time.perf_counter() < until:
        frame = sys._current_frames().get(thread.ident or 0)
        if frame is not None:
            found[f"{frame.f_globals.get('__name__')}.{frame.f_code.co_name}"] += 1
        time.sleep(0.001)
    return {name: round(count / found.total(), 3) for name, count in found.most_common(TOP)}


def kernels(seconds: float) -> dict[str, Any]:
    """Of the device's time: how much of it something ran, and each kernel's share and number."""
    with profile(activities=[ProfilerActivity.CUDA]) as run:
        time.sleep(seconds)
    ran = [event for event in run.events() or () if event.device_type == DeviceType.CUDA]  # the others are the host's calls
    spans = sorted((event.time_range.start, event.time_range.end, event.name) for event in ran if event.time_range.end)
    if not spans:
        return {}
    busy = last = 0.0
    shares: dict[str, list[float]] = {}
    for start, end, name in spans:
        busy += max(0.0, end - max(start, last))
        last = max(last, end)
        own = shares.setdefault(name[:80], [0.0, 0])
        own[0], own[1] = own[0] + end - start, own[1] + 1
    whole = last - spans[0][0]
    largest = sorted(shares.items(), key=lambda item: -item[1][0])[:TOP]
    return {"milliseconds": whole / 1e3, "busy": busy / whole, "kernels": {name: [round(t / whole, 4), n] for name, (t, n) in largest}}


def watched(engine: Engine, seconds: float = WATCHED) -> dict[str, Any]:
    """Both, one after the other, while requests run."""
    return {"host": functions(engine, seconds)} | ({"device": kernels(seconds)} if torch.cuda.is_available() else {})
