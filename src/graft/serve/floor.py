"""The floor: the engine's thread at work. Requests wait here for their turn and their adapter's slot, run, and report to their callers.

Between two batches, when nothing runs that could read a slot, tasks are done (adapters loaded and unloaded), requests end whose time is
over, and others start, in the order of graft.serve.fair. A slot in use is never taken away.
"""

import threading
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
from torch import Tensor

from graft.errors import Expired, Failed, ServeError, Stopped
from graft.serve import sampling as draws
from graft.serve.answers import CANCELLED
from graft.serve.batching import Batching
from graft.serve.counts import CANCELLED as DROPPED
from graft.serve.counts import EXPIRED, FAILED, FINISHED
from graft.serve.fair import Fair, Start
from graft.serve.gate import Gate, Needs, likely
from graft.serve.guest import Scheduled
from graft.serve.sampling import Sampling
from graft.serve.scoring import padded, score
from graft.serve.shelf import Entry, Slots
from graft.serve.tasks import Tasks
from graft.serve.ticket import Due, Ticket


class Floor:
    """A guest of the engine (graft.serve.guest.Guest): at most `limit` requests run, and texts of `budget` tokens are scored at a time."""

    rows, outputs = 1 + draws.ROWS, draws.OUTPUTS

    def __init__(self, gate: Gate, slots: Slots, fair: Fair, limit: int, budget: int) -> None:
        self.gate, self.slots, self.fair, self.limit, self.budget = gate, slots, fair, limit, budget
        self.batching: Batching | None = None
        self.lock = threading.Lock()
        self.running: dict[str, Ticket] = {}
        self.tasks = Tasks()
        self.due = Due()
        self.ended = False  # whether some were ended where they wait
        self.draws = draws.Draws()
        self.state: object = None
        self.dead = ""

    # for any thread

    def open(self, batching: Batching) -> None:
        """An engine runs from now on."""
        self.dead, self.batching = "", batching
        self.tasks.take(True)

    def enqueue(self, tickets: Sequence[Ticket]) -> None:
        """Let one adapter's requests wait for their turn. Raises Overloaded where too many do, Stopped where nothing runs any more."""
        with self.lock:
            self.check()
            self.fair.add(tickets)
            self.due.add(tickets)
            for ticket in tickets:
                if ticket.entry is not None:
                    ticket.entry.waiting += 1
        self.wake()

    def check(self) -> None:
        """Raise Stopped where no engine runs."""
        if self.batching is None:
            raise Stopped(f"the engine does not run: {self.dead or 'start() it'}")

    def drop(self, tickets: Sequence[Ticket]) -> None:
        """Cancel requests, whether they wait or run."""
        for ticket in tickets:
            self.cancel(ticket, DROPPED, reason=CANCELLED)
        self.wake()

    def cancel(self, ticket: Ticket, outcome: str, **event: Any) -> None:
        """End a request before its end."""
        ticket.end(outcome, **event)
        batching, self.ended = self.batching, True
        if batching is not None and ticket.name in self.running:
            batching.cancel(ticket.name)

    def asked(self) -> list[Ticket]:
        """All that wait or run."""
        waiting, running = self.asked_apart()
        return waiting + running

    def asked_apart(self) -> tuple[list[Ticket], list[Ticket]]:
        """Those that wait, and those that run."""
        with self.lock:
            running = dict(self.running)
            return [one for one in self.fair.waiting() if one.name not in running], list(running.values())

    def idle(self) -> bool:
        """Whether there are none."""
        return not self.asked()

    def run(self, job: Callable[[], Any]) -> Any:
        """What a job returns, done between two batches; or here, where no engine runs. For any other thread."""
        return self.tasks.run(job, self.wake)

    def wake(self) -> None:
        """Let the engine's thread look for work."""
        if self.batching is not None:
            self.batching.wake()

    # for the engine's thread

    @torch.inference_mode(False)
    @torch.no_grad()
    def between(self) -> None:
        """Do what must not happen while a batch runs."""
        if self.batching is None or not (self.tasks.queue or self.fair.count or self.due.heap):
            return
        self.expire()
        with self.batching.stream:
            self.tasks.do()
            self.admit()
        if not self.slots.changed:
            return
        state, self.slots.changed = self.slots.state(), False
        if state != self.state:
            self.batching.forget_graphs(lambda variant: variant[0].adapters)
            self.state = state

    def expire(self) -> None:
        """End the requests whose time is over."""
        with self.lock:
            over = self.due.over(self.fair.count + len(self.running))
        for ticket in over:
            self.cancel(ticket, EXPIRED, error=Expired(f"a request for {ticket.what} was not answered within its time"))

    def admit(self) -> None:
        """Start what can start; a request is always found among those that wait, or those that run."""
        if self.ended:
            self.ended = False
            for ticket in self.fair.sweep():
                self.leave(ticket, "waiting")
        scores: list[Ticket] = []

        def start(ticket: Ticket, kept: Callable[[Entry], bool]) -> Start:
            if ticket.told is not None and scores and padded([one.ids for one in (*scores, ticket)]) > self.budget:
                return Start.LATER
            found = self.start(ticket, kept)
            if ticket.told is not None and found is Start.GONE:
                scores.append(ticket)
            return found

        self.fair.admit(lambda: len(self.running) >= self.limit, start)
        self.score(scores)
        if scores and self.fair.count:
            self.wake()  # an engine with nothing to generate looks round ten times a second only

    def start(self, ticket: Ticket, kept: Callable[[Entry], bool]) -> Start:
        """Hand a request to the engine, if its adapter finds a slot."""
        entry = ticket.entry
        if ticket.closed:
            self.leave(ticket, "waiting")
            return Start.FREE
        try:
            if entry is not None and not self.slots.take(entry, kept):
                return Start.STUCK
        except Exception as error:  # an adapter's folder may be gone: that is this request's fate, not the engine's
            why = error if isinstance(error, ServeError) else Failed(f"{ticket.what} cannot be brought to the device: {error}")
            ticket.end(FAILED, error=why)
            self.leave(ticket, "waiting")
            return Start.FREE
        if entry is not None:
            with self.lock:
                entry.waiting, entry.running = entry.waiting - 1, entry.running + 1
        self.running[ticket.name] = ticket
        ticket.trip.begin()
        if self.batching is not None and ticket.told is None:
            salt = b"" if entry is None else entry.digest
            self.batching.add(ticket.name, ticket.ids, ticket.sampling.max_tokens, ticket.ends, salt)
            if ticket.closed:  # cancelled in between, before the engine knew it
                self.batching.cancel(ticket.name)
        return Start.GONE

    def score(self, tickets: list[Ticket]) -> None:
        """Score texts in one forward."""
        if not tickets or self.batching is None:
            return
        try:
            found = score(self.gate, [one.text_to_score() for one in tickets], self.batching.plain())
            for ticket, own in zip(tickets, found, strict=True):
                ticket.end(FINISHED, scored=own)
        except Exception as error:  # of memory, most likely: the engine goes on
            for ticket in tickets:
                ticket.end(FAILED, error=Failed(f"a text for {ticket.what} could not be scored: {error}"))
        for ticket in tickets:
            self.leave(ticket, "running")

    def fill(self, batch: Sequence[Scheduled], rows: Tensor) -> Hashable:
        """Slots of tokens [0, T], and what requests ask of sampling."""
        rows.zero_()
        tickets = [self.running.get(one.name) for one in batch]
        numbers = [0 if ticket is None or ticket.entry is None else ticket.entry.slot or 0 for ticket in tickets]
        lengths = [one.length for one in batch]
        rows[0, : sum(lengths)] = torch.repeat_interleave(torch.tensor(numbers, dtype=torch.int32), torch.tensor(lengths))
        entries = [
            (one, ticket.entry) for one, ticket in zip(batch, tickets, strict=True) if ticket is not None and ticket.entry is not None
        ]
        self.gate.needs = Needs(
            adapters=any(numbers),
            virtual=any(one.position - one.length < entry.virtual for one, entry in entries),
            back=any(entry.unshifted for _, entry in entries),
        )
        asked = [
            (Sampling(), 0, 0) if ticket is None else (ticket.sampling, ticket.seed, one.position)
            for one, ticket in zip(batch, tickets, strict=True)
            if one.new
        ]
        self.draws = draws.fill(asked, rows[1:])
        return self.gate.needs, self.draws

    def variants(self) -> list[tuple[tuple[Needs, draws.Draws], bool]]:
        """What batches will likely need (graft.serve.gate.likely)."""
        return likely(self.slots.order, self.draws)

    def assume(self, variant: Any) -> None:
        """The next forward runs as one of such a batch."""
        self.gate.needs, self.draws = variant

    def choose(self, logits: Tensor, rows: Tensor) -> Tensor:
        """The next tokens."""
        return draws.choose(logits, rows[1:], self.draws)

    def found(self, name: str, tokens: int) -> None:
        """Tokens of a request that began were in the cache."""
        if name in self.running:
            self.running[name].trip.tally.spent("shared", tokens)

    def keys_values(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """With those of prefixes."""
        return self.gate.keys_values(layer, keys, values)

    def deliver(self, name: str, tokens: list[int], row: Tensor | None, *, finished: bool, error: str) -> None:
        """Report new tokens."""
        ticket = self.running.get(name)
        if ticket is None:
            return
        if error:
            ticket.end(FAILED, error=Failed(f"a request for {ticket.what} failed: {error}"))
        ticket.report(tokens, row, finished=finished)
        if finished:
            self.leave(ticket, "running")
        elif ticket.closed and self.batching is not None:
            self.batching.cancel(name)

    def gone(self, name: str) -> None:
        """A cancelled request's slot is free of it."""
        if name in self.running:
            self.leave(self.running[name], "running")

    def leave(self, ticket: Ticket, where: str) -> None:
        """A request waits or runs no longer; the last of an adapter that was unloaded takes it along."""
        if self.running.pop(ticket.name, None) is not None and ticket.unused:
            self.fair.refund(ticket, ticket.unused)
        entry = ticket.entry
        if entry is not None:
            with self.lock:
                setattr(entry, where, getattr(entry, where) - 1)
            if entry.retired and not entry.waiting and not entry.running:
                self.tasks.later(lambda: self.vacate(entry))

    def retire(self, entry: Entry) -> None:
        """No name leads to an adapter any more: give it back with its last request, or now. For any thread."""

        def vacate() -> None:
            entry.retired = True
            if not entry.waiting and not entry.running:
                self.vacate(entry)

        self.run(vacate)

    def vacate(self, entry: Entry) -> None:
        """Give back all that an unloaded adapter has."""
        self.slots.leave(entry)
        self.slots.residents.trim()
        self.slots.changed = True  # packs may lie elsewhere now
        entry.prepared, entry.bytes = None, 0

    def died(self, reason: str) -> None:
        """Nothing runs any more: tell all who wait."""
        with self.lock:
            self.dead, self.batching = reason, None
            left = list(dict.fromkeys([*self.fair.clear(), *self.running.values()]))
            self.running.clear()
            self.due = Due()
        for ticket in left:
            ticket.end(FAILED, error=Stopped(f"a request for {ticket.what} was not answered: {reason}"))
            if ticket.entry is not None:
                ticket.entry.waiting = ticket.entry.running = 0
        self.tasks.take(False)
