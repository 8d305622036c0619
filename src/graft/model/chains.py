"""Chains: a linear map and the sublayer that returns what it gives: the pack behind the sublayer runs in the map's own two launches.

A bottleneck adapter reads what leaves attention or the MLP, which in many models is the very tensor that their last linear map gave. Where
no adapter has a form at both, the map's output before any form is what the bottleneck reads, so that all can be read at once, and be added
at once. Whether a sublayer returns that tensor is seen in the model's first forward (`Returns`), and at each run again.
"""

from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from graft.errors import AdapterError
from graft.kernels import slots as kernels
from graft.model.bands import every, seen
from graft.model.calls import first
from graft.model.slots import OWN, Slot, Y, keyed
from graft.model.wiring import Wiring
from graft.pack import Pack, flat, is_fast, rows
from graft.site import Site

LAST = {"attention": "attention_out", "mlp": "down"}
"""The role of a sublayer, and of its last linear map."""
ROUND = 64  # columns of the map come in such numbers before those of the sublayer


class Chain:
    """The slots of a linear map and of the sublayer that it ends."""

    def __init__(self, inner: Slot, outer: Slot, module: Any, paths: tuple[str, str]) -> None:
        self.inner, self.outer, self.module, self.paths = inner, outer, module, paths
        self.stack: kernels.Stack | None = None
        self.given: object = None  # what the packs were when the stack was made
        self.gave: Tensor | None = None
        inner.band, outer.chain = self, self

    def packs(self) -> tuple[Pack | None, Pack | None]:
        """The map's, which reads its input, and the sublayer's, which reads its output."""
        own: Any = dict(self.inner.packs.items()).get(keyed(OWN))
        behind: Any = dict(self.outer.packs.items()).get(keyed(Y))
        return own, behind

    def fits(self, own: Pack | None, behind: Pack | None) -> bool:
        """Whether the two packs can run at once: no adapter has a form at both, or at the sublayer another."""
        if own is None or behind is None or own.i is not None or behind.i is not None or behind.c is not None or not len(behind.of):
            return False
        others: list[Any] = [pack for key, pack in self.outer.packs.items() if key != keyed(Y)]
        taken = own.holders.union(*(pack.holders for pack in others))
        plain = not (self.inner.routed_twins or self.outer.routed_twins or self.inner.ends)
        return plain and len(self.inner.packs) == 1 and not taken & behind.holders

    def settle(self) -> None:
        """Make the chain's tensors anew where a pack's own have been; none where these packs cannot run at once."""
        own, behind = self.packs()
        if own is None or behind is None or not self.fits(own, behind):
            self.release()
        elif (seen(own), seen(behind)) != self.given:
            self.stack = stacked(own, behind)
            self.given = seen(own), seen(behind)

    def release(self) -> None:
        """Run the two apart, each pack with tensors of its own."""
        for pack in self.packs() if self.stack is not None else ():
            if pack is not None:
                pack.B, shared = pack.B.contiguous(), pack.b
                if shared is not None:
                    pack.b = torch.where(pack.held[:, None], shared, 0)
        self.stack, self.given, self.gave = None, None, None

    def takes(self, x: Tensor) -> bool:
        """Whether the chain runs on the map's input."""
        return self.stack is not None and is_fast(x, x)

    def output(self, slot: Slot, x: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        """y' [..., out] of the map for x [..., in], with what both packs do, twice; s broadcasts to x's leading dimensions."""
        assert self.stack is not None
        y = self.module.graft_inner(x)
        (out,) = kernels.run(self.stack, flat(s, x), rows(x), [rows(y)])
        self.gave = out.view(y.shape)
        return self.gave, self.gave

    def did(self, y: Tensor) -> bool:
        """Whether the sublayer's pack has run already, in what the sublayer returns."""
        gave, self.gave = self.gave, None
        if gave is not None and gave is not y:
            raise AdapterError(f"{self.paths[1]} did not return what its last linear map gave, as it did before: its adapters cannot run")
        return gave is not None


def stacked(own: Pack, behind: Pack) -> kernels.Stack:
    """One set of tensors for both, whose own become views of it; their rows of b are one, for no slot has both."""
    (outs, _), begin = behind.B.shape, -(-len(own.of) // ROUND) * ROUND
    count = begin + len(behind.of)
    B, a = behind.B.new_zeros(outs, count), behind.a.new_zeros(count)
    of, act = behind.of.new_full((count,), -1), behind.act.new_zeros(count)
    for pack, part in ((own, slice(0, len(own.of))), (behind, slice(begin, count))):
        if len(pack.of):
            B[:, part], a[part], of[part], act[part] = pack.B, pack.a, pack.of, pack.act
            pack.B, pack.a, pack.of, pack.act = B[:, part], a[part], of[part], act[part]
    given = [torch.where(pack.held[:, None], pack.b, 0) for pack in (own, behind) if pack.b is not None]
    b = torch.stack(given).sum(0) if given else None
    for pack in (own, behind):
        pack.b = b if pack.b is not None else None
    shift = a if own.has("a") or behind.has("a") else None
    A = own.A if len(own.A) else None
    return kernels.Stack((outs,), A, B, shift, of, act, own.c, b, every((own, behind)), behind.A, begin)


class Returns:
    """Which sublayers return the very tensor that their last linear map gave, by their paths: seen in the model's first forward."""

    def __init__(self, model: Any, sites: Iterable[Site]) -> None:
        self.seen: set[str] = set()
        self.last: dict[str, Tensor] = {}
        self.pairs = pairs_of(sites)
        self.handles = [model.register_forward_hook(self.done)]
        for outer, inner in self.pairs.items():
            self.handles.append(model.get_submodule(inner).register_forward_hook(partial(self.note, outer)))
            self.handles.append(model.get_submodule(outer).register_forward_hook(partial(self.compare, outer)))

    def note(self, path: str, module: Any, args: Any, out: Any) -> None:
        """A sublayer's last linear map has run."""
        self.last[path] = first(out)

    def compare(self, path: str, module: Any, args: Any, out: Any) -> None:
        """A sublayer has run."""
        if self.last.pop(path, None) is first(out):
            self.seen.add(path)

    def done(self, *args: Any) -> None:
        """The first forward is over."""
        for handle in self.handles:
            handle.remove()
        self.last.clear()


def pairs_of(sites: Iterable[Site]) -> dict[str, str]:
    """The paths of sublayers and of their last linear maps."""
    every_site = list(sites)
    maps = {(site.layer, site.role): site.path for site in every_site if site.role in LAST.values() and site.rows is None}
    found = {site.path: maps.get((site.layer, LAST[site.role]), "") for site in every_site if site.role in LAST}
    return {outer: inner for outer, inner in found.items() if inner.startswith(f"{outer}.")}


def chains_of(pairs: Mapping[str, str], proved: set[str], wiring: Wiring) -> list[Chain]:
    """The chains among modules that have a slot."""
    return [
        Chain(wiring.slots[inner], wiring.slots[outer], wiring.model.get_submodule(inner), (inner, outer))
        for outer, inner in pairs.items()
        if outer in proved and inner in wiring.slots and outer in wiring.slots
    ]
