"""Requests sent at once, and what came of them: tokens a second, time to the first token, time between tokens."""

import itertools
import statistics
import threading
import time
from collections.abc import Sequence
from typing import Any

import torch

from graft.serve import Engine, Sampling


class Watch:
    """A request's sink: when each token came."""

    def __init__(self) -> None:
        self.times: list[float] = []
        self.error: Exception | None = None
        self.done = threading.Event()

    def put(self, event: Any) -> None:
        """Note the time."""
        if event.id >= 0:
            self.times.append(time.perf_counter())
        self.error = self.error or event.error
        if event.reason or event.error is not None:
            self.done.set()


def prompts(requests: int, length: int, vocabulary: int, seed: int) -> list[list[int]]:
    """Random ids, none of them shared: [requests][length]."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, vocabulary, (requests, length), generator=generator).tolist()


def send(engine: Engine, names: Sequence[str | None], texts: list[list[int]], new: int) -> dict[str, Any]:
    """Send all at once and wait. Raises what a request failed with."""
    began = time.perf_counter()
    watches = [Watch() for _ in texts]
    for text, name, watch in zip(texts, itertools.cycle(names), watches, strict=False):
        engine.submit(text, name, Sampling(max_tokens=new), events=watch)
    for watch in watches:
        watch.done.wait(600)
        if watch.error is not None:
            raise watch.error
    ended = max(watch.times[-1] for watch in watches)
    counted = sum(len(watch.times) for watch in watches)
    gaps = [1000 * (b - a) for watch in watches for a, b in itertools.pairwise(watch.times)]
    return {
        "tokens_a_second": counted / (ended - began),
        "first_token_ms": quantiles([1000 * (watch.times[0] - began) for watch in watches]),
        "token_ms": quantiles(gaps),
    }


def settle(engine: Engine, seconds: float) -> bool:
    """Wait until every CUDA graph is recorded, as it is while nothing runs; whether it was in time."""
    until = time.monotonic() + seconds
    while engine.batching.missing and time.monotonic() < until:
        time.sleep(0.05)
    return not engine.batching.missing


def quantiles(values: Sequence[float]) -> dict[str, float]:
    """The median, and what 95 of 100 stay below."""
    if len(values) < 2:
        return {"p50": values[0], "p95": values[0]} if values else {}
    cuts = statistics.quantiles(values, n=20, method="inclusive")
    return {"p50": round(cuts[9], 3), "p95": round(cuts[18], 3)}
