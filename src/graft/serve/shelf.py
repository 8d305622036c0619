"""The shelf: adapters by name, in three tiers: a folder, host memory, a slot on the device.

What is served is content: an entry's digest is the hash of all that its adapter holds, salts what its requests cache, and never changes. A
name that is loaded again gets another entry, while requests of the one before run to their end. Forms are computed once, when an adapter
comes into host memory; to put them into a slot is copying. Slots are few, and the one that was used longest ago is given to the next.
"""

import hashlib
import json
import re
import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from graft.adapter import Adapter
from graft.errors import ServeError
from graft.forms import Affine, Replacement, VirtualTokens, apart
from graft.method import config, makes
from graft.model.digest import of_tensor
from graft.model.residents import Prepared, Residents
from graft.pack import as_held
from graft.serve.counts import Tallies
from graft.serve.virtual import VirtualRows
from graft.serve.voice import Voice

HASHING = ThreadPoolExecutor(4, "graft-digest")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


@dataclass(eq=False)
class Entry:
    """One adapter as it is served. `waiting`, `running`: its requests; `retired`: no name leads to it any more."""

    name: str
    methods: str
    digest: bytes
    virtual: int
    voice: Voice
    prepared: Prepared | None
    folder: Path | None = None
    bytes: int = 0
    slot: int | None = None
    waiting: int = 0
    running: int = 0
    retired: bool = False
    unshifted: bool = False
    used: int = 0


@dataclass(frozen=True)
class Served:
    """What is known of an adapter: `methods` and `virtual` tokens once it was read; `slot` while it is on the device."""

    name: str
    methods: str
    virtual: int
    bytes: int
    slot: int | None
    running: int


def digest_of(adapter: Adapter) -> bytes:
    """SHA-256 over methods, places and the values' own digests, which threads take side by side."""
    found = hashlib.sha256()
    for method, _ in adapter.parts:
        found.update(json.dumps(config(method), sort_keys=True).encode())
    walked = adapter.walk()
    for (number, name, _), own in zip(walked, HASHING.map(lambda one: of_tensor(one[1], one[2]), walked), strict=True):
        found.update(f"{number} {name} {own}".encode())
    return found.digest()


def methods_of(adapter: Adapter) -> str:
    """The methods' names."""
    return " + ".join(method.kind for method, _ in adapter.parts)


def check_servable(adapter: Adapter, what: str, model: Any) -> None:
    """Raise ServeError, naming adapter and method, where an adapter cannot share a batch."""
    for method, _ in adapter.parts:
        if makes(method) is Replacement:
            raise ServeError(
                f"{what} trains whole modules ({method.kind}), which cannot share a batch with others: graft.merge makes a model of it"
            )
        unshifted = makes(method) is VirtualTokens and not getattr(method, "shift", True)
        if unshifted and getattr(model.config.get_text_config(), "sliding_window", None) is not None:
            raise ServeError(f"{what} has a prefix without positions, which pages of a sliding window cannot hold")
        if getattr(method, "into", "words") != "words":
            raise ServeError(f"{what} has a prompt for the layers of an encoder, which generates nothing")


def lean(prepared: Prepared, dtype: torch.dtype) -> Prepared:
    """What was prepared as it waits in host memory: branches and shifts in the model's dtype, as slots hold them."""

    def cut(form: Affine) -> Affine:
        form = apart(form)
        changed: dict[str, Any] = {name: as_held(name, value, dtype) for name, value in form.tensors().items()}
        return replace(form, **changed)

    plan = {path: [(source, cut(form)) for source, form in forms] for path, forms in prepared.plan.items()}
    return Prepared(plan, prepared.twins, prepared.virtual).mapped(lambda value: value.detach().cpu())


def length_of(virtual: VirtualTokens | None) -> int:
    """The number of virtual tokens."""
    if virtual is None:
        return 0
    return virtual.kv.shape[2] if virtual.kv is not None else 0 if virtual.embeds is None else len(virtual.embeds)


class Slots:
    """The device's slots, 1 to `count`; slot 0 is the bare base. For the engine's thread."""

    def __init__(self, residents: Residents, rows: VirtualRows, count: int, read: Callable[[Entry], Prepared], tallies: Tallies) -> None:
        self.residents, self.rows, self.count, self.read, self.tallies = residents, rows, count, read, tallies
        self.free = list(range(1, count + 1))
        self.order: OrderedDict[Entry, None] = OrderedDict()  # the one used longest ago first
        self.evictions, self.changed = 0, False  # changed: whether any was filled or emptied since that was last asked

    def take(self, entry: Entry, kept: Callable[[Entry], bool] = lambda entry: False) -> bool:
        """Give an entry a slot, if it has none; False where every slot is in use, or `kept` for what waits for it."""
        if entry.slot is None:
            if not self.free:
                able = [other for other in self.order if not other.running and not kept(other)]
                idle = min(able, key=lambda other: other.waiting > 0, default=None)  # of equals the one used longest ago
                if idle is None:
                    return False
                self.leave(idle)
                self.evictions += 1
                self.tallies.of(idle.name).evicted("slot")
            self.place(entry, self.read(entry))
        self.order[entry] = None
        self.order.move_to_end(entry)
        return True

    def place(self, entry: Entry, prepared: Prepared) -> None:
        """Copy an entry's forms into a free slot; where that fails, as for want of memory, the slot is free again."""
        began, device = time.monotonic(), self.residents.model.device
        entry.slot, self.changed = self.free.pop(0), True
        try:
            here = prepared.mapped(lambda value: value.to(device))
            self.residents.put(entry.slot, here)
            if here.virtual is not None:
                self.rows.load(entry.slot, here.virtual)
        except BaseException:
            self.leave(entry)
            raise
        self.tallies.of(entry.name).took("place", time.monotonic() - began)

    def leave(self, entry: Entry) -> None:
        """Empty an entry's slot."""
        if entry.slot is not None:
            self.residents.empty(entry.slot)
            self.rows.free(entry.slot)
            self.free.insert(0, entry.slot)
            entry.slot, self.changed = None, True
            self.order.pop(entry, None)

    def state(self) -> tuple[object, ...]:
        """What a recorded graph depends on."""
        return self.residents.state(), self.rows.state()


def check_name(name: str) -> None:
    """Raise ServeError unless a name is letters, digits, '.', '_' and '-'."""
    if not NAME.fullmatch(name):
        raise ServeError(f"{name[:200]!r} is no name for an adapter: up to 128 letters, digits, '.', '_' and '-', the first no sign")
