"""Method: what an adapter trains, where, and what form that takes. The interface, and the selection of sites by target.

A method is a frozen dataclass whose fields are its whole config. It holds no module and no state, and no method inherits from
another. `shapes` is the one source of counts, memory, allocation and load checks.
"""

import re
from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from typing import Any, ClassVar, Protocol, get_type_hints, runtime_checkable

import torch
from torch import Tensor

from graft.errors import AdapterError, TargetError
from graft.forms import Form
from graft.site import LINEAR, ROLES, WHOLES, Site

LARGEST = 2**53  # of a number in a config: beyond it, ints are no longer exact as floats
Tensors = dict[str, Tensor]
Shapes = dict[str, tuple[int, ...]]


class Base(Protocol):
    """What a form may ask of the module below it; quantisation stays hidden behind it."""

    @property
    def site(self) -> Site:
        """The site this is the base of."""

    @property
    def weight(self) -> Tensor:
        """Dense [out, in] (the site's rows of a fused projection only), dequantised on demand."""

    @property
    def bias(self) -> Tensor | None:
        """[out], or None."""

    @property
    def gain(self) -> float:
        """What the module multiplies its product by (Gemma's embeddings do), 1 elsewhere."""

    @property
    def row_norms_sq(self) -> Tensor:
        """Squared L2 norm of each row of the weight, [out], in master precision, computed once."""

    def row_norms(self, A: Tensor, B: Tensor) -> Tensor:
        """L2 norms of the rows of W + B A, [out], detached, in master precision: A [r, in], B [out, r]. No dense sum is made."""

    def parameters(self) -> Tensors:
        """The module's own parameters, in its layout, dequantised."""

    def tokens(self, text: str) -> Tensor:
        """The ids [n] of a text by the model's tokenizer; TargetError where none was given."""

    def embed(self, ids: Tensor) -> Tensor:
        """The model's input embeddings of ids [n]: [n, d]."""

    def keys_values(self, ids: Tensor) -> Tensor:
        """What the frozen model caches for ids [n]: [layers, 2, n, kv heads, head dim]."""


@runtime_checkable
class Method(Protocol):
    """One parameter-efficient fine-tuning method."""

    kind: ClassVar[str]

    def at(self, site: Site) -> bool:
        """Whether the method acts at this site."""

    def shapes(self, site: Site) -> Shapes:
        """The tensors it trains there."""

    def init(self, site: Site, base: Base, rng: torch.Generator) -> Tensors:
        """Fresh tensors of those shapes."""

    def form(self, tensors: Tensors, base: Base) -> Form:
        """The form they take; differentiable, evaluated each step in training and once when serving. Its return annotation says which."""


@runtime_checkable
class Finishing(Protocol):
    """A method that stores something else than it trains."""

    def finish(self, tensors: Tensors, base: Base) -> tuple[Method, Tensors]:
        """What is stored: the method and its tensors."""

    def finished(self) -> Method:
        """The method that is stored, from the config alone."""


def makes(method: Method) -> type:
    """Which of the three forms a method's tensors take."""
    made: type = get_type_hints(type(method).form)["return"]
    return made


def stored(method: Method) -> Method:
    """The method as it is stored: itself, or what it finishes to."""
    return method.finished() if isinstance(method, Finishing) else method


def matches(site: Site, target: str) -> bool:
    """Whether a target names this site.

    A target is a role (`query`), a role in one layer (`query:0`), `all-linear` (every linear map of the layers), or a module name as in
    HF PEFT: the end of a path (`q_proj`, `self_attn.q_proj`) or a regular expression over the whole path. Names mean the module itself,
    never its rows.
    """
    if target == "all-linear":
        return site.role in LINEAR and site.rows is None
    role, _, layer = target.partition(":")
    if role in ROLES and (layer.isdecimal() or target == role):
        return site.role == role and layer in ("", str(site.layer))
    if not site.primary or site.role == "cache":
        return False
    if site.path == target or site.path.endswith(f".{target}"):
        return True
    try:
        return re.fullmatch(target, site.path) is not None
    except re.error:
        return False


def select(method: Method, sites: Sequence[Site]) -> list[Site]:
    """The sites a method acts at, in the model's order.

    Raises TargetError if a target matches nothing (listing what exists), if no site is left, or if a fused projection and rows
    of it are matched at once.
    """
    for target in getattr(method, "targets", ()) or ():
        if not any(matches(site, target) for site in sites):
            raise TargetError(f"{method.kind}: target {target!r} matches nothing in this model. {available(sites)}")
    chosen = [site for site in sites if method.at(site)]
    if not chosen:
        raise TargetError(f"{method.kind}: no place in this model for it{getattr(method, 'hint', '')}. {available(sites)}")
    wholes = {site.path for site in chosen if site.role in WHOLES}
    for site in chosen:
        if site.rows is not None and site.path in wholes:
            raise TargetError(f"{method.kind}: {site.path} is matched as a whole and by its rows ({site.role}): name one of the two")
    return chosen


def available(sites: Sequence[Site]) -> str:
    """A sentence that lists the roles and module names of a model."""
    roles = [role for role in ROLES if any(site.role == role for site in sites)]
    names = sorted({site.path.rsplit(".", 1)[-1] for site in sites if site.role in (*LINEAR, "embedding", "head")})
    return f"Roles here: {', '.join(roles)}. Module names: {', '.join(names)}."


def config(method: Method) -> dict[str, Any]:
    """A method's fields as plain JSON values, its kind first."""
    named = {field.name: getattr(method, field.name) for field in fields(method)}  # type: ignore[arg-type]
    return {"kind": method.kind} | {name: list(value) if isinstance(value, tuple) else value for name, value in named.items()}


def usable(method: Any) -> Method:
    """A method that a user gave. Raises AdapterError, saying what is wrong, where it is none or a field is not of its type."""
    if isinstance(method, type) or not is_dataclass(method) or not hasattr(method, "kind"):
        raise AdapterError(f"{method!r} is no method: give one with its settings, such as graft.LoRA(r=8)")
    for field in fields(method):
        checked(f"{method.kind}.{field.name}", getattr(method, field.name), field.type)
    return method  # type: ignore[return-value]


def checked(name: str, value: Any, kind: Any) -> Any:
    """`value` if it is of the field's type (a list stands for a tuple, an int for a float) and, if a number, one that can be used."""
    if isinstance(value, int | float) and not abs(value) < LARGEST:
        raise AdapterError(f"{name} is not a number of a usable size")
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        value = tuple(value)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    wanted = kind if isinstance(kind, type) else tuple
    if not isinstance(value, wanted) or (wanted is int and isinstance(value, bool)):
        raise AdapterError(f"{name} = {value!r}: expected {getattr(kind, '__name__', kind)}")
    return value
