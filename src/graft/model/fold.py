"""Folding: an adapter as new values of its base's own parameters, W' = (diag(c) W + B A) diag(i) and b' = c*b0 + B a + b.

The forms are made as they run, in master precision; from there on everything is float64, block of rows by block of rows, with one
rounding at the end. A replaced module's parameters are rounded once to the module's dtype, as its twin runs.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from graft.adapter import Adapter
from graft.errors import AdapterError
from graft.forms import Affine, apart, cast, merged, merged_bias, why_unmergeable
from graft.kernels import nf4
from graft.method import Tensors, makes
from graft.model.base import ModuleBase, dense, master_dtype
from graft.model.slots import OWN, Station, ordered

Here = list[tuple[Station, Tensors]]
BLOCK = 1 << 24  # values of a weight that are held in float64 at a time


def stations(model: Any, adapter: Adapter) -> dict[str, Here]:
    """An adapter's stations and tensors (on their module's device, in master precision) by module."""
    found: dict[str, Here] = {}
    for method, sites in adapter.parts:
        for site, tensors in sites.items():
            device = next(model.get_submodule(site.path).parameters()).device
            own = {name: value.to(device, master_dtype(model)) for name, value in tensors.items()}
            found.setdefault(site.path, []).append((Station(method, site, ModuleBase(model, site), {}), own))
    return found


def why_not(found: Mapping[str, Here]) -> str:
    """The reason why an adapter cannot become part of the base's weights; empty if it can."""
    for here in found.values():
        for station, tensors in here:
            form = station.method.form(tensors, station.base)
            reason = why_unmergeable(form)
            if not reason and isinstance(form, Affine) and station.source(form) != OWN:
                reason = "it reads another module's input"
            if reason:
                return f"{station.method.kind} cannot be merged: {reason}"
    return ""


def whole(here: Here) -> Tensors:
    """The parameters of a module that is trained as a whole; {} where it is not."""
    return next((tensors for station, tensors in here if makes(station.method) is not Affine), {})


def affine(model: Any, path: str, here: Here) -> Affine | None:
    """The one affine form of a module, joined and placed among the rows of a fused projection; None if there is none."""
    module = model.get_submodule(path)
    outputs = getattr(module, "out_features", getattr(module, "nf", 0))
    held = {id(station): tensors for station, tensors in here}
    forms = ordered([station for station, _ in here], lambda station: held[id(station)], outputs)
    return forms[0][1] if forms else None


def followers(model: Any, found: dict[str, Here]) -> dict[str, str]:
    """Modules whose weight is that of a replaced one, and which are not replaced themselves: {path: the replaced one's path}."""
    owners = [path for path, here in found.items() if whole(here)]
    return {name: path for path in owners for name in tied_to(model, path) if name not in owners}


def tied_to(model: Any, path: str) -> list[str]:
    """The modules that are tied to this one: later in the model, with this one's own parameter as their weight."""
    weight = model.get_submodule(path)._parameters.get("weight")
    names = [name for name, module in model.named_modules() if weight is not None and module._parameters.get("weight") is weight]
    return names[names.index(path) + 1 :] if path in names else []


def fold(model: Any, found: dict[str, Here], dtype: Callable[[Any], torch.dtype], *, as_run: bool = True) -> Iterator[tuple[str, Tensors]]:
    """Each module's changed parameters, in its own layout and in the dtype that `dtype` says for the module.

    `as_run` False leaves the parameters of modules trained as a whole in master precision. Modules that merely follow a tied one are left
    out. Raises AdapterError where a value is too large for the dtype.
    """
    follows = followers(model, found)
    for path, here in found.items():
        module, into = model.get_submodule(path), dtype(model.get_submodule(path))
        trained = whole(here) or ({"weight": whole(found[follows[path]])["weight"]} if path in follows else {})
        trained = {name: value.to(own_dtype(module)) if as_run else value for name, value in trained.items()}
        made = folded(module, affine(model, path, here), trained, into, flipped=is_flipped(module, here))
        for name, value in made.items():
            if not bool(torch.isfinite(value).all()):
                raise AdapterError(f"the merged {name} of {path} has values too large for {into}: load the base in bfloat16 or float32")
        yield path, made


def folded(module: Any, form: Affine | None, trained: Tensors, dtype: torch.dtype, *, flipped: bool) -> Tensors:
    """One module's changed parameters: those trained as a whole, with the form folded in."""
    values = {name: dense(value) for name, value in module.named_parameters(recurse=False)} | trained
    made = dict(trained)
    if form is not None:
        form = apart(cast(form, wide(next(iter(form.tensors().values())))))
        names = touched(form, {name: value.shape for name, value in values.items()})
        if "weight" in names:
            weight, gain = values["weight"], gain_of(module, own_dtype(module))
            made["weight"] = by_rows(form, weight.t(), gain, dtype).t() if flipped else by_rows(form, weight, gain, dtype)
        if "bias" in names:
            bias = merged_bias(form, None if values.get("bias") is None else values["bias"].to(form_dtype(form)))
            made |= {} if bias is None else {"bias": bias}
    return {name: value.to(dtype).contiguous() for name, value in made.items()}


def by_rows(form: Affine, weight: Tensor, gain: float, dtype: torch.dtype) -> Tensor:
    """W' [out, in] in `dtype` for a weight [out, in] whose module multiplies its product by `gain`; few rows at a time are wide."""
    out = torch.empty(weight.shape, dtype=dtype, device=weight.device)
    step = max(1, BLOCK // weight.shape[1])
    for k in range(0, len(weight), step):
        part = {name: getattr(form, name)[k : k + step] for name in ("c", "B") if getattr(form, name) is not None}
        block = weight[k : k + step].to(form_dtype(form))
        value, _ = merged(replace(form, b=None, a=None, **part), block * gain, None)
        if value is not None:
            out[k : k + step] = value / gain
    return out


def touched(form: Affine, shapes: Mapping[str, Sequence[int]]) -> set[str]:
    """Which of a module's parameters a form changes. Raises AdapterError where it needs a matrix and there is none."""
    matrix = form.c is not None or form.A is not None or form.i is not None
    if matrix and len(shapes["weight"]) != 2:
        raise AdapterError("this adapter cannot be merged: the module has no weight matrix")
    biased = form.b is not None or form.a is not None or (form.c is not None and "bias" in shapes)
    return ({"weight"} if matrix else set()) | ({"bias"} if biased else set())


def form_dtype(form: Affine) -> torch.dtype:
    """The dtype of a form's tensors."""
    return next(iter(form.tensors().values())).dtype


def wide(value: Tensor) -> torch.dtype:
    """The widest floating dtype on a tensor's device."""
    return torch.float32 if value.device.type == "mps" else torch.float64


def own_dtype(module: Any) -> torch.dtype:
    """The dtype that a module's dense parameters have."""
    found = [dense(value).dtype if nf4.is_packed(value) else value.dtype for value in module.parameters(recurse=False)]
    return next(dtype for dtype in found if dtype.is_floating_point)


def gain_of(module: Any, dtype: torch.dtype) -> float:
    """What a module multiplies its product by, as it does in its dtype."""
    gain = getattr(module, "embed_scale", 1.0)
    return float(gain.to(dtype) if isinstance(gain, Tensor) else gain)


def is_flipped(module: Any, here: Here) -> bool:
    """Whether a module's weight is stored [in, out]: Conv1D's and embeddings' are."""
    return type(module).__name__ == "Conv1D" or any(station.site.role == "embedding" for station, _ in here)
