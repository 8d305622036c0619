"""Adapter: what was trained, as plain data; what files hold.

`parts` are pairs of a method and its tensors by site; most adapters have one part, a classifier has two (LoRA and a trained head).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from graft.errors import AdapterError
from graft.forms import Replacement
from graft.method import Base, Method, Tensors, makes, select, stored
from graft.site import Site

Part = tuple[Method, dict[Site, Tensors]]
BaseOf = Callable[[Site], Base]


@dataclass(frozen=True)
class Adapter:
    """`fingerprint` and `base` (a name) say which model it belongs to; both may be empty for a foreign file."""

    parts: tuple[Part, ...]
    fingerprint: str = ""
    base: str = ""
    notes: dict[str, str] = field(default_factory=dict)

    def count(self) -> int:
        """The number of values it holds."""
        return sum(value.numel() for _, _, value in self.walk())

    def walk(self) -> list[tuple[int, str, Tensor]]:
        """Every tensor: (part number, "<path>:<role>:<name>", tensor)."""
        return [
            (number, f"{site.path}:{site.role}:{name}", value)
            for number, (_, sites) in enumerate(self.parts)
            for site, tensors in sites.items()
            for name, value in tensors.items()
        ]


def fresh(methods: Sequence[Method], sites: Sequence[Site], base_of: BaseOf, seed: int) -> tuple[Part, ...]:
    """New tensors for each method at each site it acts at. Raises TargetError as `select` does."""
    rng = torch.Generator().manual_seed(seed)
    parts: list[Part] = []
    for method in methods:
        made = {site: method.init(site, base_of(site), rng) for site in select(method, sites)}
        for site, tensors in made.items():
            check_shapes(method, site, tensors)
        parts.append((method, made))
    return tuple(parts)


def replaced(parts: Sequence[Part]) -> frozenset[str]:
    """The paths of the modules that an adapter trains as a whole: what the base has there does not matter to it."""
    return frozenset(site.path for method, sites in parts if makes(method) is Replacement for site in sites)


def check_shapes(method: Method, site: Site, tensors: Tensors) -> None:
    """Raise AdapterError unless the tensors are exactly those that the method has at this site."""
    wanted, found = method.shapes(site), {name: tuple(value.shape) for name, value in tensors.items()}
    if wanted != found:
        raise AdapterError(f"{method.kind} at {site.path or 'the model'}: expected tensors {wanted}, found {found}")


def count(methods: Sequence[Method], sites: Sequence[Site], *, as_stored: bool = False) -> int:
    """The exact number of trained (or stored) values, from shapes alone."""
    total = 0
    for method in methods:
        counted = stored(method) if as_stored else method
        for site in select(counted, sites):
            total += sum(torch.Size(shape).numel() for shape in counted.shapes(site).values())
    return total
