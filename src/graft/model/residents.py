"""Residents: the forms of several adapters of any method in one model, each in a numbered slot.

An adapter's forms are computed once (`prepare`) and put into the packs of the modules they touch (`put`). Slot 0 is the bare base. Filling
a slot touches no other, and costs the same however many there are. What is prepared can wait in another memory until it is put.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

import torch
import torch.nn as nn
from torch import Tensor

from graft import adapter as adapters
from graft.adapter import Adapter
from graft.errors import AdapterError
from graft.forms import Affine, Replacement, VirtualTokens, apart
from graft.kernels import slots as kernels
from graft.method import Tensors, makes
from graft.model import belonging, families
from graft.model.bands import Band, bands_of
from graft.model.base import ModuleBase, fingerprint, master_dtype
from graft.model.chains import Chain, Returns, chains_of
from graft.model.slots import OWN, Station, X, Y, ordered, outputs_of
from graft.model.twin import shared, twin_of
from graft.model.wiring import Wiring
from graft.pack import as_held
from graft.site import Site

SLOTS = 8  # at first; doubled when they no longer suffice
Stations = dict[str, list[tuple[Station, Tensors]]]
Forms = list[tuple[str, Affine]]


@dataclass(frozen=True)
class Prepared:
    """One adapter, ready for a slot: its joined forms by module, twins by module, and virtual tokens."""

    plan: dict[str, Forms]
    twins: dict[str, nn.Module]
    virtual: VirtualTokens | None

    def mapped(self, change: Callable[[Tensor], Tensor]) -> "Prepared":
        """The same with every tensor of its forms changed: moved or cast. Twins stay."""
        plan = {
            path: [(source, replace(form, **{name: change(value) for name, value in form.tensors().items()})) for source, form in forms]  # type: ignore[arg-type]
            for path, forms in self.plan.items()
        }
        return Prepared(plan, self.twins, None if self.virtual is None else moved(self.virtual, change))

    def tensors(self) -> list[Tensor]:
        """Every tensor of its forms."""
        found = [value for forms in self.plan.values() for _, form in forms for value in form.tensors().values()]
        virtual = () if self.virtual is None else (self.virtual.kv, self.virtual.embeds)
        return found + [value for value in virtual if value is not None]


class Residents:
    """The slots of one model's packs."""

    def __init__(self, wiring: Wiring, slots: int = SLOTS) -> None:
        self.wiring, self.model, self.slots = wiring, wiring.model, slots
        self.expected = 1  # adapters that may come: there is room for as many like the first
        self.touched: dict[int, list[str]] = {}  # the modules that a slot has forms at
        self.bases: dict[Site, ModuleBase] = {}  # each place's, with what it has computed once
        self.master = master_dtype(self.model)
        self.marks: dict[frozenset[str], str] = {}  # fingerprints, by the modules that are left out
        self.bands: list[Band | Chain] = []
        self.banded = 0  # among so many modules
        self.returns: Returns | None = None

    def watch(self) -> None:
        """See in the model's next forward which sublayers return what their last map gives: fewer launches for what acts behind them."""
        if kernels.takes(self.model.get_input_embeddings().weight):
            self.returns = Returns(self.model, families.sites(self.model))

    def belongs(self, adapter: Adapter, what: str) -> None:
        """Raise AdapterError if an adapter was made for another base. The base is frozen: each fingerprint is taken once."""
        whole = adapters.replaced(adapter.parts)
        if adapter.fingerprint and whole not in self.marks:
            self.marks[whole] = fingerprint(self.model, whole)
        belonging.check(adapter, self.model, self.marks.get(whole, ""), whole, what)

    def check(self, adapter: Adapter) -> None:
        """Raise AdapterError unless the model has every place of the adapter, and its tensors fit; before it is prepared."""
        self.master = master_dtype(self.model)
        self.bases = self.bases or {site: ModuleBase(self.model, site) for site in families.sites(self.model)}
        for method, sites in adapter.parts:
            for site, tensors in sites.items():
                if site not in self.bases:
                    raise AdapterError(f"{method.kind} at {site.path or 'the model'}: this model has no such place: it is another base's")
                adapters.check_shapes(method, site, tensors)

    def say_inert(self, adapter: Adapter, what: str) -> None:
        """Say which parts of an adapter change nothing."""
        belonging.say_inert([(method, self.based(places)) for method, places in adapter.parts], what)

    def prepare(self, adapter: Adapter) -> Prepared:
        """Compute a checked adapter's forms, on the model's device.

        Nothing is changed, and no walk over the model's modules taken: batches may run meanwhile, and other adapters be put into slots.
        """
        chosen = self.stations(adapter)
        prepared = Prepared(self.plan(chosen), self.twins(chosen), self.virtual(adapter))
        self.check_finite(prepared)
        return prepared

    def check_finite(self, prepared: Prepared) -> None:
        """Raise AdapterError where forms are not finite as slots hold them: 0 times infinity would be in the rows of all others."""
        virtual = () if prepared.virtual is None else (prepared.virtual.kv, prepared.virtual.embeds)
        held = [("virtual tokens", value.to(self.model.dtype)) for value in virtual if value is not None]
        for path, forms in prepared.plan.items():
            dtype = self.like(path).dtype
            held += [(path, as_held(name, value, dtype)) for _, form in forms for name, value in apart(form).tensors().items()]
        found = [torch.isfinite(value).all() for _, value in held]
        if found and not bool(torch.stack(found).all()):
            where, value = next(pair for pair, fine in zip(held, found, strict=True) if not fine)
            raise AdapterError(
                f"its values at {where} are not finite in {value.dtype}: they are too large for the base's dtype, or training went wrong"
            )

    def put(self, number: int, prepared: Prepared) -> None:
        """Put what was prepared into a slot, in place of what is there; virtual tokens are the caller's."""
        self.widen(number + 1)
        self.empty(number)
        self.touched[number] = list(dict.fromkeys([*prepared.plan, *prepared.twins]))
        for band in self.bands:
            if isinstance(band, Chain) and {*band.paths} <= {*prepared.plan}:
                band.release()  # it has forms at both, and what the packs share holds one
        for path in self.touched[number]:
            forms = prepared.plan.get(path, [])
            slot = self.wiring.borrower(path, [source for source, _ in forms if source not in (OWN, Y, X)])
            slot.load(number, forms, prepared.twins.get(path), self.slots, self.like(path), min(self.expected, self.slots - 1))
        self.settle()

    @torch.no_grad()
    def settle(self) -> None:
        """Let kernels run the packs side by side as they are now, where there are kernels."""
        if self.banded != len(self.wiring.slots) and kernels.takes(self.model.get_input_embeddings().weight):
            for band in self.bands:
                band.release()
            chains = [] if self.returns is None else chains_of(self.returns.pairs, self.returns.seen, self.wiring)
            self.bands, self.banded = [*bands_of(self.bases, self.wiring), *chains], len(self.wiring.slots)
        for band in self.bands:
            band.settle()

    def empty(self, number: int) -> None:
        """Take everything out of a slot."""
        for path in self.touched.pop(number, ()):
            self.wiring.slot(path).unload(number)

    def trim(self) -> None:
        """Give back the memory that no slot needs any more."""
        for slot in self.wiring.slots.values():
            slot.trim()
        self.settle()

    def state(self) -> tuple[object, ...]:
        """What a recorded graph of the model depends on, beyond values: each pack's tensors and fields."""
        return tuple(
            (path, key, pack.state(), *slot.routed_twins)  # type: ignore[operator]
            for path, slot in self.wiring.slots.items()
            for key, pack in slot.packs.items()
        )

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
        module = self.model.get_submodule
        return {path: ordered([s for s, _ in here], dict(here).__getitem__, outputs_of(module(path))) for path, here in paths.items()}

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
        """An adapter's virtual tokens."""
        for method, sites in adapter.parts:
            for site, tensors in sites.items():
                form = method.form(self.moved(tensors), self.bases[site]) if makes(method) is VirtualTokens else None
                if isinstance(form, VirtualTokens):
                    return form
        return None


def moved(virtual: VirtualTokens, change: Callable[[Tensor], Tensor]) -> VirtualTokens:
    """Virtual tokens with their tensors changed."""
    kv, embeds = (None if value is None else change(value) for value in (virtual.kv, virtual.embeds))
    return replace(virtual, kv=kv, embeds=embeds)
