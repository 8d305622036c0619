"""Serving: what loading an adapter takes, and what those notice who are answered meanwhile.

    python benchmarks/serve_loads.py --output loads.jsonl [--shape 7b] [--before 16] [--requests 16]

Adapters of eight methods (serving/points.py) in turn, `before` of them while nobody else asks, then, with CUDA graphs recorded, each of
the eight once more while `requests` answers are made, half of them by the bare base. A line of results for each: seconds of the load and
until its first token, and the longest times from token to token in one of the others' answers from the load on. All weights are random.
"""

import argparse
import itertools
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch

from graft.compare.machine import machine, versions
from graft.serve import Engine, Room, Sampling
from serving import models
from serving.points import KINDS, SHAPES
from serving.traffic import Watch, prompts, settle

SETTLE = 180.0  # seconds for all graphs to be recorded
LENGTH, NEW = 16, 3000  # of the answers that are made meanwhile
SHOWN = 4  # of the longest times between tokens
AFTER = 0.1  # seconds, until what the first answer slowed down is seen too


def parsed(given: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="a JSON-lines file to append to")
    parser.add_argument("--shape", choices=SHAPES, default="7b")
    parser.add_argument("--before", type=int, default=2 * len(KINDS), help="adapters that are loaded while nobody else asks")
    parser.add_argument("--requests", type=int, default=16)
    return parser.parse_args(given)


def loaded(engine: Engine, name: str, adapter: Any) -> dict[str, float]:
    """Load one and ask it: seconds of the load, and from then until its first token."""
    began = time.perf_counter()
    engine.load(name, adapter)
    there = time.perf_counter()
    engine.submit([0], name, Sampling(max_tokens=1)).result(600)
    return {"load_s": round(there - began, 3), "first_s": round(time.perf_counter() - there, 3)}


def noticed(watch: Watch, since: float) -> list[float]:
    """The longest times from token to token of an answer, from the last token before `since` on."""
    times = list(watch.times)
    if not times or watch.done.is_set():
        raise RuntimeError("the answers that are made meanwhile ended before: ask for fewer loads")
    first = max((number for number, at in enumerate(times) if at < since), default=0)
    return sorted((round(b - a, 3) for a, b in itertools.pairwise(times[first:])), reverse=True)[:SHOWN]


def run(engine: Engine, made: list[Any], before: int, requests: int, write: Any) -> None:
    """All loads."""
    for number in range(before):
        write(KINDS[number % len(KINDS)], False, loaded(engine, f"a{number}", made[number % len(made)]))
    settle(engine, SETTLE)
    watches = [Watch() for _ in range(requests)]
    texts = prompts(requests, LENGTH, engine.model.config.vocab_size, 0)
    handles = [
        engine.submit(text, "a0" if number % 2 else None, Sampling(max_tokens=NEW), events=watch)
        for number, (text, watch) in enumerate(zip(texts, watches, strict=True))
    ]
    while not all(watch.times for watch in watches):
        time.sleep(0.01)
    for number, adapter in enumerate(made):
        since = time.perf_counter()
        found = loaded(engine, f"b{number}", adapter)
        time.sleep(AFTER)
        write(KINDS[number], True, found | {"gaps_s": noticed(watches[0], since)})
    for handle in handles:
        handle.cancel()


@torch.no_grad()
def main(given: list[str] | None = None) -> None:
    """Load and tell."""
    options, where = parsed(given), {"machine": machine(), "versions": versions()}
    model = models.base(options.shape)
    made = models.adapters(model)
    room = Room(cached=options.requests * (LENGTH + NEW + 64), batch=512, requests=2 * options.requests)

    def write(method: Any, busy: bool, found: dict[str, Any]) -> None:
        line = {"shape": options.shape, "method": method.kind, "busy": busy, "requests": options.requests * busy} | found
        with options.output.open("a") as file:
            file.write(json.dumps(line | where) + "\n")
        sys.stdout.write(json.dumps(line) + "\n")
        sys.stdout.flush()

    with Engine(model, slots=options.before + len(made), room=room) as engine:
        run(engine, made, max(1, options.before), options.requests, write)


if __name__ == "__main__":
    main()
