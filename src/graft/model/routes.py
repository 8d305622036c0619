"""Routes: several adapters of any method resident in one model, and the slot that each row wants.

Each adapter's forms are computed once and loaded into the packs of the modules they touch; virtual tokens are kept as keys and
values (a prompt's are computed once, under its own adapter's other parts). Slot 0 is the bare base.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn as nn
from torch import Tensor

from graft import adapter as adapters
from graft.adapter import Adapter
from graft.errors import AdapterError
from graft.forms import Affine, Replacement, VirtualTokens
from graft.method import Tensors, makes
from graft.model.base import ModuleBase, master_dtype
from graft.model.slots import Station, borrows, ordered
from graft.model.twin import shared, twin_of
from graft.model.wiring import Wiring
from graft.pack import Pack

LIVE = "live"
Stations = dict[str, list[tuple[Station, Tensors]]]
Forms = list[tuple[str, Affine]]


class Routes:
    """The adapters loaded beside the live one, by name."""

    def __init__(self, wiring: Wiring) -> None:
        self.wiring = wiring
        self.model = wiring.model
        self.loaded: dict[str, Adapter] = {}
        self.state: object = None

    def add(self, name: str, adapter: Adapter) -> None:
        """Keep an adapter for routing. Raises AdapterError on a name taken or a tensor that does not fit."""
        if name in self.loaded or name == LIVE:
            raise AdapterError(f"adapter name {name!r} is taken: choose another")
        for method, sites in adapter.parts:
            for site, tensors in sites.items():
                adapters.check_shapes(method, site, tensors)
        self.loaded[name] = adapter
        self.state = None

    def numbers(self, rows: Sequence[str | None], live: Callable[[], Adapter]) -> Tensor:
        """The slots [rows] of the names, with every adapter in its packs; `live` gives the live adapter as it is now."""
        names = [LIVE, *self.loaded]
        for name in rows:
            if name is not None and name not in names:
                raise AdapterError(f"no adapter is called {name!r}: there are {', '.join(names)}")
        state = tuple((value.data_ptr(), value._version) for value in self.model.parameters() if value.requires_grad)
        if self.state != state or self.wiring.routing.stale:
            self.load([live(), *self.loaded.values()])
            self.state, self.wiring.routing.stale = state, False
        return torch.tensor([0 if name is None else names.index(name) + 1 for name in rows], device=self.model.device)

    @torch.no_grad()
    def load(self, everyone: list[Adapter]) -> None:
        """Compute every adapter's forms and fill packs that just hold them."""
        chosen = [self.stations(adapter) for adapter in everyone]
        for here in [here for paths in chosen for here in paths.values()]:
            for station, tensors in here:
                self.wiring.slot_for(station.site, borrows=borrows(station.method, station.site, station.base, tensors))
        twins = [self.twins(paths) for paths in chosen]
        plans = [self.plan(paths) for paths in chosen]
        for path in {path for number in twins for path in number} | set(self.wiring.slots):
            slot = self.wiring.slot(path)
            slot.unload()
            packs = self.packs(path, [plan.get(path, []) for plan in plans])
            for number, (plan, made) in enumerate(zip(plans, twins, strict=True), 1):
                slot.load(number, plan.get(path, []), made.get(path), packs)
        found = {number: self.keys_values(number, adapter) for number, adapter in enumerate(everyone, 1)}
        virtual = {number: kv for number, kv in found.items() if kv is not None}
        if virtual or self.wiring.doorway is not None:
            self.wiring.door().routed = virtual

    def stations(self, adapter: Adapter) -> Stations:
        """An adapter's stations and tensors (in master precision) by module, virtual tokens left out."""
        found: Stations = {}
        for method, sites in adapter.parts:
            for site, tensors in sites.items():
                if makes(method) is not VirtualTokens:
                    station = Station(method, site, ModuleBase(self.model, site), {})
                    found.setdefault(site.path, []).append((station, self.moved(tensors)))
        return found

    def moved(self, tensors: Tensors) -> Tensors:
        """Tensors on the model's device, in master precision."""
        return {name: value.to(self.model.device, master_dtype(self.model)) for name, value in tensors.items()}

    def plan(self, paths: Stations) -> dict[str, Forms]:
        """One adapter's joined forms by module."""
        return {path: ordered([s for s, _ in here], dict(here).__getitem__, self.wiring.slot(path).outputs) for path, here in paths.items()}

    def twins(self, paths: Stations) -> dict[str, nn.Module]:
        """One adapter's twins by module, tied modules that follow them included."""
        made: dict[str, nn.Module] = {}
        for path, here in paths.items():
            for station, tensors in here:
                if makes(station.method) is Replacement:
                    made[path] = twin_of(station.base.module, tensors, master_dtype(self.model))
        for path, twin in list(made.items()):
            for name in self.wiring.tied(path):
                made.setdefault(name, shared(self.model.get_submodule(name), twin))
        return made

    def packs(self, path: str, plans: list[Forms]) -> dict[str, Pack]:
        """A pack for each thing that forms read at a module, with as many columns as they need in all."""
        module = self.model.get_submodule(path)
        weight = getattr(module, "weight", None)
        like = weight if weight is not None and weight.is_floating_point() else self.model.get_input_embeddings().weight
        made = {}
        for source in {source for plan in plans for source, _ in plan}:
            forms = [form for plan in plans for found, form in plan if found == source]
            columns = sum(0 if form.A is None else len(form.A) for form in forms)
            sizes = {"width": size(forms, "A", dim=1), "inputs": size(forms, "i"), "outputs": size(forms, "c", "b", "B")}
            made[source] = Pack(len(plans) + 1, columns, **sizes, like=like.detach())
        return made

    def keys_values(self, number: int, adapter: Adapter) -> VirtualTokens | None:
        """An adapter's virtual tokens as keys and values [layers, 2, heads, n, head dim]."""
        for method, sites in adapter.parts:
            for site, tensors in sites.items():
                form = method.form(self.moved(tensors), ModuleBase(self.model, site)) if makes(method) is VirtualTokens else None
                if isinstance(form, VirtualTokens):
                    door = self.wiring.door()
                    if form.embeds is not None and not door.causal:
                        raise AdapterError("a prompt on an encoder cannot share a batch: run it as the live adapter, alone")
                    kv = form.kv if form.embeds is None else self.prompt(number, form.embeds)
                    return None if kv is None else VirtualTokens(kv=kv.transpose(2, 3), shift=form.shift)
        return None

    def prompt(self, number: int, embeds: Tensor) -> Tensor:
        """The keys and values of a prompt [n, d] under slot `number`: [layers, 2, n, heads, head dim]."""
        routing = self.wiring.routing
        before, routing.slots = routing.slots, torch.tensor([number], device=self.model.device)
        try:
            return self.wiring.door().computed(self.model, embeds)
        finally:
            routing.slots = before


def size(forms: list[Affine], *names: str, dim: int = 0) -> int:
    """The length along `dim` of the first of these fields that any form has; 0 if none has it."""
    found = [getattr(form, name) for form in forms for name in names]
    return next((int(value.shape[dim]) for value in found if value is not None), 0)
