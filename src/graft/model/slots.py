"""How a site runs: a child module `graft` of the site's module holds the trained tensors and runs the forms.

The module's `forward` is overridden on the instance (not hooked: a hook cannot own the product, nor scale the input), so its class,
its keys and its bytes stay as they are; tensors get the keys `<path>.graft.<name>`. Forms are computed from the master tensors
and run in order: those that read the module's own input, those that read another module's input
(BERT's MLP), those that read y, those that read y and add to x, for which the module runs again.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from types import MethodType
from typing import Any, Self

import torch
import torch.nn as nn
from torch import Tensor

from graft.errors import AdapterError
from graft.forms import Affine, Replacement, at_rows, join, run, scaled
from graft.method import Method, Tensors, makes
from graft.model.base import ModuleBase
from graft.model.calls import first, for_rows, leading, with_input, with_output
from graft.model.routing import Cell, Routing
from graft.model.twin import twin_of
from graft.pack import Pack, is_fast, slots_of
from graft.site import Site

OWN, Y, X = "", "y", "x"
"""What a form reads: the module's own input, y, or (X) y where it adds to x; else the path of the module whose input it reads."""


def own(holder: nn.Module, key: str) -> nn.Parameter:
    """The parameter itself: as an attribute, a twin's reads as its value in the base's dtype."""
    path, _, name = key.rpartition(".")
    found = holder.get_submodule(path)._parameters[name]
    if found is None:
        raise AttributeError(f"{key} is not a parameter here")
    return found


@dataclass(frozen=True, eq=False)
class Station:
    """One part's method at one site of a module, with the names that its tensors have in the slot."""

    method: Method
    site: Site
    base: ModuleBase
    names: dict[str, str]
    affine: bool = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "affine", makes(self.method) is Affine)  # once: a compiler cannot read annotations

    def tensors(self, holder: nn.Module) -> Tensors:
        """The live tensors, by their own names, in the slot (or doorway) that holds them."""
        return {name: own(holder, key) for name, key in self.names.items()}

    def source(self, form: Affine) -> str:
        """What the form reads: OWN, Y, X, or the path of the module whose input it is."""
        if form.reads == "y":
            return X if form.adds == "x" else Y
        return self.site.reads or OWN


def borrows(method: Method, site: Site, base: ModuleBase, tensors: Tensors) -> bool:
    """Whether the method reads at this site the input of another module."""
    form = method.form(tensors, base) if site.reads and makes(method) is Affine else None
    return isinstance(form, Affine) and form.reads == "x"


class Slot(nn.Module):
    """The child `graft` of one module."""

    def __init__(self, module: Any, routing: Routing) -> None:
        super().__init__()
        self.routing = routing
        self.outputs = outputs_of(module)
        self.stations: list[Station] = []
        self.cells: dict[str, Cell] = {}  # inputs of other modules that this one's forms read
        self.lends: Cell | None = None  # this module's input, for another slot
        self.packs = nn.ModuleDict()
        self.routed_twins: dict[int, nn.Module] = {}
        self.memo: tuple[Any, list[tuple[str, Affine]]] | None = None
        self.ends = False  # whether the module is the model's head, which may run at chosen positions only
        self.group: Any = None  # the modules it runs fused with (graft.model.fused), and its place among them
        self.place = 0
        self.band: Any = None  # the modules whose packs it runs with (graft.model.bands, graft.model.chains)
        self.chain: Any = None  # the linear map that may run this sublayer's pack with its own

    def hold(self, part: int, method: Method, site: Site, base: ModuleBase, tensors: Tensors, dtype: torch.dtype) -> Station:
        """Register one part's tensors [as `shapes` says] as parameters in `dtype`."""
        prefix = f"p{part}_" if part else ""
        if makes(method) is Replacement:
            if hasattr(self, "twin"):
                raise AdapterError(f"{site.path} is trained as a whole by two methods: give them different targets")
            self.twin = twin_of(base.module, tensors, dtype)
            names = {name: f"twin.{name}" for name in tensors}
        else:
            names = {name: prefix + site.name(name) for name in tensors}
            device = next(base.module.parameters()).device
            for name, value in tensors.items():
                self.register_parameter(names[name], nn.Parameter(value.to(device, dtype).clone()))
        self.stations.append(Station(method, site, base, names))
        with torch.no_grad():
            method.form(self.own(self.stations[-1]), base)  # what the base computes once (norms) is there when a compiler looks
        return self.stations[-1]

    def own(self, station: Station) -> Tensors:
        """A station's live tensors."""
        return station.tensors(self)

    def live(self) -> list[tuple[str, Affine]]:
        """The joined forms of the live adapter in the order they run, in master precision: [(source, form)]."""
        if torch.compiler.is_compiling():
            return ordered(self.stations, self.own, self.outputs)
        if torch.is_grad_enabled():
            self.forget()  # training follows, and a fused optimizer leaves no version
            return ordered(self.stations, self.own, self.outputs)
        key = tuple((value.data_ptr(), value._version, value.dtype) for value in self.parameters())
        if self.memo is None or self.memo[0] != key:
            self.memo = key, ordered(self.stations, self.own, self.outputs)
        return self.memo[1]

    def forget(self) -> None:
        """Forget the forms computed so far: the tensors have changed, or may soon."""
        self.memo, self.routing.stale = None, True

    def train(self, mode: bool = True) -> Self:
        """Set the mode, and forget the forms computed so far."""
        self.forget()
        return super().train(mode)

    def forward(self, inner: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run the module `inner` with what the current adapters do to it."""
        x = args[0] if args else next(iter(kwargs.values()))
        if self.lends is not None:
            self.lends.x = x
        slots = self.routing.kept if self.ends and self.routing.kept is not None else self.routing.slots
        if slots is not None:
            return self.routed(inner, x, args, kwargs, slots)
        if self.group is not None:
            return self.group.output(self, x)
        twin = getattr(self, "twin", None)
        if not self.stations and twin is None:
            return inner(*args, **kwargs)  # all that is here is routed, and nothing is now
        forms = self.live()
        if forms and forms[0][0] == OWN and forms[0][1].i is not None:
            x = scaled(x, forms[0][1].i)
            args, kwargs = with_input(x, args, kwargs)
        base = inner if twin is None else twin
        out = base(*args, **kwargs)
        y = first(out)
        for source, form in forms:
            if source == X:
                args, kwargs = with_input(run(form, y, x, training=self.training), args, kwargs)
                y = first(base(*args, **kwargs))
            else:
                y = run(form, self.read(source, x, y), y, training=self.training)
        return with_output(y, out)

    def read(self, source: str, x: Tensor, y: Tensor) -> Tensor:
        """The tensor that a form reads."""
        return y if source in (X, Y) else self.cells[source].take() if source in self.cells else x

    def routed(self, inner: Callable[..., Any], x: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any], slots: Tensor) -> Any:
        """The same for rows of different adapters, their forms in packs."""
        x = for_rows(x, len(slots))  # position embeddings are looked up once for all rows
        s = slots_of(slots, leading(x))
        if is_fast(x, x):
            s = s.expand(leading(x)).contiguous()  # written before the module runs: kernels read it before the one before them has ended
        packs: Any = self.packs
        if keyed(OWN) in packs:
            x = packs[keyed(OWN)].scaled(s, x)
        args, kwargs = with_input(x, args, kwargs)
        banded = self.band is not None and self.band.takes(x)
        y, out = self.band.output(self, x, s) if banded else self.routed_base(inner, args, kwargs, slots)
        chained = self.chain is not None and self.chain.did(y)
        present = self.routing.present()
        for key, pack in packs.items():
            source = unkeyed(key)
            if (banded and source == OWN) or (chained and source == Y):
                continue
            if source == X:
                again = self.routed_base(inner, *with_input(pack(s, y, x, present), args, kwargs), slots)[0]
                y = torch.where(pack.held[s][..., None], again, y)
            else:
                y = pack(s, self.read(source, x, y), y, present)
        return with_output(y, out)

    def routed_base(self, inner: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], slots: Tensor) -> tuple[Tensor, Any]:
        """What the module gives for each row before any affine form, by its own twin if it has one; and its whole output."""
        out = inner(*args, **kwargs)
        y = for_rows(first(out), len(slots))
        for slot, twin in self.routed_twins.items():
            y = torch.where(slots_of(slots == slot, y.shape[:-1])[..., None], first(twin(*args, **kwargs)), y)
        return y, out

    def load(
        self, number: int, forms: list[tuple[str, Affine]], twin: nn.Module | None, slots: int, like: Tensor, expected: int = 1
    ) -> None:
        """Put one adapter's joined forms (and twin) into slot `number`; packs made for it have room for `slots`, in `like`'s dtype."""
        if twin is not None:
            self.routed_twins[number] = twin
        for source, form in forms:
            if keyed(source) not in self.packs:
                packs = {**self.packs, keyed(source): Pack(slots, like)}
                self.packs = nn.ModuleDict({key: packs[key] for key in sorted(packs)})  # in running order
            pack: Any = self.packs[keyed(source)]
            pack.load(number, form, expected)

    def unload(self, number: int) -> None:
        """Empty slot `number`."""
        self.routed_twins.pop(number, None)
        for pack in self.packs.values():
            pack.free(number)  # type: ignore[operator]

    def trim(self) -> None:
        """Give back the memory that no slot needs any more."""
        for key, pack in list(self.packs.items()):
            if not pack.trim():  # type: ignore[operator]
                del self.packs[key]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Move or cast everything, routed twins included, and forget the forms computed so far."""
        self.forget()
        for together in (self.group, self.band, self.chain):
            if together is not None:
                together.release()
        for twin in self.routed_twins.values():
            twin._apply(fn)  # type: ignore[no-untyped-call]
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self


def outputs_of(module: Any) -> int:
    """How many a linear map has, 0 of any other module."""
    return int(getattr(module, "out_features", getattr(module, "nf", 0)))


def ordered(stations: list[Station], tensors: Callable[[Station], Tensors], outputs: int) -> list[tuple[str, Affine]]:
    """The affine forms of a module's stations, joined by what they read, in running order."""
    groups: dict[str, list[Affine]] = {}
    for station in stations:
        if not station.affine:
            continue
        form = station.method.form(tensors(station), station.base)
        if isinstance(form, Affine):
            whole = form if station.site.rows is None else at_rows(form, station.site.rows, outputs)
            groups.setdefault(station.source(whole), []).append(whole)
    if X in groups:
        join([form for forms in groups.values() for form in forms])  # refused unless it is alone
    return [(source, join(groups[source])) for source in sorted(groups, key=rank)]


def rank(source: str) -> int:
    """Running order: the module's own input, other modules' inputs, y, y where it adds to x."""
    return {OWN: 0, Y: 2, X: 3}.get(source, 1)


def keyed(source: str) -> str:
    """A source as a name of a child module, which may hold no dot."""
    return f"{rank(source)}{source.replace('.', '/')}"


def unkeyed(key: str) -> str:
    """The source of such a name."""
    return key[1:].replace("/", ".")


def overridden(self: Any, *args: Any, **kwargs: Any) -> Any:
    """The instance-level forward of a module that has a slot."""
    return self.graft(self.graft_inner, args, kwargs)


def attach(module: Any, slot: Slot) -> None:
    """Make `slot` the module's child `graft`, in the module's mode (of a model that evaluates nothing is dropped), and run it."""
    slot.train(module.training)
    module.graft_inner = module.forward
    module.graft = slot
    module.forward = MethodType(overridden, module)


def detach(module: Any) -> None:
    """Undo `attach`: the instance's own forward, if it had one (accelerate, a 4-bit product), is put back."""
    inner = module.graft_inner
    del module.graft, module.graft_inner, module.forward
    if not (isinstance(inner, MethodType) and inner.__func__ is type(module).forward):
        module.forward = inner
