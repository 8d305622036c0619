"""Serving: throughput and latency by the adapters in the batch, beside the bare base on the same engine, transformers and HF PEFT.

    python benchmarks/serve.py --output results.jsonl [--shape 7b] [--requests 32 64] [--resident 0 1 8 32 128] [--budget 540] [--profile]
    python benchmarks/serve.py --output results.jsonl --peers transformers transformers-graphs peft --resident

All requests come at once, each of `length` random tokens, answered with `new` tokens greedily; every weight is random. Adapters are of
eight methods, ranks 8, 16 and 64 mixed (serving/points.py). Adapters are loaded into one engine as they are needed, and its CUDA graphs
recorded before anything is timed. Each kind of traffic runs once uncounted, then RUNS times, of which the line of results, written as soon
as it is known, has the median (`rates` are all); points that the output has already are not measured again. `--profile` adds where a step
goes.
"""

import argparse
import gc
import itertools
import json
import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from graft.compare.machine import machine, versions
from graft.serve import Engine, Sampling
from serving import models, peers
from serving.points import PEERS, RESIDENT, SHAPES, Point, planned
from serving.profile import watched
from serving.traffic import prompts, send, settle

RUNS = 3
SETTLE = 180.0  # seconds for all graphs to be recorded
LONG = 4  # a profiled batch answers so many times the point's tokens


def parsed(given: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="a JSON-lines file to append to")
    parser.add_argument("--shape", choices=SHAPES, default="7b")
    parser.add_argument("--requests", type=int, nargs="+", default=[32, 64])
    parser.add_argument("--resident", type=int, nargs="*", default=list(RESIDENT))
    parser.add_argument("--peers", nargs="*", choices=PEERS, default=[])
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--new", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--budget", type=float, default=math.inf, help="seconds after which no other point is begun")
    parser.add_argument("--profile", action="store_true")
    return parser.parse_args(given)


class Results:
    """The file of results."""

    def __init__(self, path: Path) -> None:
        self.path, self.where = path, {"machine": machine(), "versions": versions()}
        lines = path.read_text().splitlines() if path.exists() else []
        self.done = {Point(**json.loads(line)["point"]) for line in lines if "point" in json.loads(line)}

    def write(self, point: Point, **found: Any) -> None:
        """Append a line, and say it."""
        line = json.dumps({"point": point.fields} | found | self.where)
        with self.path.open("a") as file:
            file.write(line + "\n")
        sys.stdout.write(f"{point.engine} {point.traffic}, {point.resident} adapters, {point.requests} requests: {brief(found)}\n")
        sys.stdout.flush()


def brief(found: dict[str, Any]) -> str:
    """A result in words."""
    if "failed" in found:
        return str(found["failed"])
    first, each = (found.get(name, {}).get("p50") for name in ("first_token_ms", "token_ms"))
    return f"{found['tokens_a_second']:,.0f} tokens/s" + (f", first {first:.0f} ms, then {each:.1f} ms" if first and each else "")


@contextmanager
def told(results: Results, point: Point) -> Iterator[None]:
    """A failure is a line of results too, and the next point goes on."""
    try:
        yield
    except Exception as error:
        results.write(point, failed=f"{type(error).__name__}: {error}")


def compare(points: list[Point], results: Results, over: Callable[[], bool]) -> None:
    """Measure what others do, each on a model of its own."""
    for point in points:
        if over():
            return
        with told(results, point):
            run = peers.peft_rate if point.engine == "peft" else peers.transformers_rate
            results.write(point, tokens_a_second=run(models.base(point.shape), point, seed=0))
        release()


def serve(points: list[Point], results: Results, over: Callable[[], bool], *, profile: bool) -> None:
    """Measure our engine: one for each number of requests, adapters loaded as they are needed."""
    if not points:
        return
    model = models.base(points[0].shape)
    made = models.adapters(model) if any(point.resident for point in points) else []
    largest = max(points, key=lambda point: point.requests)
    with torch.no_grad(), Engine(model, slots=max(1, *(point.resident for point in points)), room=models.room_for(largest)) as engine:
        names: list[str] = []
        for point in points:
            if over():
                return
            with told(results, point):
                for number in range(len(names), point.resident):
                    engine.load(f"a{number}", made[number % len(made)])
                    names.append(f"a{number}")
                    engine.submit([0], f"a{number}", Sampling(max_tokens=1)).result(600)  # in its slot, as at base-only traffic
                measure(engine, point, names, results, profile=profile)
    release()


def measure(engine: Engine, point: Point, names: list[str], results: Results, *, profile: bool) -> None:
    """One kind of traffic."""
    wanted: list[str | None] = {"base": [None], "one": names[:1], "mixed": [*names]}[point.traffic]
    vocabulary = engine.model.config.vocab_size
    settled = settle(engine, SETTLE)
    texts = [prompts(point.requests, point.length, vocabulary, 1000 * point.repeat + seed) for seed in range(1 + RUNS)]
    runs = [send(engine, wanted, each, point.new) for each in texts][1:]
    found = sorted(runs, key=lambda one: one["tokens_a_second"])[RUNS // 2]
    found |= {"rates": [round(one["tokens_a_second"], 1) for one in runs], "settled": settled}
    if profile and not point.repeat:
        found["profile"] = profiled(engine, point, wanted)
    results.write(point, **found)


def profiled(engine: Engine, point: Point, wanted: list[str | None]) -> dict[str, Any]:
    """Where a step goes while answers of one kind of traffic are made."""
    length = max(1, point.length // LONG)
    texts = prompts(point.requests, length, engine.model.config.vocab_size, 7)
    long = Sampling(max_tokens=point.length - length + point.new)
    handles = [engine.submit(text, name, long) for text, name in zip(texts, itertools.cycle(wanted), strict=False)]
    for handle in handles:
        next(iter(handle))
    found = watched(engine)
    for handle in handles:
        handle.result(600)
    return found


def release() -> None:
    """Give memory back."""
    gc.collect()
    if models.ON_CARD:
        torch.cuda.empty_cache()


def main(given: list[str] | None = None) -> None:
    """Measure what is not measured yet."""
    options, began = parsed(given), time.monotonic()
    results = Results(options.output)
    wanted = planned(options.shape, options.requests, options.length, options.new, options.resident, options.peers, options.repeats)
    points = [point for point in wanted if point not in results.done]

    def over() -> bool:
        return time.monotonic() - began > options.budget

    serve([point for point in points if point.engine == "graft"], results, over, profile=options.profile)
    compare([point for point in points if point.engine != "graft"], results, over)


if __name__ == "__main__":
    main()
