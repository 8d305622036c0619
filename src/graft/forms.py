"""The three forms to which every method reduces, and what follows from them: run, place among rows, join, merge.

    Affine          y  = base(i*x)                                    base is the module itself, its bias included
                    y' = c*y + act(drop(x') A^T + a) B^T + b          x' = i*x, or y itself where the form reads y
                    y' = c*(y + act(drop(x') A^T + a) B^T) + b        where c scales the sum
                    y' = base(x + act(drop(y) A^T + a) B^T + b)       where it reads y and adds to x
    Replacement     the module is exchanged for a trained twin of the same class
    VirtualTokens   n positions before the text: keys and values of every layer, or embeddings

Absent fields are None, never a neutral tensor: only so is a fresh adapter bit-identical to its base, and costs nothing.
`b` is a delta to the base's own bias, and a method folds its scale into `B`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from graft.errors import AdapterError
from graft.kernels.activations import ACTIVATIONS as ACTIVATIONS
from graft.kernels.affine.reference import scaled as scaled
from graft.site import Rows


@dataclass(frozen=True)
class Affine:
    """Shapes: c [out], i [in], A [r, in] (or [r, out] where the form reads y), a [r], B [out, r], b [out].

    `reads`: "x" or "y"; `adds`: to "y" or "x"; `scales`: c scales "y", or the "sum" of y and the branch.
    At an embedding x is integer ids [...], and `A` [r, vocabulary] is looked up instead of multiplied.
    """

    c: Tensor | None = None
    i: Tensor | None = None
    A: Tensor | None = None
    a: Tensor | None = None
    B: Tensor | None = None
    b: Tensor | None = None
    act: str = "identity"
    reads: str = "x"
    adds: str = "y"
    scales: str = "y"
    dropout: float = 0.0

    def tensors(self) -> dict[str, Tensor]:
        """The fields that are present."""
        named = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in named.items() if isinstance(value, Tensor)}


@dataclass(frozen=True)
class Replacement:
    """The twin's parameters, named and laid out as in the module it stands for."""

    parameters: dict[str, Tensor]


@dataclass(frozen=True)
class VirtualTokens:
    """`kv` [layers, 2, n, kv heads, head dim] or `embeds` [n, d]; `shift`: the text's positions start at n instead of 0."""

    kv: Tensor | None = None
    embeds: Tensor | None = None
    shift: bool = True


Form = Affine | Replacement | VirtualTokens


def is_idle(form: Form) -> bool:
    """Whether an affine form leaves its module as it is: the scales are 1 (to a rounding of float32), branch and shift are 0."""
    if not isinstance(form, Affine):
        return False
    scales = all(value is None or bool(((value - 1).abs() < 1e-6).all()) for value in (form.c, form.i))
    branch = form.B is None or not bool(form.B.any()) or (form.A is not None and form.a is None and not bool(form.A.any()))
    return scales and branch and (form.b is None or bool((form.b.abs() < 1e-6).all()))


def apart(form: Affine) -> Affine:
    """The same form with a c that scales y alone: B' = diag(c) B."""
    if form.scales == "y":
        return form
    B = form.B if form.c is None or form.B is None else form.c[:, None] * form.B
    return replace(form, B=B, scales="y")


def cast(form: Affine, dtype: torch.dtype) -> Affine:
    """The form with every tensor in `dtype`."""
    changed: dict[str, Any] = {name: value.to(dtype) for name, value in form.tensors().items()}
    return replace(form, **changed)


def run(form: Affine, source: Tensor, target: Tensor, *, training: bool = False) -> Tensor:
    """c * target [..., out] + the branch of source [..., in] (or ids [...]) + b, in the dtype of target.

    `source` is what the form reads, scaled by i already, and `target` what it adds to: of a module's x and y. Tensors in master precision
    become compute precision here, all but the scales.
    """
    dtype = target.dtype
    out = target if form.scales == "sum" else scaled(target, form.c)
    if form.A is not None and form.B is not None:
        h = project(source, form.A.to(dtype), form.dropout if training else 0.0)
        h = h if form.a is None else h + form.a.to(dtype)
        out = out + F.linear(ACTIVATIONS[form.act](h), form.B.to(dtype))
    return shifted(scaled(out, form.c) if form.scales == "sum" else out, form.b)


def shifted(value: Tensor, b: Tensor | None) -> Tensor:
    """value + b, in the dtype of value."""
    return value if b is None else value + b.to(value.dtype)


def project(source: Tensor, A: Tensor, dropout: float = 0.0) -> Tensor:
    """drop(source) A^T: source [..., in] -> [..., r]; integer ids [...] are looked up in A's columns."""
    if not source.is_floating_point():
        return F.dropout(F.embedding(source, A.t()), dropout)
    return F.linear(F.dropout(source, dropout) if dropout else source, A)


def at_rows(form: Affine, rows: Rows, total: int) -> Affine:
    """A form of some outputs of a fused projection, as a form of all `total` outputs: c is 1 elsewhere, B and b are 0."""
    if form.i is not None or form.reads == "y":
        raise AdapterError(
            "a form of some rows of a fused projection cannot scale its input or read its output: target the whole projection"
        )
    index = torch.tensor(rows.indices(), device=next(iter(form.tensors().values())).device)

    def spread(value: Tensor | None, fill: float) -> Tensor | None:
        return None if value is None else value.new_full((total, *value.shape[1:]), fill).index_copy(0, index, value)

    return replace(form, c=spread(form.c, 1.0), B=spread(form.B, 0.0), b=spread(form.b, 0.0))


def join(forms: Sequence[Affine]) -> Affine:
    """Forms that meet on one module and read the same tensor, as one: branches side by side, b summed, c and i multiplied."""
    if len(forms) == 1:
        return forms[0]
    forms = [apart(form) for form in forms]
    if any(form.adds == "x" for form in forms):
        raise AdapterError("an adapter at the norm that ends a post-norm block runs that norm again: nothing else can act there")
    branches = [form for form in forms if form.A is not None]
    if len({(form.act, form.dropout) for form in branches}) > 1 or len({form.reads for form in forms}) > 1:
        raise AdapterError("two methods meet on one module with different activations, dropouts or inputs: give them different targets")
    first = branches[0] if branches else forms[0]
    r = sum(form.A.shape[0] for form in branches if form.A is not None)
    shifted = any(form.a is not None for form in branches)
    return replace(
        first,
        c=folded([form.c for form in forms], torch.mul),
        i=folded([form.i for form in forms], torch.mul),
        b=folded([form.b for form in forms], torch.add),
        A=torch.cat([form.A for form in branches if form.A is not None]) if r else None,
        B=torch.cat([form.B for form in branches if form.B is not None], dim=1) if r else None,
        a=torch.cat([form.A.new_zeros(form.A.shape[0]) if form.a is None else form.a for form in branches if form.A is not None])
        if shifted
        else None,
    )


def folded(values: Sequence[Tensor | None], combine: Callable[[Tensor, Tensor], Tensor]) -> Tensor | None:
    """The present values combined from left to right; None if all are absent."""
    total: Tensor | None = None
    for value in values:
        if value is not None:
            total = value if total is None else combine(total, value)
    return total


def why_unmergeable(form: Form) -> str:
    """The reason why a form cannot become part of a weight, or "" if it can."""
    if isinstance(form, VirtualTokens):
        return "virtual tokens are positions, not weights"
    if isinstance(form, Affine) and form.A is not None and (form.act != "identity" or form.reads != "x"):
        return "a branch with an activation, or one that reads the module's output, is no linear map of its input"
    return ""


def merged(form: Affine, weight: Tensor | None, bias: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    """W' = (diag(c) W + B A) diag(i) and b' = c*b0 + B a + b, in the precision of the form.

    `weight` [out, in] or None where the module is no linear map (a norm); `bias` [out] or None. Raises AdapterError where a merge
    does not exist.
    """
    form, reason = apart(form), why_unmergeable(form)
    if reason or (weight is None and not (form.A is None and form.i is None and form.c is None)):
        raise AdapterError(f"this adapter cannot be merged: {reason or 'the module has no weight matrix'}")
    if weight is not None:
        weight = weight if form.c is None else form.c[:, None] * weight
        weight = weight if form.A is None or form.B is None else weight + form.B @ form.A
        weight = weight if form.i is None else weight * form.i
    return weight, merged_bias(form, bias)


def merged_bias(form: Affine, bias: Tensor | None) -> Tensor | None:
    """b' = c*b0 + B a + b, [out]; None where neither the module nor the form has any of it."""
    scaled = None if bias is None else (bias if form.c is None else form.c * bias)
    branch = None if form.a is None or form.B is None else form.B @ form.a
    return folded([scaled, branch, form.b], torch.add)
