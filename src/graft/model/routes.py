"""Routes: several adapters of any method resident in one model, and the slot that each row wants.

Each adapter's forms are computed once and loaded into the packs of the modules they touch; virtual tokens are kept as keys and
values (a prompt's are computed once, under its own adapter's other parts). Slot 0 is the bare base, slot 1 the live adapter, filled
again when it has been trained. Loading one adapter touches no other, and costs the same however many are there.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
import torch.nn as nn
from torch import Tensor

from graft import adapter as adapters
from graft.adapter import Adapter
from graft.errors import AdapterError
from graft.forms import Affine, Replacement, VirtualTokens
from graft.method import Tensors, makes
from graft.model import belonging, families
from graft.model.base import ModuleBase, fingerprint, master_dtype
from graft.model.slots import Station, borrows, ordered
from graft.model.twin import shared, twin_of
from graft.model.virtual_tokens import side_by_side
from graft.model.wiring import Wiring
from graft.site import Site

LIVE, LIVE_SLOT = "live", 1
SLOTS = 8  # at first; doubled when they no longer suffice
Stations = dict[str, list[tuple[Station, Tensors]]]
Forms = list[tuple[str, Affine]]


class Routes:
    """The adapters loaded beside the live one, by name."""

    def __init__(self, wiring: Wiring) -> None:
        self.wiring = wiring
        self.model = wiring.model
        self.loaded: dict[str, Adapter] = {}  # as they were given: what a merge of one needs
        self.numbers: dict[str, int] = {LIVE: LIVE_SLOT}  # slots by name
        self.touched: dict[int, list[str]] = {}  # the modules that a slot has forms at
        self.slots = SLOTS
        self.rows: list[str | None] | None = None  # as they are routed now
        self.state: object = None
        self.bases: dict[Site, ModuleBase] = {}  # each place's, with what it has computed once
        self.master = master_dtype(self.model)
        self.marks: dict[frozenset[str], str] = {}  # fingerprints, by the modules that are left out

    @property
    def names(self) -> list[str]:
        """The names that rows can be routed to."""
        return list(self.numbers)

    @torch.inference_mode(False)
    @torch.no_grad()
    def add(self, name: str, adapter: Adapter, *, replace: bool = False, what: str = "the adapter") -> None:
        """Load an adapter under a name. Raises AdapterError, and changes nothing, on a name taken or a tensor that does not fit."""
        if name == LIVE or (name in self.numbers and not replace):
            raise AdapterError(f"adapter name {name!r} is taken: choose another")
        self.check(adapter)
        taken = set(self.numbers.values())
        number = self.numbers.get(name) or next(n for n in range(LIVE_SLOT + 1, len(taken) + 2) if n not in taken)
        self.fill(number, adapter)
        belonging.say_inert([(method, self.based(places)) for method, places in adapter.parts], what)
        self.numbers[name], self.loaded[name] = number, adapter
        if self.rows is not None and name in self.rows:
            self.lay_out()

    def belongs(self, adapter: Adapter, what: str) -> None:
        """Raise AdapterError if an adapter was made for another base. The base is frozen: each fingerprint is taken once."""
        whole = adapters.replaced(adapter.parts)
        if adapter.fingerprint and whole not in self.marks:
            self.marks[whole] = fingerprint(self.model, whole)
        belonging.check(adapter, self.model, self.marks.get(whole, ""), whole, what)

    @torch.inference_mode(False)
    @torch.no_grad()
    def remove(self, name: str) -> None:
        """Take an adapter out again; its room is there for others. Raises AdapterError where it is not loaded, or routed to now."""
        if name == LIVE or name not in self.numbers:
            raise AdapterError(f"no adapter called {name!r} was added: there are {', '.join(self.names[1:]) or 'none'}")
        if self.rows is not None and name in self.rows:
            raise AdapterError(f"rows are routed to {name!r} now: route others first, or route(None)")
        self.empty(self.numbers.pop(name))
        del self.loaded[name]

    @torch.inference_mode(False)
    @torch.no_grad()
    def route(self, rows: Sequence[str | None] | None, live: Callable[[], Adapter]) -> None:
        """Give each row its adapter; `live` gives the live one as it is now. Raises AdapterError on a name that is not loaded."""
        routing = self.wiring.routing
        if rows is None:
            self.rows, routing.slots, routing.virtual = None, None, (None, None, 1)
            return
        for name in rows:
            if name is not None and name not in self.numbers:
                raise AdapterError(f"no adapter is called {name!r}: there are {', '.join(self.names)}")
        state = tuple((value.data_ptr(), value._version) for value in self.model.parameters() if value.requires_grad)
        if LIVE_SLOT not in self.touched or (LIVE in rows and (self.state != state or routing.stale)):
            adapter = live()
            self.check(adapter)
            self.fill(LIVE_SLOT, adapter)
            self.state, routing.stale = state, False
        self.rows = list(rows)
        self.lay_out()

    def lay_out(self) -> None:
        """Leave the rows' slots, and their keys and values side by side, where the forward finds them."""
        routing, door = self.wiring.routing, self.wiring.doorway
        slots = [0 if name is None else self.numbers[name] for name in self.rows or ()]
        routing.slots = torch.tensor(slots, device=self.model.device)
        routing.virtual = (None, None, 1) if door is None else side_by_side([door.routed.get(slot) for slot in slots])

    def check(self, adapter: Adapter) -> None:
        """Raise AdapterError unless the model has every place of the adapter, and its tensors fit."""
        self.bases = self.bases or {site: ModuleBase(self.model, site) for site in families.sites(self.model)}
        for method, sites in adapter.parts:
            for site, tensors in sites.items():
                if site not in self.bases:
                    raise AdapterError(f"{method.kind} at {site.path or 'the model'}: this model has no such place: it is another base's")
                adapters.check_shapes(method, site, tensors)

    def fill(self, number: int, adapter: Adapter) -> None:
        """Compute an adapter's forms and put them into a slot in place of what is there."""
        self.master = master_dtype(self.model)
        chosen = self.stations(adapter)
        for here in chosen.values():
            for station, tensors in here:
                self.wiring.slot_for(station.site, borrows=borrows(station.method, station.site, station.base, tensors))
        plan, twins, virtual = self.plan(chosen), self.twins(chosen), self.virtual(adapter)
        self.widen(number + 1)
        self.empty(number)
        self.touched[number] = list(dict.fromkeys([*plan, *twins]))
        for path in self.touched[number]:
            self.wiring.slot(path).load(number, plan.get(path, []), twins.get(path), self.slots, self.like(path))
        if virtual is not None:
            kv = virtual.kv if virtual.embeds is None else self.prompt(number, virtual.embeds)
            if kv is not None:
                self.wiring.door().routed[number] = VirtualTokens(kv=kv.transpose(2, 3), shift=virtual.shift)

    def empty(self, number: int) -> None:
        """Take everything out of a slot."""
        for path in self.touched.pop(number, ()):
            self.wiring.slot(path).unload(number)
        if self.wiring.doorway is not None:
            self.wiring.doorway.routed.pop(number, None)

    def widen(self, slots: int) -> None:
        """Make room for so many slots in every pack."""
        if slots <= self.slots:
            return
        self.slots = max(slots, 2 * self.slots)
        for slot in self.wiring.slots.values():
            for pack in slot.packs.values():
                pack.widen(self.slots)  # type: ignore[operator]

    def stations(self, adapter: Adapter) -> Stations:
        """An adapter's stations and tensors (in master precision) by module, virtual tokens left out."""
        found: Stations = {}
        for method, sites in adapter.parts:
            for site, tensors in sites.items():
                if makes(method) is not VirtualTokens:
                    station = Station(method, site, self.bases[site], {})
                    found.setdefault(site.path, []).append((station, self.moved(tensors)))
        return found

    def based(self, places: Mapping[Site, Tensors]) -> Iterator[tuple[Tensors, ModuleBase]]:
        """A part's tensors and bases, one place after another."""
        return ((self.moved(tensors), self.bases[site]) for site, tensors in places.items())

    def moved(self, tensors: Tensors) -> Tensors:
        """Tensors on the model's device, in master precision."""
        return {name: value.to(self.model.device, self.master) for name, value in tensors.items()}

    def plan(self, paths: Stations) -> dict[str, Forms]:
        """One adapter's joined forms by module."""
        return {path: ordered([s for s, _ in here], dict(here).__getitem__, self.wiring.slot(path).outputs) for path, here in paths.items()}

    def twins(self, paths: Stations) -> dict[str, nn.Module]:
        """One adapter's twins by module, tied modules that follow them included."""
        made: dict[str, nn.Module] = {}
        for path, here in paths.items():
            for station, tensors in here:
                if makes(station.method) is Replacement:
                    made[path] = twin_of(station.base.module, tensors, self.master)
        for path, twin in list(made.items()):
            for name in self.wiring.tied(path):
                made.setdefault(name, shared(self.model.get_submodule(name), twin))
        return made

    def like(self, path: str) -> Tensor:
        """A tensor with the dtype and the device that a module's packs have."""
        weight = getattr(self.model.get_submodule(path), "weight", None)
        found: Tensor = weight if weight is not None and weight.is_floating_point() else self.model.get_input_embeddings().weight
        return found.detach()

    def virtual(self, adapter: Adapter) -> VirtualTokens | None:
        """An adapter's virtual tokens. Raises AdapterError for a prompt on an encoder."""
        for method, sites in adapter.parts:
            for site, tensors in sites.items():
                form = method.form(self.moved(tensors), self.bases[site]) if makes(method) is VirtualTokens else None
                if isinstance(form, VirtualTokens):
                    if form.embeds is not None and not self.wiring.door().causal:
                        raise AdapterError("a prompt on an encoder cannot share a batch: run it as the live adapter, alone")
                    return form
        return None

    def prompt(self, number: int, embeds: Tensor) -> Tensor:
        """The keys and values of a prompt [n, d] under slot `number`: [layers, 2, n, heads, head dim]."""
        routing = self.wiring.routing
        before, routing.slots = routing.slots, torch.tensor([number], device=self.model.device)
        try:
            return self.wiring.door().computed(self.model, embeds)
        finally:
            routing.slots = before
