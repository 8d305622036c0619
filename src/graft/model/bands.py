"""Bands: modules that read one tensor (query, key and value; gate and up), their packs side by side, so that kernels run all at once.

The first of a band's modules to run gives the outputs of all, in two launches for every adapter there is, and at few tokens the modules'
own products are in the first of them; the others, called with the very same tensor, take theirs. The packs stay what they are: their
tensors become views of the band's, which are made anew once a pack's own have been. Where no kernels run (graft.kernels.slots), there are
no bands.
"""

from collections.abc import Iterable, Sequence
from types import MethodType
from typing import Any

import torch
import torch.nn as nn
from torch import Tensor

from graft.kernels import slots as kernels
from graft.model.slots import OWN, Slot, keyed
from graft.model.wiring import Wiring
from graft.pack import ROWS, Pack, flat, is_fast, rows
from graft.site import TOGETHER, Site

COLUMNS = ("A", "a", "of", "act")


class Band:
    """The slots of up to three modules."""

    def __init__(self, members: Sequence[Slot], modules: Sequence[Any], outs: Sequence[int]) -> None:
        self.members, self.modules, self.outs = list(members), list(modules), tuple(outs)
        self.stack: kernels.Stack | None = None
        self.given: list[object] = []  # what the packs were when the stack was made
        self.x: Tensor | None = None
        self.ready: dict[int, Tensor] = {}  # outputs not yet taken, of this x
        for slot in self.members:
            slot.band = self

    def release(self) -> None:
        """Run the modules apart, each pack with tensors of its own."""
        for pack in self.packs() if self.stack is not None else ():
            if pack is not None:
                pack.c, pack.b = (None if value is None else value.contiguous() for value in (pack.c, pack.b))
        self.stack, self.given, self.x, self.ready = None, [], None, {}

    def packs(self) -> list[Pack | None]:
        """Each module's pack that reads its own input."""
        found: list[Any] = [dict(slot.packs.items()).get(keyed(OWN)) for slot in self.members]
        return found

    def settle(self) -> None:
        """Make the band's tensors anew where a pack's own have been; none where these packs cannot run at once."""
        packs = self.packs()
        there = [pack for pack in packs if pack is not None]
        if len(there) < 2 or any(pack.i is not None for pack in there) or any(slot.routed_twins for slot in self.members):
            self.release()
        elif [seen(pack) for pack in packs] != self.given:
            self.stack = self.stacked(packs, there)
            self.given = [seen(pack) for pack in packs]

    def stacked(self, packs: Sequence[Pack | None], there: Sequence[Pack]) -> kernels.Stack:
        """One set of tensors for all packs, whose own become views of it."""
        width = max(len(pack.of) for pack in there)
        made = {name: laid(packs, self.outs, name) for name in ROWS if name != "i"}
        acts = every(there)
        if not width:
            return kernels.Stack(self.outs, c=made["c"], b=made["b"])
        like = next(pack for pack in there if len(pack.of))
        inputs, count = like.A.shape[1], width * len(packs)
        A, a, B = like.A.new_zeros(count, inputs), like.a.new_zeros(count), like.B.new_zeros(sum(self.outs), width)
        of, act = like.of.new_full((count,), -1), like.act.new_zeros(count)
        for place, pack in enumerate(packs):
            if pack is not None:
                take(pack, slice(place * width, (place + 1) * width), self.span(place), A, a, of, act, B)
        return kernels.Stack(self.outs, A, B, a if any(pack.has("a") for pack in there) else None, of, act, made["c"], made["b"], acts)

    def span(self, place: int) -> slice:
        """The outputs of one module among those of all."""
        first = sum(self.outs[:place])
        return slice(first, first + self.outs[place])

    def takes(self, x: Tensor) -> bool:
        """Whether the band runs on an input."""
        return self.stack is not None and is_fast(x, x)

    def output(self, slot: Slot, x: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        """y' [..., out] of one module for x [..., in], with what its own pack does, twice; s broadcasts to x's leading dimensions."""
        place = self.members.index(slot)
        if self.x is not x or place not in self.ready:
            found = self.outputs(x, flat(s, x))
            self.ready = {number: out.view(*x.shape[:-1], out.shape[-1]) for number, out in enumerate(found)}
        y = self.ready.pop(place)
        self.x = x if self.ready else None
        return y, y

    def outputs(self, x: Tensor, s: Tensor) -> list[Tensor]:
        """y' [T, out] of all modules for x [..., in] and the slot of each token; a few tokens' own products are in the same launch."""
        assert self.stack is not None
        maps = [map_of(module) for module in self.modules]
        plain = [one for one in maps if one is not None]
        if len(plain) == len(maps) and kernels.joins(self.stack, rows(x), plain):
            return kernels.joined(self.stack, s, rows(x), plain)
        return kernels.run(self.stack, s, rows(x), [rows(module.graft_inner(x)) for module in self.modules])


def map_of(module: Any) -> tuple[Tensor, Tensor | None] | None:
    """The weight [out, in] and bias [out] of a module that only multiplies by them; None of any other."""
    inner = module.graft_inner
    plain = type(module) is nn.Linear and isinstance(inner, MethodType) and inner.__func__ is nn.Linear.forward
    return (module.weight, module.bias) if plain else None


def take(pack: Pack, columns: slice, outs: slice, A: Tensor, a: Tensor, of: Tensor, act: Tensor, B: Tensor) -> None:
    """Move a pack's columns into those of a band, and give it room for as many as the band has."""
    old, width = len(pack.of), columns.stop - columns.start
    if old:
        for name, whole in zip(COLUMNS, (A, a, of, act), strict=True):
            whole[columns][:old] = getattr(pack, name)
        B[outs, :old] = pack.B
    pack.A, pack.a, pack.of, pack.act, pack.B = A[columns], a[columns], of[columns], act[columns], B[outs]
    pack.spare += range(old, width)


def laid(packs: Sequence[Pack | None], outs: Sequence[int], name: str) -> Tensor | None:
    """c or b [slots, N] of all packs, whose own become views of it; None where none has any."""
    given = [None if pack is None else getattr(pack, name) for pack in packs]
    like = next((value for value in given if value is not None), None)
    if like is None:
        return None
    whole: Tensor = like.new_full((len(like), sum(outs)), ROWS[name])
    parts = torch.split(whole, list(outs), 1)
    for pack, value, part in zip(packs, given, parts, strict=True):
        if pack is not None and value is not None:
            part.copy_(value)
            setattr(pack, name, part)
    return whole


def seen(pack: Pack | None) -> object:
    """What a band's tensors depend on: where a pack's are, and what it has."""
    return None if pack is None else (pack.state(), len(pack.of), len(pack.held))


def every(packs: Iterable[Pack]) -> tuple[tuple[int, str], ...]:
    """The activations of all."""
    return tuple(sorted({act for pack in packs for act in pack.acts()}))


def bands_of(sites: Iterable[Site], wiring: Wiring) -> list[Band]:
    """The bands among modules that have a slot."""
    found: dict[object, dict[str, Site]] = {}
    for site in sites:
        for number, roles in enumerate(TOGETHER):
            if site.role in roles and site.rows is None and site.path in wiring.slots:
                found.setdefault((site.layer, site.path.rpartition(".")[0], number), {})[site.path] = site
    return [
        Band(
            [wiring.slots[path] for path in here],
            [wiring.model.get_submodule(path) for path in here],
            [one.outputs for one in here.values()],
        )
        for here in found.values()
        if len(here) > 1
    ]
