"""Leaves: which tensor of a file is which tensor of an adapter. Every format is a config and a list of leaves.

Loading is strict: the file's tensors are exactly the leaves' keys, in the leaves' shapes, or an error lists the difference.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from graft.adapter import Adapter, Part
from graft.errors import AdapterError
from graft.method import Method, Tensors
from graft.site import Site

SHOWN = 3  # of each kind of difference


def as_it_is(value: Tensor) -> Tensor:
    """The tensor itself."""
    return value


@dataclass(frozen=True)
class Leaf:
    """`key` and `shape` in the file; `name` at `site` in the adapter. `outgoing` goes from the adapter to the file, `incoming` back;
    without them the two differ in their shape at most. Two leaves may be of one tensor: the file then holds it twice.
    """

    key: str
    shape: tuple[int, ...]
    site: Site
    name: str
    outgoing: Callable[[Tensor], Tensor] = as_it_is
    incoming: Callable[[Tensor], Tensor] = as_it_is


Branch = tuple[Method, list[Leaf]]


def drain(branches: Sequence[Branch], adapter: Adapter) -> Tensors:
    """The file's tensors, by key."""
    made: Tensors = {}
    held: set[int] = set()
    for (_, leaves), (_, sites) in zip(branches, adapter.parts, strict=True):
        for leaf in leaves:
            value = leaf.outgoing(sites[leaf.site][leaf.name])
            plain = value.detach().reshape(leaf.shape).contiguous().cpu()
            made[leaf.key] = plain.clone() if plain.data_ptr() in held else plain  # a file's tensors share no memory
            held.add(plain.data_ptr())
    return made


def fill(branches: Sequence[Branch], tensors: Tensors) -> tuple[Part, ...]:
    """The adapter's parts out of the file's tensors. Raises AdapterError unless the two fit exactly."""
    wanted = {leaf.key: leaf for _, leaves in branches for leaf in leaves}
    check_keys(wanted, tensors)
    wrong = [key for key, leaf in wanted.items() if tuple(tensors[key].shape) != leaf.shape]
    if wrong:
        shapes = [f"{shown([key])} is {tuple(tensors[key].shape)} and should be {wanted[key].shape}" for key in wrong[:SHOWN]]
        raise AdapterError(f"{len(wrong)} of its tensors have another shape than its config and this model make: {'; '.join(shapes)}")
    parts: list[Part] = []
    for method, leaves in branches:
        sites: dict[Site, Tensors] = {}
        for leaf in leaves:
            value = leaf.incoming(tensors[leaf.key]).reshape(method.shapes(leaf.site)[leaf.name])
            first = sites.setdefault(leaf.site, {}).setdefault(leaf.name, value)
            if first is not value and not torch.equal(first, value):
                raise AdapterError(f"it holds two values of one tensor: {shown([leaf.key])} is tied to another, and differs from it")
        parts.append((method, sites))
    return tuple(parts)


def check_keys(wanted: Iterable[str], found: Iterable[str]) -> None:
    """Raise AdapterError with the first few of what is missing and what is not known."""
    expected, present = set(wanted), set(found)
    missing, extra = sorted(expected - present), sorted(present - expected)
    if missing or extra:
        said = [f"{len(keys)} {kind} ({shown(keys)})" for kind, keys in (("missing", missing), ("not known", extra)) if keys]
        raise AdapterError(f"its tensors are not those that its config asks of this model: {', '.join(said)}")


def shown(keys: Sequence[str]) -> str:
    """The first few keys, made safe to print."""
    safe = [key.encode("unicode_escape").decode()[:120] for key in keys[:SHOWN]]
    return ", ".join(safe) + (", …" if len(keys) > SHOWN else "")
