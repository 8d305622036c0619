"""Engine: one base model, adapters of many methods, one batch.

    with Engine(model, tokenizer) as engine:
        engine.load("cards", "adapters/cards")
        handle = engine.submit("Where is my card?", adapter="cards", sampling=Sampling(max_tokens=20))
        for token in handle: ...            # or handle.result()

It rides on transformers' continuous batching (graft.serve.batching): requests of all adapters and of the bare base run together, a slot
for each token saying whose it is. Adapters wait in host memory until a request needs one of the device's slots.
"""

import itertools
import math
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch

from graft.adapter import Adapter
from graft.errors import ServeError
from graft.model.lean import Lean
from graft.model.residents import Residents
from graft.model.wiring import Wiring
from graft.serve.answers import Handle, Sink, Text, Usage
from graft.serve.batching import Batching, minor
from graft.serve.counts import Counts, Tallies, Tally, Trip
from graft.serve.fair import Fair, Queueing
from graft.serve.floor import Floor
from graft.serve.gate import Gate
from graft.serve.guest import Room
from graft.serve.library import Library
from graft.serve.prompts import Prompt, ids_of, is_chat, limits_of
from graft.serve.sampling import Sampling
from graft.serve.scoring import Scored
from graft.serve.shelf import Entry, Served, Slots
from graft.serve.ticket import Ticket
from graft.serve.turns import shortened
from graft.serve.virtual import VirtualRows
from graft.serve.voice import Voice, Voices

GREEDY = Sampling()


class Engine:
    """Serves a transformers model, in place: while it lives, the model is the engine's."""

    def __init__(
        self,
        model: Any,
        tokenizer: Any = None,
        *,
        slots: int = 8,
        room: Room | None = None,
        host_bytes: int | None = None,
        queueing: Queueing | None = None,
    ) -> None:
        """`slots` adapters are on the device at a time, and those of registered folders take `host_bytes` of host memory at most.

        `queueing` says how many may wait, and how requests of adapters take turns (graft.serve.fair).

        Raises ServeError where the installed transformers is unknown.
        """
        minor()
        if slots < 1:
            raise ServeError(f"slots is {slots}: an adapter needs one, so it must be at least 1")
        self.model, self.tokenizer, self.room = model.eval(), tokenizer, room or Room()
        self.lean = Lean(model) if (self.room.lean if self.room.lean is not None else model.device.type == "cuda") else None
        if self.lean is not None:
            self.lean.attach()
        self.wiring = Wiring(model)
        self.residents = Residents(self.wiring, slots + 1)
        self.residents.watch()
        self.rows = VirtualRows(slots + 1, model.device, model.dtype)
        self.wiring.attach()
        self.gate = Gate(model, self.wiring, self.rows)
        self.tallies = Tallies()
        self.voices = Voices(model, tokenizer)
        self.library = Library(self.residents, self.voices, self.tallies, host_bytes, lambda job: self.floor.run(job))
        self.slots = Slots(self.residents, self.rows, slots, self.library.in_host, self.tallies)
        self.floor = Floor(self.gate, self.slots, Fair(queueing or Queueing()), min(self.room.requests, self.room.batch), self.room.batch)
        self.limits = limits_of(model, self.room.cached)
        self.numbers = itertools.count()
        self.running = ExitStack()
        self.batching: Batching | None = None

    def start(self) -> "Engine":
        """Make the cache and start answering. Raises ServeError where the model cannot be run so."""
        if self.batching is None:
            if self.model.device.type == "cuda":
                torch.cuda.synchronize()  # slots filled until now were filled on another stream
            self.batching = Batching(self.model, self.floor, self.room)
            self.running.enter_context(shortened())
            self.floor.open(self.batching)
            self.batching.start()
            try:
                handle, tickets = self.tickets([0], None, Sampling(max_tokens=1), None, tally=Tally())
                self.floor.enqueue(tickets)
                handle.result()
            except ServeError as error:
                self.close()
                raise ServeError(f"{type(self.model).__name__} does not run on transformers' continuous batching: {error}") from error
        return self

    def stop(self, *, now: bool = False) -> None:
        """Answer what was asked and stop; with `now`, without answering."""
        if self.batching is None:
            return
        while not now and not self.floor.idle() and not self.floor.dead:
            threading.Event().wait(0.005)
        self.batching.stop(now=now)
        self.floor.died("the engine was stopped")
        self.batching = None
        self.running.close()

    def close(self) -> None:
        """Stop, and leave the model as it was before."""
        self.stop(now=True)
        self.gate.remove()
        self.wiring.detach()
        if self.lean is not None:
            self.lean.detach()

    def __enter__(self) -> "Engine":
        return self.start()

    def __exit__(self, *error: object) -> None:
        self.close()

    # adapters

    def register(self, name: str, folder: str | Path) -> None:
        """Make a folder's adapter known; it is read when it is first asked for. Raises ServeError where the name or folder cannot be."""
        self.library.register(name, folder)

    def load(self, name: str, source: Adapter | str | Path | None = None, *, force: bool = False) -> Served:
        """Read an adapter (a folder, one in memory, or the registered folder) into host memory, in place of any of that name.

        Requests of the one before run to their end. Raises ServeError, naming adapter and methods, and changes nothing, where it cannot be
        served or belongs to another base; `force` lets a base with the same shapes pass.
        """
        before = self.library.load(name, source, force=force)[1]
        if before is not None:
            self.floor.retire(before)
        return self.library.served(name)

    def unload(self, name: str, *, cancel: bool = False) -> None:
        """Forget an adapter. Its requests run to their end, or end now with `cancel`; with the last all its memory is given back."""
        entry = self.library.forget(name)
        if entry is not None:
            self.floor.retire(entry)
            if cancel:
                self.floor.drop([one for one in self.floor.asked() if one.entry is entry])

    def adapters(self) -> list[Served]:
        """All that are registered or loaded, by name."""
        return self.library.all()

    def voice(self, adapter: str | None) -> Voice:
        """How an adapter is spoken to: its template, ends and sampling, or the base's. Raises ServeError where there is no such adapter."""
        if adapter is None:
            return self.voices.base
        self.library.ready(adapter)
        with self.library.lock:
            return self.library.entry_of(adapter).voice

    def counts(self) -> Counts:
        """Requests, tokens and times of each adapter and of the bare base (None) since the engine was made, and what there is now."""
        waiting, running = (Counter(one.named for one in those) for those in self.floor.asked_apart())
        used = self.slots.count - len(self.slots.free)
        host = sum(entry.bytes for entry in list(self.library.entries.values()) if entry.prepared is not None)
        return Counts(self.tallies.counted(waiting, running), self.tallies.unknown, self.slots.count, used, host)

    # requests

    def submit(
        self,
        prompt: Prompt,
        adapter: str | None = None,
        sampling: Sampling = GREEDY,
        *,
        deadline: float | None = None,
        events: Sink | None = None,
    ) -> Handle:
        """Ask for an answer to a text, its ids or a chat's messages, from an adapter or (None) the bare base.

        What is not answered within `deadline` seconds fails (Expired), waiting included. `events` gets what is reported in place of
        the handle's own queue. Raises Stopped where the engine does not run, UnknownAdapter, Overloaded where too many wait, or ServeError
        where the request cannot be answered.
        """
        with self.refusals(adapter):
            if sampling.stop and self.tokenizer is None:
                raise ServeError("stop texts need a tokenizer: Engine(model, tokenizer)")
            return self.ask([self.running_ids(prompt, adapter)], adapter, sampling, None, deadline, events)[0]

    def score(self, prompts: Sequence[Prompt], adapter: str | None = None, *, alternatives: int = 0) -> list[Scored]:
        """How likely each token of each text is after those before it, with up to so many of the likeliest in its place.

        Raises ServeError as `submit` does.
        """
        with self.refusals(adapter):
            handles = self.ask([self.running_ids(prompt, adapter) for prompt in prompts], adapter, GREEDY, alternatives)
        return [handle.scored() for handle in handles]

    def submit_scoring(
        self,
        prompt: Prompt,
        adapter: str | None = None,
        *,
        alternatives: int = 0,
        deadline: float | None = None,
        events: Sink | None = None,
    ) -> Handle:
        """Ask for a text's scores without waiting for them: the handle's `scored()`, or the event's where `events` gets it."""
        with self.refusals(adapter):
            return self.ask([self.running_ids(prompt, adapter)], adapter, GREEDY, alternatives, deadline, events)[0]

    def ask(
        self,
        texts: Sequence[list[int]],
        adapter: str | None,
        sampling: Sampling,
        told: int | None,
        deadline: float | None = None,
        events: Sink | None = None,
    ) -> list[Handle]:
        """A request for each text's ids, all of them waiting now."""
        until = math.inf if deadline is None else time.monotonic() + deadline
        if adapter is not None:
            self.library.ready(adapter)
        with self.library.lock:  # so that no entry is unloaded between its finding and its first request
            entry = None if adapter is None else self.library.entry_of(adapter)
            asked = [self.tickets(ids, entry, sampling, told, until, events) for ids in texts]
            self.floor.enqueue([ticket for _, tickets in asked for ticket in tickets])
        return [handle for handle, _ in asked]

    @contextmanager
    def refusals(self, adapter: str | None) -> Iterator[None]:
        """Within it an error is a request's refusal, and counted."""
        try:
            yield
        except ServeError:
            self.tallies.refused(adapter, known=adapter is None or self.library.knows(adapter))
            raise

    def running_ids(self, prompt: Prompt, adapter: str | None) -> list[int]:
        """A prompt's ids, while the engine runs; a chat's by the adapter's own template, where it has one."""
        self.floor.check()
        return ids_of(prompt, self.tokenizer, self.voice(adapter).template if is_chat(prompt) else None)

    def tickets(
        self,
        ids: list[int],
        entry: Entry | None,
        sampling: Sampling,
        told: int | None,
        until: float = math.inf,
        events: Sink | None = None,
        tally: Tally | None = None,
    ) -> tuple[Handle, list[Ticket]]:
        """A request of an adapter, and its tickets: one for each answer, or (`told` alternatives) one for its scores."""
        virtual, name = (0, None) if entry is None else (entry.virtual, entry.name)
        self.limits.check(ids, virtual, sampling.max_tokens if told is None else 0, name or "")
        whole = [self.limits.vocabulary + number for number in range(virtual)] + ids
        ends = frozenset() if sampling.ignore_end else (self.voices.base if entry is None else entry.voice).ends
        handle = Handle(sampling, Usage(len(ids), virtual, 0), self.tokenizer, lambda: self.floor.drop(tickets), events)
        trip = Trip(tally or self.tallies.of(name), sampling.n, len(ids), virtual)
        tickets = [
            Ticket(
                str(next(self.numbers)), whole, entry, sampling, seed, index, handle, ends,
                Text(self.tokenizer, sampling.stop) if sampling.stop else None, trip, told, until=until,
            )
            for index, seed in enumerate(sampling.seeds())
        ]  # fmt: skip
        return handle, tickets
