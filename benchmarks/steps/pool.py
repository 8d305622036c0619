"""Points, spread over the cards of a machine: a process each (steps.child), one of a card timed at a time, each result written at once.

Two cards of one kind differ by a percent or two, so a point is divided by the limit of its own card: before its first point of a setting
a card measures that setting's limit, and cards keep to the settings they have begun as long as there are points of them.
"""

import json
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from steps.child import Child
from steps.points import Point
from steps.turns import gibibytes

Fields = dict[str, Any]


@dataclass
class Queue:
    """Points that wait, and which limits each card has begun."""

    waiting: list[Point]
    begun: set[tuple[str, Point]] = field(default_factory=set)

    def take(self, card: str, room: float = float("inf")) -> Point | None:
        """The next point for a card with so many GiB free, a limit before what is divided by it; None where none fits, or at the end."""
        fitting = [point for point in self.waiting if gibibytes(point) <= room]
        if not fitting:
            return None
        others = {anchor for _, anchor in self.begun}
        point = min(fitting, key=lambda one: 0 if (card, one.anchor) in self.begun else 1 if one.anchor not in others else 2)
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
    A card has up to `beside` processes, as many as its `memory` (GiB) has room for, which take turns (steps.turns). What failed beside
    another comes last, alone.
    """

    cards: Sequence[str]
    facts: Fields
    hear: Callable[[Fields], None]
    options: Sequence[str] = ()
    budget: float = float("inf")
    timeout: float = 600.0
    cold: bool = False
    beside: int = 1
    memory: float = float("inf")

    def run(self, points: Sequence[Point]) -> list[Point]:
        """Measure all; what the budget left out."""
        self.turn, self.longest, self.started = threading.Condition(), 30.0, time.monotonic()
        self.held: dict[str, list[float]] = {card: [] for card in self.cards}
        queue = Queue(list(points))
        left, failed = self.spread(queue, self.beside)
        return left + self.spread(Queue(failed, queue.begun), 1)[0]

    def spread(self, queue: Queue, beside: int) -> tuple[list[Point], list[Point]]:
        """Measure what waits: what is left, and what failed beside another, which no line says yet."""
        failed: list[Point] = []

        def work(card: str, locks: Path) -> None:
            while self.rest() > self.longest and queue.waiting:
                child = self.start(card)
                if (point := self.next(queue, card)) is None:
                    child.end()
                    return
                turns = [str(locks / f"card{card}"), *(["alone"] if beside == 1 else [])]
                lines = self.ask(child, [point], card, min(self.timeout, self.rest()), turns)
                with self.turn:
                    self.held[card].remove(gibibytes(point))
                    self.turn.notify_all()
                    self.longest = max(self.longest, 1.1 * max(line["process_s"] for line in lines))
                    for line in lines:
                        failed.append(point) if "failed" in line and beside > 1 else self.hear(line)

        with tempfile.TemporaryDirectory() as folder:
            threads = [threading.Thread(target=work, args=(card, Path(folder))) for card in self.cards for _ in range(beside)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        return queue.waiting, failed

    def rest(self) -> float:
        """Seconds of the budget that are left."""
        return self.budget - (time.monotonic() - self.started)

    def next(self, queue: Queue, card: str) -> Point | None:
        """A point that a card can measure in the time that is left, once it has room for one; an empty card has room for any."""
        with self.turn:
            while self.rest() > self.longest:
                held = self.held[card]
                point = queue.take(card, self.memory - sum(held) if held else float("inf"))
                if point is not None:
                    held.append(gibibytes(point))
                    return point
                if not queue.waiting:
                    break
                self.turn.wait(min(60.0, self.rest() - self.longest))
        return None

    def start(self, card: str) -> Child:
        """A process that imports what it needs while others are measured: that takes no memory of the card."""
        return Child(card, self.options, self.cold)

    def ask(self, child: Child, points: Sequence[Point], card: str, timeout: float, turns: Sequence[str] = ()) -> list[Fields]:
        """The lines of points that one process measures."""
        whole = self.facts | {"card": card, "cold": self.cold}
        return [whole | line for line in child.measure(points, turns, timeout)]


def lines_of(files: Sequence[Path]) -> list[Fields]:
    """Every line of these files of results, those that exist."""
    return [json.loads(line) for file in files if file.exists() for line in file.read_text().splitlines()]


def left(points: Sequence[Point], lines: Sequence[Fields], retry: bool = False) -> list[Point]:
    """The points without a line; with `retry` also those that failed."""
    done = {Point(**line["point"]) for line in lines if not (retry and "failed" in line)}
    return [point for point in points if point not in done]
