"""Combining adapters: one adapter that is W + Σ w_k (W'_k − W), where adapter k makes W'_k of W.

What is possible follows from the forms. Where all that meet at a module are low-rank (A, B, b and no more) their ranks are put side by
side, which is exact. Biases and modules trained as a whole are sums of changes, exact too. A form that scales outputs or inputs (DoRA,
IA3) changes the dense weight: it is stored as a whole module, or with `rank` brought back to a LoRA by a singular value decomposition,
whose error is said. What is no change of weights (an activation, virtual tokens) has no weighted sum and is refused.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from graft import formats
from graft.adapter import Adapter, Part, replaced
from graft.errors import AdapterError
from graft.formats.names import naming
from graft.method import Method, Tensors, select
from graft.methods import BiasOnly, LoRA, Selective
from graft.model import belonging, families
from graft.model.base import dense, fingerprint, master_dtype, storage
from graft.model.fold import stations, tied_to, why_not
from graft.model.ground import ground
from graft.model.sums import Sum, weighted
from graft.site import Site


@dataclass(frozen=True)
class Combined:
    """`error` is ‖made − wanted‖ / ‖wanted‖ over the changes of all matrices together, 0 where the result is exact; `errors` the same for
    each module that was cut to a rank.
    """

    adapter: Adapter
    error: float
    errors: dict[str, float]


@torch.no_grad()
def combine(model: Any, adapters: Sequence[Adapter | str | Path], weights: Sequence[float], *, rank: int | None = None) -> Combined:
    """The weighted sum of adapters (as objects, or their folders) of one base, as a new adapter of that base.

    With `rank` every change of a matrix becomes a LoRA of at most that rank; without, the result is exact. Raises AdapterError where an
    adapter has no weighted sum, or belongs to another base.
    """
    if len(adapters) != len(weights) or not adapters or not all(abs(weight) < float("inf") for weight in weights):
        raise AdapterError(f"{len(adapters)} adapters and {len(weights)} weights: give each adapter one finite weight")
    if rank is not None and rank < 1:
        raise AdapterError(f"rank = {rank}: it must be at least 1")
    found = [stations(model, one if isinstance(one, Adapter) else read(model, Path(one))) for one in adapters]
    for reason in filter(None, map(why_not, found)):
        raise AdapterError(f"these adapters have no weighted sum: {reason}")
    total = weighted(model, found, weights)
    cuts = {} if rank is None else cut(model, total, rank)
    parts = built(model, total)
    made = Adapter(parts, fingerprint(model, replaced(parts)), str(model.config.name_or_path), storage(model))
    lost, wanted = sum(a for a, _ in cuts.values()), sum(b for _, b in cuts.values())
    return Combined(made, (lost / wanted) ** 0.5 if wanted else 0.0, {path: (a / b) ** 0.5 for path, (a, b) in cuts.items() if a})


def read(model: Any, folder: Path) -> Adapter:
    """The adapter in a folder, if it was made for this base."""
    adapter = formats.read(folder, ground(model))
    whole = replaced(adapter.parts)
    belonging.check(adapter, model, fingerprint(model, whole), whole, f"the adapter in {folder}")
    return adapter


# back to a rank


def cut(model: Any, total: Sum, rank: int) -> dict[str, tuple[float, float]]:
    """Bring every change of a matrix to a LoRA of at most `rank`; by module, the squared norms of what is lost and of what was wanted."""
    squares: dict[str, tuple[float, float]] = {}
    by_site: list[tuple[str, float, float]] = []
    for site in [site for site in families.sites(model) if site.primary and can_be_low(site)]:
        if site.path in total.heavy and "weight" in total.changes.get(site.path, {}):
            delta = total.changes[site.path].pop("weight")
            A, B, lost = nearest(delta.t() if is_flipped(model, site) else delta, rank)
            total.low[site] = A, B
            squares[site.path] = lost, float(delta.square().sum())
            total.heavy.discard(site.path)
    for site, (A, B) in [(site, pair) for site, pair in total.low.items() if site.path not in squares]:
        (Q, R), (P, S) = torch.linalg.qr(B), torch.linalg.qr(A.t())  # B A = Q (R S^T) P^T
        lost, core = 0.0, R @ S.t()
        if len(A) > rank:
            U, V, lost = nearest(core, rank)
            total.low[site] = U @ P.t(), Q @ V
        by_site.append((site.path, lost, float(core.square().sum())))
    for path, lost, wanted in by_site:  # rows of one fused projection are sites of one module
        before = squares.get(path, (0.0, 0.0))
        squares[path] = before[0] + lost, before[1] + wanted
    return squares


def nearest(change: Tensor, rank: int) -> tuple[Tensor, Tensor, float]:
    """A [r, in] and B [out, r] of the nearest matrix of rank `rank` to a change [out, in], and the squared norm of the rest."""
    U, values, V = torch.linalg.svd(change, full_matrices=False)
    root = values[:rank].sqrt()
    return root[:, None] * V[:rank], U[:, :rank] * root, float(values[rank:].square().sum())


def can_be_low(site: Site) -> bool:
    """Whether a LoRA may act at a module."""
    return len(dict(site.parameters).get("weight", ())) == 2 and LoRA(targets=(site.path,)).at(site)


def is_flipped(model: Any, site: Site) -> bool:
    """Whether a module's weight is stored [in, out]."""
    return site.role == "embedding" or type(model.get_submodule(site.path)).__name__ == "Conv1D"


# the sum as parts


def built(model: Any, total: Sum) -> tuple[Part, ...]:
    """The parts that hold a sum: LoRAs by rank, biases, whole modules."""
    sites = families.sites(model)
    dtype = master_dtype(model)
    modules = {site.path: site for site in sites if site.primary and site.parameters}
    whole = whole_modules(model, total, modules)
    biases = {modules[path]: {"b": change["bias"]} for path, change in total.changes.items() if "bias" in change and path not in whole}
    biases |= {modules[path]: {"b": extra} for path, (_, extra) in whole.items() if extra is not None}
    made: list[Part] = low_parts(total, sites)
    if biases:
        made.append((naming(lambda targets: BiasOnly(add=True, targets=targets), list(biases), sites), biases))
    if whole:
        held = {modules[path]: values for path, (values, _) in whole.items()}
        made.append((naming(lambda targets: Selective(targets=targets), list(held), sites), held))
    order = {site: number for number, site in enumerate(sites)}
    return tuple((method, {site: cast(here[site], dtype) for site in sorted(here, key=order.__getitem__)}) for method, here in made)


def cast(tensors: Tensors, dtype: torch.dtype) -> Tensors:
    """Tensors in master precision, each in memory of its own."""
    return {name: value.to(dtype).contiguous() for name, value in tensors.items()}


def low_parts(total: Sum, sites: Sequence[Site]) -> list[Part]:
    """LoRAs with a scale of 1: one for each rank at whole modules, and one for each role at rows of fused projections.

    Such rows can only be named by their role, so all of a role get one rank: zeros fill what a site has less.
    """
    groups: dict[int | str, dict[Site, Tensors]] = {}
    for site, (A, B) in total.low.items():
        groups.setdefault(len(A) if site.rows is None else site.role, {})[site] = {"A": A, "B": B}
    made: list[Part] = []
    for key, held in groups.items():
        rank = max(len(tensors["A"]) for tensors in held.values())
        if isinstance(key, int):
            made.append((naming(lambda targets, r=rank: lora(r, targets), list(held), sites), held))  # type: ignore[misc]
        else:
            method: Method = lora(rank, (key,))
            made.append((method, {site: filled(held.get(site, {}), method.shapes(site)) for site in select(method, sites)}))
    return made


def lora(rank: int, targets: tuple[str, ...]) -> LoRA:
    """A LoRA whose scale is 1."""
    return LoRA(r=rank, alpha=float(rank), targets=targets)


def filled(tensors: Tensors, shapes: dict[str, tuple[int, ...]]) -> Tensors:
    """Tensors in these larger shapes, with zeros for what they lack."""
    made = {name: torch.zeros(shape, dtype=torch.float64) for name, shape in shapes.items()}
    for name, value in tensors.items():
        made[name] = made[name].to(value)
        made[name][tuple(slice(0, size) for size in value.shape)] = value
    return made


def whole_modules(model: Any, total: Sum, modules: dict[str, Site]) -> dict[str, tuple[Tensors, Tensor | None]]:
    """The parameters of each module that is stored as a whole, and what is to be added to a bias that it does not have.

    A module whose weight is another's is stored beside it only where the two differ: else it follows.
    """
    weights = {path for path in total.heavy if set(total.changes.get(path, {})) - {"bias"}}
    alike: set[str] = set()
    for path in sorted(weights):
        for name in tied_to(model, path):
            ours, theirs = (total.changes.get(key, {}).get("weight") for key in (path, name))
            (alike if ours is not None and theirs is not None and torch.equal(ours, theirs) else weights).add(name)
    made = {}
    for path in (path for path in modules if path in weights - alike):
        change = total.changes.get(path, {})
        own = {name: dense(value) for name, value in model.get_submodule(path).named_parameters(recurse=False)}
        values = {name: value.double() + change[name].to(value.device) if name in change else value.double() for name, value in own.items()}
        made[path] = values, None if "bias" in own else change.get("bias")
    return made
