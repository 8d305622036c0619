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
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from graft import formats
from graft.adapter import Adapter
from graft.errors import GraftError, ServeError
from graft.model.ground import ground
from graft.model.residents import Prepared, Residents
from graft.model.wiring import Wiring
from graft.serve.answers import Handle, Text, Usage
from graft.serve.batching import Batching, minor
from graft.serve.floor import Floor
from graft.serve.gate import Gate
from graft.serve.guest import Room
from graft.serve.prompts import Prompt, ids_of, limits_of
from graft.serve.sampling import Sampling
from graft.serve.scoring import Scored
from graft.serve.shelf import Entry, Served, Slots, check_name, check_servable, digest_of, lean, length_of, methods_of
from graft.serve.ticket import Ticket
from graft.serve.virtual import VirtualRows

GREEDY = Sampling()


class Engine:
    """Serves a transformers model, in place: while it lives, the model is the engine's."""

    def __init__(
        self, model: Any, tokenizer: Any = None, *, slots: int = 8, room: Room | None = None, host_bytes: int | None = None
    ) -> None:
        """`slots` adapters are on the device at a time, and those of registered folders take `host_bytes` of host memory at most.

        Raises ServeError where the installed transformers is unknown.
        """
        minor()
        self.model, self.tokenizer, self.room, self.host_bytes = model.eval(), tokenizer, room or Room(), host_bytes
        self.wiring = Wiring(model)
        self.ground = ground(model)
        self.residents = Residents(self.wiring, slots + 1)
        self.rows = VirtualRows(slots + 1, model.device, model.dtype)
        self.wiring.attach()
        self.gate = Gate(model, self.wiring.routing, self.rows)
        self.slots = Slots(self.residents, self.rows, slots, self.in_host)
        self.floor = Floor(self.gate, self.slots, min(self.room.requests, self.room.batch), self.room.batch)
        self.folders: dict[str, Path] = {}
        self.entries: dict[str, Entry] = {}
        self.limits = limits_of(model, tokenizer, self.room.cached)
        self.lock, self.tiers = (
            threading.RLock(),
            threading.Lock(),
        )  # the second for the engine's thread too, which never waits for the first
        self.numbers = itertools.count()
        self.batching: Batching | None = None

    def start(self) -> "Engine":
        """Make the cache and start answering. Raises ServeError where the model cannot be run so."""
        if self.batching is None:
            if self.model.device.type == "cuda":
                torch.cuda.synchronize()  # slots filled until now were filled on another stream
            self.batching = Batching(self.model, self.floor, self.room)
            self.floor.dead, self.floor.batching = "", self.batching
            self.batching.start()
            try:
                self.submit([0], sampling=Sampling(max_tokens=1)).result()
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

    def close(self) -> None:
        """Stop, and leave the model as it was before."""
        self.stop(now=True)
        self.gate.remove()
        self.wiring.detach()

    def __enter__(self) -> "Engine":
        return self.start()

    def __exit__(self, *error: object) -> None:
        self.close()

    # adapters

    def register(self, name: str, folder: str | Path) -> None:
        """Make a folder's adapter known; it is read when it is first asked for. Raises ServeError where the name or folder cannot be."""
        check_name(name)
        if not (Path(folder) / "adapter_config.json").is_file():
            raise ServeError(f"the adapter {name!r} cannot be registered: there is no adapter_config.json in {folder}")
        with self.lock:
            if name in self.folders or name in self.entries:
                raise ServeError(f"the adapter name {name!r} is taken: unload it first, or choose another")
            self.folders[name] = Path(folder)

    def load(self, name: str, source: Adapter | str | Path | None = None, *, force: bool = False) -> Served:
        """Read an adapter (a folder, one in memory, or the registered folder) into host memory, in place of any of that name.

        Requests of the one before run to their end. Raises ServeError, naming adapter and methods, and changes nothing, where it cannot be
        served or belongs to another base; `force` lets a base with the same shapes pass.
        """
        check_name(name)
        with self.lock:
            if source is None and name not in self.folders:
                raise ServeError(f"no adapter {name!r} is registered: there are {self.known()}")
            given = self.folders[name] if source is None else source
            adapter = given if isinstance(given, Adapter) else self.read(name, given)
            entry = self.enter(name, adapter, force=force)
            if not isinstance(given, Adapter):
                entry.folder = self.folders[name] = Path(given)
            before, self.entries[name] = self.entries.get(name), entry
        if before is not None:
            self.retire(before)
        self.make_room(entry)
        return self.served(name)

    def unload(self, name: str, *, cancel: bool = False) -> None:
        """Forget an adapter. Its requests run to their end, or end now with `cancel`; with the last all its memory is given back."""
        with self.lock:
            if name not in self.folders and name not in self.entries:
                raise ServeError(f"no adapter {name!r} is here to unload: there are {self.known()}")
            self.folders.pop(name, None)
            entry = self.entries.pop(name, None)
        if entry is not None:
            self.retire(entry)
            if cancel:
                self.floor.drop([one for one in self.floor.asked() if one.entry is entry])

    def adapters(self) -> list[Served]:
        """All that are registered or loaded, by name."""
        with self.lock:
            return [self.served(name) for name in sorted({*self.folders, *self.entries})]

    def served(self, name: str) -> Served:
        """What is known of one."""
        entry = self.entries.get(name)
        if entry is None:
            return Served(name, "", 0, 0, None, 0)
        return Served(name, entry.methods, entry.virtual, entry.bytes, entry.slot, entry.running + entry.waiting)

    def known(self) -> str:
        """The names, in words."""
        names = sorted({*self.folders, *self.entries})
        return ", ".join(names[:20]) + (f" and {len(names) - 20} more" if len(names) > 20 else "") if names else "none"

    def read(self, name: str, folder: str | Path) -> Adapter:
        """A folder's adapter."""
        try:
            return formats.read(Path(folder), self.ground)
        except GraftError as error:
            raise ServeError(f"the adapter {name!r} cannot be served: {error}") from error

    def enter(self, name: str, adapter: Adapter, *, force: bool) -> Entry:
        """An adapter, checked, its forms computed."""
        methods = methods_of(adapter)
        what = f"the adapter {name!r} ({methods})"
        check_servable(adapter, what, self.model)

        def prepare() -> Prepared:
            if not force:
                self.residents.belongs(adapter, what)
            self.residents.check(adapter)
            return lean(self.residents.prepare(adapter), self.model.dtype)

        try:
            prepared: Prepared = self.floor.run(prepare)
        except GraftError as error:
            raise ServeError(f"the adapter {name!r} ({methods}) cannot be served: {error}") from error
        virtual = prepared.virtual
        size = sum(value.numel() * value.element_size() for value in prepared.tensors())
        unshifted = virtual is not None and not virtual.shift
        return Entry(name, methods, digest_of(adapter), length_of(virtual), prepared, bytes=size, unshifted=unshifted)

    def retire(self, entry: Entry) -> None:
        """No name leads to it any more: give it back with its last request, or now."""

        def vacate() -> None:
            entry.retired = True
            if not entry.waiting and not entry.running:
                self.floor.vacate(entry)

        self.floor.run(vacate)

    def make_room(self, but: Entry) -> None:
        """Keep what can be read again within the host's bytes; the one used longest ago goes first."""
        with self.tiers:
            held = [one for one in list(self.entries.values()) if one.prepared is not None and one.folder is not None]
            spare = math.inf if self.host_bytes is None else self.host_bytes - sum(one.bytes for one in held)
            for entry in sorted(held, key=lambda one: one.used):
                if spare < 0 and entry is not but:
                    entry.prepared, spare = None, spare + entry.bytes

    def in_host(self, entry: Entry) -> Prepared:
        """An adapter's forms in host memory, read again where they had to leave it. For the engine's thread."""
        if entry.prepared is None:
            if entry.folder is None:
                raise ServeError("it was unloaded")
            adapter = self.read(entry.name, entry.folder)
            if digest_of(adapter) != entry.digest:
                raise ServeError(f"what lies in {entry.folder} is not what was loaded: load {entry.name!r} again")
            entry.prepared = lean(self.residents.prepare(adapter), self.model.dtype)
            self.make_room(entry)
        return entry.prepared

    # requests

    def submit(self, prompt: Prompt, adapter: str | None = None, sampling: Sampling = GREEDY) -> Handle:
        """Ask for an answer to a text, its ids or a chat's messages, from an adapter or (None) the bare base.

        Raises ServeError where the engine does not run, no adapter has the name, or the request cannot fit.
        """
        if sampling.stop and self.tokenizer is None:
            raise ServeError("stop texts need a tokenizer: Engine(model, tokenizer)")
        ids = self.running_ids(prompt)
        with self.lock:
            entry = self.entry_of(adapter)
            handle = Handle(sampling, Usage(len(ids), virtual_of(entry), 0), self.tokenizer, lambda: self.floor.drop(tickets))
            whole, ends = self.whole(ids, entry, sampling.max_tokens), frozenset() if sampling.ignore_end else self.limits.ends
            tickets = [
                Ticket(
                    str(next(self.numbers)), whole, entry, sampling, seed, index, handle, ends,
                    Text(self.tokenizer, sampling.stop) if sampling.stop else None,
                )
                for index, seed in enumerate(sampling.seeds())
            ]  # fmt: skip
            self.floor.enqueue(tickets)
        return handle

    def score(self, prompts: Sequence[Prompt], adapter: str | None = None, *, alternatives: int = 0) -> list[Scored]:
        """How likely each token of each text is after those before it, with up to so many of the likeliest in its place.

        Raises ServeError as `submit` does.
        """
        texts = [self.running_ids(prompt) for prompt in prompts]
        with self.lock:
            entry = self.entry_of(adapter)
            tickets = [
                Ticket(
                    str(next(self.numbers)), self.whole(ids, entry, 0), entry, GREEDY, 0, 0,
                    Handle(GREEDY, Usage(len(ids), virtual_of(entry), 0), None, lambda: None), frozenset(), None, alternatives,
                )
                for ids in texts
            ]  # fmt: skip
            self.floor.enqueue(tickets)
        return [ticket.handle.scored() for ticket in tickets]

    def running_ids(self, prompt: Prompt) -> list[int]:
        """A prompt's ids, while the engine runs."""
        if self.batching is None or self.floor.dead:
            raise ServeError(f"the engine does not run: {self.floor.dead or 'start() it'}")
        return ids_of(prompt, self.tokenizer)

    def whole(self, ids: list[int], entry: Entry | None, new: int) -> list[int]:
        """Ids with those of the adapter's virtual tokens before them, where so many new ones fit behind."""
        virtual = virtual_of(entry)
        self.limits.check(ids, virtual, new, "" if entry is None else entry.name)
        return [self.limits.vocabulary + number for number in range(virtual)] + ids

    def entry_of(self, adapter: str | None) -> Entry | None:
        """The entry of a name, read now where it is only registered."""
        if adapter is None:
            return None
        if adapter not in self.entries:
            if adapter not in self.folders:
                raise ServeError(f"no adapter {adapter!r} is served here: there are {self.known()}")
            self.load(adapter)
        entry = self.entries[adapter]
        entry.used = next(self.numbers)
        return entry


def virtual_of(entry: Entry | None) -> int:
    """The number of virtual tokens before a text."""
    return 0 if entry is None else entry.virtual
