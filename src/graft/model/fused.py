"""Fusing: modules whose input is the same, their low-rank branches and their base products, as one (graft.kernels.affine).

A *group* is the query, key and value projection of a layer, or gate and up, or a linear map alone. The first of its modules to run gives
the outputs of all; the others, called with the very same tensor, take theirs. Where a layout keeps branches beside its weights, they are
written there before each forward, in the dtype they are computed in, and what a form asks of its base (DoRA's norms) is made ahead: once
for a forward, however often checkpointing runs a layer. Gradients flow through the forms themselves, so a method knows nothing of this.
"""

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn as nn
from torch import Tensor

from graft.errors import AdapterError
from graft.forms import Affine, shifted
from graft.kernels import nf4
from graft.kernels.affine import Branch, Pitched, laid_out, resolved
from graft.model.replay import Replay
from graft.model.slots import OWN, Slot, ordered
from graft.model.wiring import Wiring
from graft.site import LINEAR, TOGETHER


@dataclass(frozen=True)
class Ran:
    """How the forms of one module run: `how` is a layout's name, or "apart" with the reason."""

    path: str
    how: str
    reason: str = ""

    @property
    def note(self) -> str:
        """What a user should hear of a module that runs apart; "" of one that does not."""
        return f"{self.path} does not run fused: {self.reason}" if self.reason else ""


class Group:
    """Linear maps that read the same tensor."""

    def __init__(self, slots: Sequence[Slot], modules: Sequence[Any], layout: str) -> None:
        self.slots, self.modules = list(slots), list(modules)
        forms = self.forms()
        self.dropout = forms[0].dropout
        ranks = [0 if form.A is None else len(form.A) for form in forms]
        self.maps = laid_out([module.weight for module in modules], ranks, layout)
        for number, slot in enumerate(self.slots):
            slot.group, slot.place = self, number
        self.moved = self.modules if self.maps.views() else []
        for module, view in zip(self.moved, self.maps.views(), strict=True):
            module.weight.data = view
        self.x: Tensor | None = None
        self.ready: dict[int, Tensor] = {}  # outputs not yet taken, of this x

    def release(self) -> None:
        """Give the modules their weights back, each in memory of its own."""
        for module in self.moved:
            module.weight.data = module.weight.data.clone(memory_format=torch.contiguous_format)
        for slot in self.slots:
            slot.group = None
            for station in slot.stations:
                station.base.prepared = None
        self.slots, self.moved = [], []

    def forms(self) -> list[Affine]:
        """The one form of each module."""
        return [slot.live()[0][1] for slot in self.slots]

    @torch.no_grad()
    def prepare(self) -> None:
        """Write the branches as they are now, and make the norms ahead."""
        bases = [station.base for slot in self.slots for station in slot.stations]
        for base in bases:
            base.preparing = True
        try:  # forms made here and now: what a slot remembers may be of before an optimizer that leaves no trace
            branches = [branch(ordered(slot.stations, slot.own, slot.outputs)[0][1]) for slot in self.slots]
        finally:
            for base in bases:
                base.preparing = False
        if branches and isinstance(self.maps, Pitched):
            self.maps.write(branches)

    def output(self, slot: Slot, x: Tensor) -> Tensor:
        """y' [..., out] of one module for x [..., in]."""
        if self.x is x and slot.place in self.ready:
            y = self.ready.pop(slot.place)
            self.x = x if self.ready else None
            return y
        forms, drops = self.forms(), self.dropout if slot.training else 0.0
        seed = torch.randint(2**31 - 1, (), device=x.device) if drops else None
        ys = self.maps.run(x, [module.bias for module in self.modules], [branch(form) for form in forms], drops, seed)
        self.ready = {place: shifted(y, form.b) for place, (y, form) in enumerate(zip(ys, forms, strict=True))}
        y = self.ready.pop(slot.place)
        self.x = x if self.ready else None
        return y

    def clear(self) -> None:
        """Forget outputs that nobody took."""
        self.x, self.ready = None, {}

    def __deepcopy__(self, memo: dict[int, Any]) -> "Group":
        """A copied model starts without: these are a forward's, not the model's."""
        self.clear()
        made = Group.__new__(Group)
        memo[id(self)] = made
        made.__dict__.update({name: copy.deepcopy(value, memo) for name, value in self.__dict__.items()})
        return made


def branch(form: Affine) -> Branch:
    """A [r, in], B [out, r] and c [out] (or None) of a form that has a branch."""
    if form.A is None or form.B is None:
        raise AdapterError("a form without a branch was fused")
    return form.A, form.B, form.c


class Fused:
    """All groups of one adapted model."""

    def __init__(self, wiring: Wiring, layout: str = "auto") -> None:
        self.wiring, self.layout, self.groups, self.ran = wiring, layout, list[Group](), list[Ran]()
        for paths in together(wiring):
            apart = {path: reason for path in paths if (reason := why_apart(wiring, path, layout))}
            self.ran += [Ran(path, "apart", reason) for path, reason in apart.items()]
            for same in alike(wiring, [path for path in paths if path not in apart]):
                modules = [wiring.model.get_submodule(path) for path in same]
                self.groups.append(Group([wiring.slots[path] for path in same], modules, layout))
                self.ran += [Ran(path, type(self.groups[-1].maps).__name__.lower()) for path in same]
        self.ahead = [group for group in self.groups if isinstance(group.maps, Pitched)]
        self.state: object = None
        self.due, self.late = False, False  # late: whoever runs the blocks (graft.model.regional) calls `prepare` before each
        self.replay = Replay(self.write)
        # first of all: a prompt's keys and values are made by the model itself, in another of the root's hooks
        self.handle = wiring.model.register_forward_pre_hook(self.before, prepend=True)

    def before(self, model: Any, args: Any) -> None:
        """Prepare what may have changed since the last forward: with gradients anything, since a fused optimizer leaves no trace."""
        for group in self.groups:
            group.clear()
        state = None if torch.is_grad_enabled() else [(value.data_ptr(), value._version) for value in self.trained()]
        self.due = self.due or state is None or state != self.state
        self.state = state
        if not self.late:
            self.prepare()

    def prepare(self) -> None:
        """Do what is due.

        Late is better on a GPU: models read a number of their mask back, for which the host waits; while the device prepares after that
        and not before, the host starts the first blocks.
        """
        if self.due and self.ahead:
            self.replay(self.trained())
        self.due = False

    def forget(self) -> None:
        """Forget the branches written so far: the tensors have changed."""
        self.state = None

    def trained(self) -> Iterator[nn.Parameter]:
        """The parameters of the groups that prepare."""
        return (value for group in self.ahead for slot in group.slots for value in slot.parameters())

    def write(self) -> None:
        """Prepare every group that does."""
        for group in self.ahead:
            group.prepare()

    def release(self) -> None:
        """Undo everything."""
        self.handle.remove()
        for group in self.groups:
            group.release()

    def check(self) -> None:
        """Raise AdapterError if a low-rank branch does not run fused, naming the first and the reason."""
        for ran in self.ran:
            if ran.note:
                raise AdapterError(ran.note)


def together(wiring: Wiring) -> Iterator[list[str]]:
    """The paths of slots with a low-rank branch that read their own module's input, those that share it together."""
    found: dict[object, list[str]] = {}
    for path, slot in wiring.slots.items():
        sites = [station.site for station in slot.stations if station.affine]
        if any(form.A is not None and source == OWN for source, form in slot.live()) and sites:
            shared = [number for number, roles in enumerate(TOGETHER) if sites[0].role in roles and sites[0].rows is None]
            found.setdefault((sites[0].layer, path.rpartition(".")[0], shared[0]) if shared else path, []).append(path)
    yield from found.values()


def alike(wiring: Wiring, paths: list[str]) -> Iterator[list[str]]:
    """Those of them that drop alike, are scaled or not and are packed alike, in the order in which they run."""
    forms = {path: wiring.slots[path].live()[0][1] for path in paths}
    weights = {path: wiring.model.get_submodule(path).weight for path in paths}
    packed = {path: nf4.kind(weight) if nf4.is_packed(weight) else None for path, weight in weights.items()}
    kinds = {path: (form.dropout, form.c is None, packed[path]) for path, form in forms.items()}
    for kind in dict.fromkeys(kinds.values()):
        yield [path for path in paths if kinds[path] == kind]


def why_apart(wiring: Wiring, path: str, layout: str) -> str:
    """The reason why a module's form cannot be fused in a layout; "" if it can."""
    slot, module = wiring.slots[path], wiring.model.get_submodule(path)
    forms = slot.live()
    form = forms[0][1]
    plain = type(module) is nn.Linear or (isinstance(module, nn.Linear) and nf4.is_packed(module.weight))
    if not plain or not any(site.role in LINEAR for site in (station.site for station in slot.stations)):
        return f"it is no plain linear map of a layer but a {type(module).__name__}"
    if nf4.is_packed(module.weight) and resolved(module.weight, layout) != "pitched":
        return "its weight is in 4 bits, and those are fused in the pitched layout only, which is for GPUs"
    if len(forms) > 1 or hasattr(slot, "twin"):
        return "other forms act there too"
    if form.i is not None or form.a is not None or form.act != "identity" or (form.c is not None and form.scales == "y"):
        return "its form is not a low-rank product with at most one scale of the sum"
    return ""
