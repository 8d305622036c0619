"""Twins: a module of the same class with trained parameters of its own, in master precision, cast as they are used.

A twin is built without copying the module's weights. Its class is a subclass whose parameters read as their value in the base's
dtype, so that the module's own forward (a scaled embedding's, a norm's) runs unchanged and a fresh twin is bit-identical.
"""

import copy
import functools
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
import torch.nn as nn
from torch import Tensor

from graft.kernels import nf4


def twin_of(module: Any, tensors: dict[str, Tensor], dtype: torch.dtype) -> Any:
    """The module's twin with `tensors` (named and laid out as its parameters) as parameters in `dtype`.

    A 4-bit linear map gets a dense twin that computes in the dtype of its dequantised weight.
    """
    shell = emptied(dense_shell(module) if nf4.is_packed(getattr(module, "weight", None)) else module)
    shell.compute = {name: compute_dtype(module._parameters[name]) for name in tensors}
    device = next(module.parameters(recurse=False)).device
    for name, value in tensors.items():
        shell._parameters[name] = nn.Parameter(value.to(device, dtype).clone())
    cls: Any = type(shell)
    shell.__class__ = twin_class(cls, tuple(tensors))
    return shell


def compute_dtype(value: Tensor) -> torch.dtype:
    """The dtype of a base's parameter, that of the dequantised weight where it is stored in 4 bits."""
    state: Any = getattr(value, "quant_state", None)
    found: torch.dtype = value.dtype if state is None else state.dtype
    return found


def shared(module: Any, twin: Any) -> Any:
    """A twin of `module` that shares another twin's parameters: what a tied module follows."""
    shell = emptied(module)
    shell.compute = twin.compute
    shell._parameters.update({name: twin._parameters[name] for name in shell._parameters if name in twin._parameters})
    cls: Any = type(shell)
    shell.__class__ = twin_class(cls, tuple(name for name, value in shell._parameters.items() if value is not None))
    return shell


def emptied(module: Any) -> Any:
    """A shallow copy of a module without parameters, children, hooks or an instance's forward."""
    shell = copy.copy(module)
    fresh: dict[str, Any] = {
        name: OrderedDict() for name, value in shell.__dict__.items() if name.endswith("_hooks") or name.endswith("_with_kwargs")
    }
    shell.__dict__.update(fresh)
    shell.__dict__["_modules"] = {}
    shell.__dict__["_parameters"] = dict.fromkeys(module._parameters)
    for name in ("forward", "graft_inner"):
        shell.__dict__.pop(name, None)
    return shell


def dense_shell(module: Any) -> nn.Module:
    """A dense linear map of the shape of a 4-bit one, without memory."""
    return nn.Linear(module.in_features, module.out_features, module.bias is not None, device="meta")


@functools.cache  # a compiler tells blocks apart by their modules' classes
def twin_class(cls: Any, names: tuple[str, ...]) -> Any:
    """The subclass whose parameters `names` read in the compute dtype."""

    def reader(name: str) -> property:
        return property(lambda self: self._parameters[name].to(self.compute[name]))

    def apply(self: Any, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        """Move or cast the master parameters, and what they are read as likewise."""
        cls._apply(self, fn, recurse)
        self.compute = {name: fn(torch.empty(0, dtype=dtype)).dtype for name, dtype in self.compute.items()}
        return self

    return type(f"{cls.__name__}Twin", (cls,), {name: reader(name) for name in names} | {"_apply": apply})
