"""Ticket: one answer that is asked for, on its way through the engine, and when it is due."""

import heapq
import logging
import math
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from graft.errors import Failed
from graft.serve.answers import CANCELLED, LENGTH, STOP, Event, Handle, Text
from graft.serve.counts import CANCELLED as DROPPED
from graft.serve.counts import FAILED, FINISHED, Trip
from graft.serve.sampling import Sampling
from graft.serve.scoring import Asked
from graft.serve.shelf import Entry

log = logging.getLogger("graft")
SPARE = 64  # ended tickets that may be remembered


@dataclass(eq=False)
class Ticket:
    """One answer that is asked for: number `index` of its handle. `ids` [virtual + text]; `text`: where stop texts are looked for."""

    name: str
    ids: list[int]
    entry: Entry | None
    sampling: Sampling
    seed: int
    index: int
    handle: Handle
    ends: frozenset[int]
    text: Text | None
    trip: Trip
    told: int | None = None  # alternatives, where the text itself is to be scored
    seen: int = 0
    closed: bool = False  # its caller expects no more
    until: float = math.inf  # by when it is to be answered, as time.monotonic() counts
    last: float = 0.0  # when its last token came
    lock: threading.Lock = field(default_factory=threading.Lock)  # a caller may cancel while the engine ends it

    @property
    def what(self) -> str:
        """The adapter and its methods, in words."""
        return "the base" if self.entry is None else f"the adapter {self.entry.name!r} ({self.entry.methods})"

    def text_to_score(self) -> Asked:
        """What is to be scored, once the adapter has its slot."""
        virtual, slot = (0, 0) if self.entry is None else (self.entry.virtual, self.entry.slot or 0)
        return Asked(self.ids, virtual, slot, self.told or 0)

    @property
    def cost(self) -> int:
        """The tokens that it may take."""
        return len(self.ids) + (self.sampling.max_tokens if self.told is None else 0)

    @property
    def unused(self) -> int:
        """Those that it did not take."""
        return self.sampling.max_tokens - self.seen if self.told is None else 0

    @property
    def named(self) -> str | None:
        """The adapter's name; None the bare base's."""
        return None if self.entry is None else self.entry.name

    def report(self, tokens: list[int], row: Any, *, finished: bool) -> None:
        """Tell the caller which of the answer's tokens are new, with the row of what was seen of the last, and of its end.

        It ends here where nobody hears it, with a stop text, and where it cannot be told, as by a tokenizer: that is its own fate.
        """
        try:
            for number in tokens[self.seen :]:
                text = None if self.text is None else "" if number in self.ends else self.text.push(number)
                if not self.tell(id=number, row=row, text=text):
                    self.end(DROPPED, reason=CANCELLED)
                if self.text is not None and self.text.ended:
                    self.end(FINISHED, reason=STOP, text="")
            self.seen = len(tokens)
            if finished:
                rest = None if self.text is None else self.text.rest()
                self.end(FINISHED, reason=STOP if tokens and tokens[-1] in self.ends else LENGTH, text=rest)
        except Exception as fault:
            self.end(FAILED, error=Failed(f"an answer of {self.what} could not be told: {type(fault).__name__}: {fault}"))

    def tell(self, **event: Any) -> bool:
        """Report a token to the caller; False where there is nobody to hear it."""
        if self.closed:
            return False
        self.last = self.trip.token(self.last)
        return self.put(Event(self.index, **event))

    def end(self, outcome: str, **event: Any) -> None:
        """Report for the last time that it ended so (graft.serve.counts.OUTCOMES)."""
        with self.lock:
            closed, self.closed = self.closed, True
        if not closed:
            self.trip.end(outcome)
            self.put(Event(self.index, **event))

    def put(self, event: Event) -> bool:
        """Hand an event to the caller, whose fault is not the engine's."""
        try:
            self.handle.events.put(event)
        except Exception as error:
            log.warning("an answer by %s has nowhere to go: %s", self.what, error)
            return False
        return True


class Due:
    """Tickets with a time by which they are to be answered, the first of them first."""

    def __init__(self) -> None:
        self.heap: list[tuple[float, int, Ticket]] = []

    def add(self, tickets: Sequence[Ticket]) -> None:
        """Remember those that have one."""
        for ticket in tickets:
            if ticket.until < math.inf:
                heapq.heappush(self.heap, (ticket.until, id(ticket), ticket))

    def over(self, open: int) -> list[Ticket]:
        """Those whose time is over now, and forget them; `open` tickets are not ended."""
        found = []
        while self.heap and (self.heap[0][2].closed or self.heap[0][0] <= time.monotonic()):
            found.append(heapq.heappop(self.heap)[2])
        if len(self.heap) > 2 * open + SPARE:  # else long times keep what was answered long ago
            self.heap = [one for one in self.heap if not one[2].closed]
            heapq.heapify(self.heap)
        return [ticket for ticket in found if not ticket.closed]
