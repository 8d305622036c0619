"""Ticket: one answer that is asked for, on its way through the engine."""

import threading
from dataclasses import dataclass, field
from typing import Any

from graft.serve.answers import Event, Handle, Text
from graft.serve.counts import Trip
from graft.serve.sampling import Sampling
from graft.serve.scoring import Asked
from graft.serve.shelf import Entry


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
    passed: int = 0
    closed: bool = False  # its caller expects no more
    dropped: bool = False  # cancelled
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
    def named(self) -> str | None:
        """The adapter's name; None the bare base's."""
        return None if self.entry is None else self.entry.name

    def tell(self, **event: Any) -> None:
        """Report a token to the caller."""
        if not self.closed:
            self.last = self.trip.token(self.last)
            self.handle.events.put(Event(self.index, **event))

    def end(self, outcome: str, **event: Any) -> None:
        """Report for the last time that it ended so (graft.serve.counts.OUTCOMES)."""
        with self.lock:
            closed, self.closed = self.closed, True
        if not closed:
            self.trip.end(outcome)
            self.handle.events.put(Event(self.index, **event))
