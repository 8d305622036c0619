"""The library: all adapters that have a name, in a folder or in host memory.

A registered folder is read when it is first asked for; its forms are computed once and wait in host memory, within a number of bytes that
the one used longest ago makes room for. What was loaded from memory cannot be read again, and stays.
"""

import itertools
import math
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from graft import formats
from graft.adapter import Adapter
from graft.errors import GraftError, ServeError, UnknownAdapter
from graft.forms import is_idle
from graft.model.ground import ground
from graft.model.residents import Prepared, Residents
from graft.serve.counts import Tallies
from graft.serve.shelf import Entry, Served, check_name, check_servable, digest_of, lean, length_of, methods_of
from graft.serve.voice import Voice, Voices

DOORS = 64


class Library:
    """Adapters by name. Any thread may call it, but `in_host`, which is for the engine's; that one never waits for `lock`."""

    def __init__(
        self, residents: Residents, voices: Voices, tallies: Tallies, host_bytes: int | None, run: Callable[[Callable[[], Any]], Any]
    ) -> None:
        """`run` does a job while no batch runs; folders' forms take `host_bytes` of host memory at most.

        What is short and walks over the model's modules is done so; forms are computed and copied while batches run, by a thread that waits
        for no other.
        """
        self.residents, self.voices, self.tallies, self.host_bytes, self.run = residents, voices, tallies, host_bytes, run
        self.ground = ground(residents.model)
        self.folders: dict[str, Path] = {}
        self.entries: dict[str, Entry] = {}
        self.lock, self.tiers = threading.RLock(), threading.Lock()
        self.worker = ThreadPoolExecutor(1, "graft-forms")
        self.doors = [threading.Lock() for _ in range(DOORS)]
        self.uses = itertools.count(1)

    def register(self, name: str, folder: str | Path) -> None:
        """Make a folder's adapter known. Raises ServeError where the name or folder cannot be."""
        check_name(name)
        if not (Path(folder) / "adapter_config.json").is_file():
            raise ServeError(f"the adapter {name!r} cannot be registered: there is no adapter_config.json in {folder}")
        with self.lock:
            if self.knows(name):
                raise ServeError(f"the adapter name {name!r} is taken: unload it first, or choose another")
            self.folders[name] = Path(folder)
            self.residents.expected = len(self.names())

    def load(self, name: str, source: Adapter | str | Path | None = None, *, force: bool = False) -> tuple[Entry, Entry | None]:
        """Read an adapter into host memory: its entry, and the one that had the name before. Raises ServeError, changing nothing.

        Only loads of one name wait for each other: requests go on meanwhile.
        """
        check_name(name)
        with self.door(name):
            return self.loaded(name, source, force=force)

    def loaded(self, name: str, source: Adapter | str | Path | None, *, force: bool) -> tuple[Entry, Entry | None]:
        """The same, behind the name's door."""
        began = time.monotonic()
        given = self.folder_of(name) if source is None else source
        adapter, voice = (given, self.voices.base) if isinstance(given, Adapter) else self.read(name, given)
        entry = self.enter(name, adapter, voice, force=force)
        entry.used = next(self.uses)
        with self.lock:
            if source is None and self.folders.get(name) != given:
                raise UnknownAdapter(f"the adapter {name!r} was unloaded while it was read")
            if not isinstance(given, Adapter):
                entry.folder = self.folders[name] = Path(given)
            before, self.entries[name] = self.entries.get(name), entry
            self.residents.expected = len(self.names())
        self.tallies.of(name).took("load", time.monotonic() - began)
        self.make_room(entry)
        return entry, before

    def folder_of(self, name: str) -> Path:
        """The folder that is registered by a name."""
        with self.lock:
            if name not in self.folders:
                raise UnknownAdapter(f"no adapter {name!r} is registered: there are {self.known()}")
            return self.folders[name]

    def door(self, name: str) -> threading.Lock:
        """A lock for what takes long with one name."""
        return self.doors[hash(name) % DOORS]

    def forget(self, name: str) -> Entry | None:
        """Let no name lead to an adapter any more; its entry, if it was read. Raises ServeError where there is none."""
        with self.lock:
            if not self.knows(name):
                raise UnknownAdapter(f"no adapter {name!r} is here to unload: there are {self.known()}")
            self.folders.pop(name, None)
            return self.entries.pop(name, None)

    def ready(self, name: str) -> None:
        """See to it, while others go on, that an adapter is in host memory. Raises ServeError where it cannot be."""
        entry = self.entries.get(name)
        if entry is not None and (entry.prepared is not None or entry.slot is not None):
            return
        with self.door(name):
            entry = self.entries.get(name)
            if entry is None:
                if name in self.folders:
                    self.loaded(name, None, force=False)
            elif entry.prepared is None and entry.slot is None:
                self.bring(entry)

    def entry_of(self, name: str) -> Entry:
        """The entry of a name that is ready. Raises UnknownAdapter where there is none. Under `lock`, until a request of it is enqueued."""
        if name not in self.entries:
            raise UnknownAdapter(f"no adapter {name!r} is served here: there are {self.known()}")
        entry = self.entries[name]
        entry.used = next(self.uses)
        return entry

    def knows(self, name: str) -> bool:
        """Whether the name is registered or loaded."""
        return name in self.folders or name in self.entries

    def all(self) -> list[Served]:
        """All that are registered or loaded, by name."""
        with self.lock:
            return [self.served(name) for name in self.names()]

    def served(self, name: str) -> Served:
        """What is known of one."""
        entry = self.entries.get(name)
        if entry is None:
            return Served(name, "", 0, 0, None, 0)
        return Served(name, entry.methods, entry.virtual, entry.bytes, entry.slot, entry.running + entry.waiting)

    def names(self) -> list[str]:
        """All that are registered or loaded."""
        return sorted({*self.folders, *self.entries})

    def known(self) -> str:
        """The names, in words."""
        names = self.names()
        return ", ".join(names[:20]) + (f" and {len(names) - 20} more" if len(names) > 20 else "") if names else "none"

    def read(self, name: str, folder: str | Path) -> tuple[Adapter, Voice]:
        """A folder's adapter, and how it is spoken to."""
        try:
            return formats.read(Path(folder), self.ground), self.voices.of(Path(folder))
        except GraftError as error:
            raise ServeError(f"the adapter {name!r} cannot be served: {error}") from error

    def enter(self, name: str, adapter: Adapter, voice: Voice, *, force: bool) -> Entry:
        """An adapter, checked, its forms computed."""
        methods = methods_of(adapter)
        what = f"the adapter {name!r} ({methods})"
        check_servable(adapter, what, self.residents.model)

        def check() -> None:
            if not force:
                self.residents.belongs(adapter, what)
            self.residents.check(adapter)

        try:
            self.run(check)
            prepared = self.prepared(adapter)
        except GraftError as error:
            raise ServeError(f"the adapter {name!r} ({methods}) cannot be served: {error}") from error
        if prepared.virtual is None and all(is_idle(form) for forms in prepared.plan.values() for _, form in forms):
            raise ServeError(f"{what} changes nothing: it is as it was before any training, and the base answers the same")
        virtual = prepared.virtual
        size = sum(value.numel() * value.element_size() for value in prepared.tensors())
        unshifted = virtual is not None and not virtual.shift
        return Entry(name, methods, digest_of(adapter), length_of(virtual), voice, prepared, bytes=size, unshifted=unshifted)

    def prepared(self, adapter: Adapter) -> Prepared:
        """An adapter's forms, as they wait in host memory; by one thread for all, whose memory the next load uses again."""

        @torch.inference_mode(False)
        @torch.no_grad()
        def compute() -> Prepared:
            return lean(self.residents.prepare(adapter), self.residents.model.dtype)

        return self.worker.submit(compute).result()

    def make_room(self, but: Entry) -> None:
        """Keep what can be read again within the host's bytes; the one used longest ago goes first."""
        with self.tiers:
            held = self.held()
            spare = math.inf if self.host_bytes is None else self.host_bytes - sum(one.bytes for one in held)
            for entry in sorted(held, key=lambda one: one.used):
                if spare < 0 and entry is not but:
                    entry.prepared, spare = None, spare + entry.bytes
                    self.tallies.of(entry.name).evicted("host")

    def held(self) -> list[Entry]:
        """Those whose forms are in host memory and can be read again."""
        return [one for one in list(self.entries.values()) if one.prepared is not None and one.folder is not None]

    def in_host(self, entry: Entry) -> Prepared:
        """An adapter's forms in host memory, read again where they had to leave it."""
        prepared = entry.prepared  # once: another thread may make room at any time
        return self.bring(entry) if prepared is None else prepared

    def bring(self, entry: Entry) -> Prepared:
        """Read forms again that had to leave host memory. Raises ServeError where the folder holds something else now."""
        if entry.folder is None:
            raise ServeError(f"the adapter {entry.name!r} was unloaded")
        began = time.monotonic()
        adapter = self.read(entry.name, entry.folder)[0]
        if digest_of(adapter) != entry.digest:
            what = f"the adapter {entry.name!r} ({entry.methods})"
            raise ServeError(f"what lies in the folder of {what} is not what was loaded: load it again")
        entry.prepared = prepared = self.prepared(adapter)
        self.tallies.of(entry.name).took("load", time.monotonic() - began)
        self.make_room(entry)
        return prepared
