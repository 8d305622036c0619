"""What the engine counts, for each adapter by name and for the bare base: requests, tokens, times, evictions.

    Tallies     all of them, safe for any thread      tallies.of(name) -> Tally
    Tally       one adapter's numbers, which only grow
    Trip        one request on its way, which tells its tally what happens to it and when

Times are sorted into fixed buckets, each `bounds[k - 1] < seconds <= bounds[k]`: to count one is a search and two additions, and numbers
of several engines or adapters can be added. A name keeps its tally when its adapter is unloaded, so that no number falls; past `NAMES`
names the one that was asked for longest ago is forgotten.
"""

import threading
import time
from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass, field

BOUNDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 50.0, 100.0)
NAMES = 10_000
FINISHED, CANCELLED, EXPIRED, FAILED, REFUSED = "finished", "cancelled", "expired", "failed", "refused"
OUTCOMES = (FINISHED, CANCELLED, EXPIRED, FAILED, REFUSED)
TOKENS = ("prompt", "virtual", "generated", "shared")
TIMES = ("queue", "first_token", "token", "load", "place")
EVICTIONS = ("slot", "host")


@dataclass(frozen=True)
class Histogram:
    """`buckets[k]`: how many times were within `bounds[k]` seconds and not within the bound before; the last, of one more, were longer."""

    bounds: tuple[float, ...]
    buckets: tuple[int, ...]
    sum: float

    @property
    def count(self) -> int:
        """How many there were."""
        return sum(self.buckets)


@dataclass(frozen=True)
class Counted:
    """One adapter's numbers.

    `requests` by outcome: finished, cancelled, expired (by their deadline), failed, refused; one of n answers counts once.
    `tokens`: prompt and virtual of each request that began, generated of all n answers, and shared: those of a prompt found in the cache.
    `seconds`: queue (until the engine begins), first_token (from asking), token (from an answer's token to its next), load (a folder
    into host memory), place (host memory into a slot).
    `evictions`: of its slot, and of its forms in host memory. `waiting`, `running`: answers now.
    """

    requests: Mapping[str, int]
    tokens: Mapping[str, int]
    seconds: Mapping[str, Histogram]
    evictions: Mapping[str, int]
    waiting: int = 0
    running: int = 0


@dataclass(frozen=True)
class Counts:
    """All of them: `adapters` by name, None the bare base; `unknown`: requests refused since no adapter has the name.

    `slots` on the device, of which `slots_used` hold an adapter; `host_bytes`: forms in host memory.
    """

    adapters: Mapping[str | None, Counted]
    unknown: int
    slots: int
    slots_used: int
    host_bytes: int


@dataclass
class Times:
    """A histogram that grows."""

    buckets: list[int] = field(default_factory=lambda: [0] * (len(BOUNDS) + 1))
    sum: float = 0.0

    def add(self, seconds: float) -> None:
        """Count one."""
        self.buckets[bisect_left(BOUNDS, seconds)] += 1
        self.sum += seconds


class Tally:
    """One adapter's numbers. Every method is safe for any thread."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.requests = dict.fromkeys(OUTCOMES, 0)
        self.tokens = dict.fromkeys(TOKENS, 0)
        self.times = {name: Times() for name in TIMES}
        self.evictions = dict.fromkeys(EVICTIONS, 0)

    def ended(self, outcome: str) -> None:
        """A request ended so (one of OUTCOMES)."""
        with self.lock:
            self.requests[outcome] += 1

    def took(self, what: str, seconds: float) -> None:
        """Something (one of TIMES) took so long."""
        with self.lock:
            self.times[what].add(seconds)

    def spent(self, what: str, tokens: int) -> None:
        """So many tokens more (one of TOKENS)."""
        with self.lock:
            self.tokens[what] += tokens

    def evicted(self, where: str) -> None:
        """It had to leave its place (one of EVICTIONS)."""
        with self.lock:
            self.evictions[where] += 1

    def counted(self, waiting: int, running: int) -> Counted:
        """The numbers as they are."""
        with self.lock:
            times = {name: Histogram(BOUNDS, tuple(own.buckets), own.sum) for name, own in self.times.items()}
            return Counted(dict(self.requests), dict(self.tokens), times, dict(self.evictions), waiting, running)


class Tallies:
    """The tallies of all names, None the bare base's."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.by_name: dict[str | None, Tally] = {None: Tally()}
        self.unknown = 0

    def of(self, name: str | None) -> Tally:
        """A name's tally, new where there is none."""
        with self.lock:
            found = self.by_name.pop(name, None) or Tally()
            self.by_name[name] = found  # the last, as the one counted last
            if len(self.by_name) > NAMES:
                del self.by_name[next(one for one in self.by_name if one is not None)]
            return found

    def refused(self, name: str | None, *, known: bool) -> None:
        """A request was refused; of names that nobody knows there is no tally, else strangers could make any number of them."""
        if known:
            self.of(name).ended(REFUSED)
        else:
            with self.lock:
                self.unknown += 1

    def counted(self, waiting: Mapping[str | None, int], running: Mapping[str | None, int]) -> dict[str | None, Counted]:
        """All numbers, with the requests that wait and run now; one tally after another, so that none waits for all."""
        with self.lock:
            found = list(self.by_name.items())
        return {name: tally.counted(waiting.get(name, 0), running.get(name, 0)) for name, tally in found}


class Trip:
    """One request on its way, `answers` of it open. Every method is safe for any thread."""

    def __init__(self, tally: Tally, answers: int, prompt: int, virtual: int) -> None:
        self.tally, self.open, self.brought = tally, answers, {"prompt": prompt, "virtual": virtual}
        self.asked = time.monotonic()
        self.began = self.spoken = False
        self.outcome = FINISHED

    def begin(self) -> None:
        """The engine begins with one of its answers."""
        if not self.began:
            self.began = True
            self.tally.took("queue", time.monotonic() - self.asked)
            for what, tokens in self.brought.items():
                self.tally.spent(what, tokens)

    def token(self, before: float) -> float:
        """An answer has one token more, the one before it at `before` (0: none); the time now."""
        now, own = time.monotonic(), self.tally
        with own.lock:
            own.tokens["generated"] += 1
            if not self.spoken:
                own.times["first_token"].add(now - self.asked)
            if before:
                own.times["token"].add(now - before)
            self.spoken = True
        return now

    def end(self, outcome: str) -> None:
        """One of its answers ended; the request did with the last, and not as finished if one of them did not."""
        with self.tally.lock:
            self.open -= 1
            last = self.open == 0
            if outcome != FINISHED:
                self.outcome = outcome
        if last:
            self.tally.ended(self.outcome)
