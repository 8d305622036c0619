"""Adapted: runs adapters inside a transformers model, attached in place.

The model stays the object that you call, generate with, and give to Trainer; nothing wraps it. One adapter is live: its tensors are
parameters in the model and its forms are computed as it trains. `add` loads others beside it, and `route` says which one each row
of the batch wants; slot 0 is the bare base.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn as nn

from graft import adapter as adapters
from graft import formats
from graft.adapter import Adapter
from graft.errors import AdapterError
from graft.forms import VirtualTokens
from graft.method import Finishing, Method, Tensors, makes, usable
from graft.model import belonging, families, speech
from graft.model.base import ModuleBase, fingerprint, master_dtype
from graft.model.fold import why_not
from graft.model.fused import Fused, Ran
from graft.model.ground import ground
from graft.model.routes import Routes
from graft.model.slots import Slot, Station, borrows
from graft.model.virtual_tokens import Doorway, taken
from graft.model.wiring import Wiring
from graft.site import Site


def adapt(model: Any, method: Method | Sequence[Method], *, tokenizer: Any = None, seed: int = 0) -> "Adapted":
    """Freeze a transformers model and attach a fresh adapter of one method, or of several as its parts.

    `tokenizer` is needed by methods that start from text; `seed` decides the initial values. Raises TargetError where a method
    finds no place in the model, AdapterError where parts cannot be combined.
    """
    methods = [usable(one) for one in (method if isinstance(method, Sequence) and not isinstance(method, str) else [method])]
    if not methods:
        raise AdapterError("no method was given: give one or several, such as graft.LoRA(r=8)")
    wiring = Wiring(model)
    parts = adapters.fresh(methods, families.sites(model), lambda site: ModuleBase(model, site, tokenizer), seed)
    whole = adapters.replaced(parts)
    notes = belonging.portrait(model, whole)
    return Adapted(wiring, Adapter(parts, fingerprint(model, whole), str(model.config.name_or_path), notes))


class Adapted:
    """A model with adapters attached. `model` is the same object as before, its base frozen."""

    def __init__(self, wiring: Wiring, adapter: Adapter) -> None:
        self.wiring, self.source = wiring, adapter
        self.model = wiring.model
        self.master = master_dtype(self.model)
        self.held: list[list[tuple[Station, Slot | Doorway]]] = []
        self.undo: object = None  # what a merge replaced, while one is merged
        for number, (method, tensors) in enumerate(adapter.parts):
            self.held.append([self.hold(number, method, site, values) for site, values in tensors.items()])
        wiring.follow()
        wiring.attach()
        self.routes = Routes(wiring)
        self.fused: Fused | None = None

    def hold(self, number: int, method: Method, site: Site, values: Tensors) -> tuple[Station, Slot | Doorway]:
        """Give one part's tensors at one site their place."""
        adapters.check_shapes(method, site, values)
        base, dtype = ModuleBase(self.model, site), self.master
        if makes(method) is VirtualTokens:
            door = self.wiring.door()
            return door.hold(method, site, base, values, dtype), door
        slot = self.wiring.slot_for(site, borrows=borrows(method, site, base, values))
        return slot.hold(number, method, site, base, values, dtype), slot

    def detach(self) -> Any:
        """Take everything off again; the model is what it was before, to the bit. Returns it; a second time nothing is left to do."""
        self.refuse_merged("detached")
        if self.wiring.attached:
            self.unfuse()
            self.route(None)
            self.wiring.detach()
        return self.model

    def refuse_merged(self, done: str) -> None:
        """Raise AdapterError while an adapter is merged: all that is known of the others is about the bare base."""
        if self.undo is not None:
            raise AdapterError(f"nothing can be {done} while an adapter is merged into the base's weights: graft.unmerge(adapted) first")

    # how fast it runs

    def fuse(self, *, strict: bool = False, layout: str = "auto") -> list[Ran]:
        """Run low-rank branches and the products they are added to as one, where that is possible; says what runs how.

        The same to a rounding, for training above all; it holds until `unfuse`. The base's weights keep their values and may move into
        shared memory: nothing else may hold views of them. `layout` is "auto", "pitched" or "stacked" (graft.kernels.affine). Raises
        AdapterError with `strict` where a low-rank branch cannot be fused, and changes nothing.
        """
        self.refuse_merged("fused")
        self.unfuse()
        fused = Fused(self.wiring, layout)
        try:
            if strict:
                fused.check()
        except AdapterError:
            fused.release()
            raise
        self.fused = fused
        return fused.ran

    def unfuse(self) -> None:
        """Undo `fuse`: every weight is where a checkpoint would have put it, and its bytes are what they were."""
        if self.fused is not None:
            self.fused.release()
            self.fused = None

    def changed(self) -> None:
        """Say that the trained tensors have changed. Needed only where nothing else tells: a step was played from a recorded CUDA graph, in
        which no module's code runs, and the optimizer left no version on them, as fused ones do not.
        """
        for holder in (*self.wiring.slots.values(), self.wiring.doorway, self.fused):
            if holder is not None:
                holder.forget()

    # what it is made of

    def parameters(self) -> list[nn.Parameter]:
        """The trained parameters, in master precision."""
        found = [value for part in self.held for station, holder in part for value in station.tensors(holder).values()]
        return [value for value in found if isinstance(value, nn.Parameter)]

    @property
    def sites(self) -> list[tuple[Method, Site]]:
        """Where each method acts."""
        return [(station.method, station.site) for part in self.held for station, _ in part]

    @torch.no_grad()
    def adapter(self) -> Adapter:
        """What is stored: plain tensors, finished (a prefix without its MLP)."""
        parts = []
        for part in self.held:
            method, sites = part[0][0].method, {}
            for station, holder in part:
                live = {name: value.detach().clone() for name, value in station.tensors(holder).items()}
                if isinstance(station.method, Finishing):
                    method, live = station.method.finish(live, station.base)
                sites[station.site] = live
            parts.append((method, sites))
        return Adapter(tuple(parts), self.source.fingerprint, self.source.base, self.source.notes)

    def save(self, folder: str | Path, format: str = "graft", *, tokenizer: Any = None) -> None:
        """Write the adapter's folder: whole or not at all. `format` is `graft` (HF PEFT's files where PEFT has the method) or
        `adapterhub`; AdapterError where that has no exact form for the adapter. The model's generation settings and the tokenizer's chat
        template go with it.
        """
        self.refuse_merged("saved")
        formats.save(self.adapter(), Path(folder), ground(self.model), format, speech.files(self.model, tokenizer))

    @property
    def context_positions(self) -> int:
        """Virtual tokens: positions of the model's context that the adapter takes."""
        return taken(self.model)

    @property
    def mergeable(self) -> str:
        """The reason why the adapter cannot be merged into the base's weights; empty if it can."""
        return why_not({"": [(station, station.tensors(holder)) for part in self.held for station, holder in part]})

    # several adapters

    def add(self, name: str, adapter: Adapter | str | Path, *, replace: bool = False, force: bool = False) -> None:
        """Load another adapter of the same base (or the one in a folder) beside the live one, under a name for `route`.

        With `replace` it takes the place of one of that name; `force` lets one of another base with the same shapes pass. Raises
        AdapterError, and changes nothing, where it does not fit.
        """
        self.refuse_merged("added")
        what = f"the adapter {name!r}" if isinstance(adapter, Adapter) else f"the adapter in {adapter}"
        found = adapter if isinstance(adapter, Adapter) else formats.read(Path(adapter), ground(self.model))
        if not force:
            self.routes.residents.belongs(found, what)
        self.routes.add(name, found, replace=replace, what=what)

    def remove(self, name: str) -> None:
        """Take an added adapter out again. Raises AdapterError if there is none of that name, or rows are routed to it."""
        self.refuse_merged("removed")
        self.routes.remove(name)

    @property
    def names(self) -> list[str]:
        """The names that rows can be routed to: "live", and those given to `add`."""
        return self.routes.names

    def route(self, rows: Sequence[str | None] | None) -> None:
        """Say which adapter each row of the coming batches wants: a name given to `add`, "live", or None for the bare base.

        `route(None)` gives all rows back to the live adapter. With more rows in a batch than were named (beams), each name covers
        as many rows in turn.
        """
        self.refuse_merged("routed")
        self.routes.route(rows, self.adapter)
