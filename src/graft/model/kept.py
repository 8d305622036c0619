"""Kept: what a model must be given back after a merge, bit for bit, whatever happened to it in between.

The parameters that a merge replaces are kept as they are: that is a second copy of them. Of the others only the storage is remembered,
which costs nothing as long as the model stays where it is; a `.to(dtype)` or `.to(device)` meanwhile leaves the old storage alive, and
it comes back (on the device where the model is then). A sum over their bits tells if something wrote into them.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn as nn
from torch import Tensor

from graft.errors import AdapterError
from graft.kernels import nf4

BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def bits_sum(value: Tensor) -> int:
    """The sum of a tensor's bit patterns, read as integers."""
    return int(value.detach().contiguous().view(BITS[value.element_size()]).sum(dtype=torch.int64))


@dataclass(frozen=True, eq=False)
class Remembered:
    """One parameter: `value` is the object, `storage` its numbers; `total` the sum of its bits, None where a merge replaced it."""

    path: str
    module: nn.Module
    name: str
    value: Any
    storage: Tensor
    total: int | None

    def intact(self) -> bool:
        """Whether nothing wrote into it."""
        return self.total is None or bits_sum(self.storage) == self.total

    def restore(self) -> None:
        """Put it back, on the device where its module is now."""
        now = self.module._parameters.get(self.name)
        if not nf4.is_packed(self.value):
            self.value.data = self.storage if now is None else self.storage.to(now.device)
        self.module._parameters[self.name] = self.value


@dataclass(eq=False)
class Kept:
    """All of a model: parameters and buffers as they were, whole modules that were exchanged (by path), names that had no parameter
    or another config value. `bytes` is what the merged parameters take beside all that, `layout` how the adapter ran fused, if it did.
    """

    parameters: list[Remembered] = field(default_factory=list)
    buffers: list[tuple[nn.Module, str, Tensor]] = field(default_factory=list)
    modules: list[tuple[str, nn.Module]] = field(default_factory=list)
    added: list[tuple[nn.Module, str]] = field(default_factory=list)
    config: dict[str, Any] = field(default_factory=dict)
    bytes: int = 0
    layout: str | None = None

    def restore(self, model: Any) -> None:
        """Give the model everything back. Raises AdapterError, before anything is changed, where what was not kept was overwritten."""
        lost = [f"{one.path}.{one.name}" for one in self.parameters if not one.intact()]
        if lost:
            raise AdapterError(
                f"the base cannot be given back: {len(lost)} parameters that the merge left in place were overwritten since (first "
                f"{lost[0]}), by training the merged model for example: load the base again"
            )
        for path, module in self.modules:
            device = next(model.get_submodule(path).parameters()).device
            same = device == next(module.parameters()).device
            model.set_submodule(path, module if same else module.to(device))
        for module, name in self.added:
            module._parameters[name] = None
        for one in self.parameters:
            one.restore()
        for module, name, value in self.buffers:
            now = module._buffers.get(name)
            if now is not None and now is not value and now.shape == value.shape:
                module._buffers[name] = value.to(now.device)
        for name, value in self.config.items():
            setattr(model.config, name, value)


def remember(model: Any, replaced: set[tuple[str, str]]) -> Kept:
    """What to keep of a model of which a merge replaces the parameters `replaced`, as (module's path, name)."""
    kept = Kept()
    for path, module in model.named_modules():
        for name, value in module._parameters.items():
            if value is not None:
                total = None if (path, name) in replaced else bits_sum(value)
                kept.parameters.append(Remembered(path, module, name, value, value.detach(), total))
        kept.buffers += [(module, name, value) for name, value in module._buffers.items() if value is not None]
    return kept
