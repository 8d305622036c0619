"""Points, spread over the cards of a machine: one process a point, one point of a card timed at a time, each result written at once.

Two cards of one kind differ by a percent or two, so a point is divided by the limit of its own card: before its first point of a setting
a card measures that setting's limit, and cards keep to the settings they have begun as long as there are points of them.
"""

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from steps.points import Point
from steps.turns import is_large

Fields = dict[str, Any]


@dataclass
class Queue:
    """Points that wait, and which limits each card has begun."""

    waiting: list[Point]
    begun: set[tuple[str, Point]] = field(default_factory=set)

    def take(self, card: str) -> Point | None:
        """The next point for a card, a limit before what is divided by it; None at the end."""
        if not self.waiting:
            return None
        others = {anchor for _, anchor in self.begun}
        point = min(self.waiting, key=lambda one: 0 if (card, one.anchor) in self.begun else 1 if one.anchor not in others else 2)
        if (card, point.anchor) not in self.begun:
            self.begun.add((card, point.anchor))
            point = point.anchor
        if point in self.waiting:
            self.waiting.remove(point)
        return point


@dataclass
class Pool:
    """`cards` are values of CUDA_VISIBLE_DEVICES, or "" for what there is; `facts` stand in every line; `hear` gets each line.

    No point is started that would end later than `budget` seconds from now, going by the longest so far. `timeout` seconds end a point.
    A card has `beside` processes, which take turns (steps.turns); points that two could not do at a time come last, each alone from the
    start, and with them those that failed beside another.
    """

    cards: Sequence[str]
    facts: Fields
    hear: Callable[[Fields], None]
    options: Sequence[str] = ()
    budget: float = float("inf")
    timeout: float = 600.0
    cold: bool = False
    beside: int = 1

    def run(self, points: Sequence[Point]) -> list[Point]:
        """Measure all; what the budget left out."""
        self.lock, self.longest, self.started = threading.Lock(), 30.0, time.monotonic()
        if self.beside == 1:
            return self.spread(Queue(list(points)), alone=True)[0]
        small = Queue([point for point in points if not is_large(point)])
        left, failed = self.spread(small, alone=False)
        return left + self.spread(Queue([*failed, *filter(is_large, points)], small.begun), alone=True)[0]

    def spread(self, queue: Queue, alone: bool) -> tuple[list[Point], list[Point]]:
        """Measure what waits: what is left, and what failed beside another, which no line says yet."""
        failed: list[Point] = []

        def work(card: str, locks: Path) -> None:
            while (point := self.next(queue, card)) is not None:
                lines = self.ask([point], card, min(self.timeout, self.rest()), [str(locks / f"card{card}"), *(["alone"] if alone else [])])
                with self.lock:
                    self.longest = max(self.longest, 1.1 * max(line["process_s"] for line in lines))
                    for line in lines:
                        failed.append(point) if "failed" in line and not alone else self.hear(line)

        with tempfile.TemporaryDirectory() as folder:
            threads = [threading.Thread(target=work, args=(card, Path(folder))) for card in self.cards for _ in range(self.beside)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        return queue.waiting, failed

    def rest(self) -> float:
        """Seconds of the budget that are left."""
        return self.budget - (time.monotonic() - self.started)

    def next(self, queue: Queue, card: str) -> Point | None:
        """A point that a card can measure in the time that is left."""
        with self.lock:
            return queue.take(card) if self.rest() > self.longest else None

    def ask(self, points: Sequence[Point], card: str, timeout: float, turns: Sequence[str] = ()) -> list[Fields]:
        """The lines of points that one process measures."""
        command = [sys.executable, sys.argv[0], *self.options, "--points", json.dumps([json.loads(point.key) for point in points])]
        command += ["--turns", *turns] if turns else []
        started = time.monotonic()
        with tempfile.TemporaryDirectory() as empty:
            env = os.environ | ({"CUDA_VISIBLE_DEVICES": card} if card else {})
            env |= {"TORCHINDUCTOR_CACHE_DIR": f"{empty}/inductor", "TRITON_CACHE_DIR": f"{empty}/triton"} if self.cold else {}
            try:
                done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=timeout, check=False)
                said = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"point"')]
                trace = done.stderr.strip().splitlines()[-40:]
            except subprocess.TimeoutExpired:
                said, trace = [], [f"not done after {timeout:.0f} s"]
        found = {Point(**line["point"]): line for line in said}
        failed = {"failed": trace[-1] if trace else "no result", "trace": trace}
        whole = self.facts | {"card": card, "process_s": time.monotonic() - started, "cold": self.cold}
        return [whole | (found.get(point) or {"point": json.loads(point.key)} | failed) for point in points]


def lines_of(files: Sequence[Path]) -> list[Fields]:
    """Every line of these files of results, those that exist."""
    return [json.loads(line) for file in files if file.exists() for line in file.read_text().splitlines()]


def left(points: Sequence[Point], lines: Sequence[Fields], retry: bool = False) -> list[Point]:
    """The points without a line; with `retry` also those that failed."""
    done = {Point(**line["point"]) for line in lines if not (retry and "failed" in line)}
    return [point for point in points if point not in done]
