"""Norms and rotations in one kernel each: compiled by themselves, on the very modules, and put back afterwards.

A norm as transformers writes it is seven small kernels, and rotating queries and keys by their positions ten, which only read and write
what one could: at the few tokens of a decode step they take about a fifth of the time. What they compute is their class's and their
family's alone, so each is compiled once for all layers and all numbers of tokens (but one token, which is a graph of its own).
"""

import functools
import inspect
import logging
from collections.abc import Callable, Iterator
from types import FunctionType, MethodType
from typing import Any

import torch
import torch.nn as nn

from graft.model.foreign import reason

log = logging.getLogger("graft")
WHOLE = (nn.LayerNorm, nn.RMSNorm)  # torch's own are one kernel already
ROTATES = "apply_rotary_pos_emb"
"""The function of a family's file that its attention calls."""
ROUNDED = {"options": {"emulate_precision_casts": True}}
SEVERAL = 13  # tokens: a number that no model has of heads, since a compiler takes two sizes for one that it sees alike


class Lean:
    """The norms and rotations of one model, compiled between `attach` and `detach`; slots may be hung into the modules in between."""

    def __init__(self, model: Any, how: dict[str, Any] | None = None) -> None:
        """`how` is what torch.compile is told; by itself that every rounding stays where it was."""
        self.model, self.held = model, list[nn.Module]()
        self.compiled = functools.cache(functools.partial(torch.compile, dynamic=True, **ROUNDED if how is None else how))

    def attach(self) -> None:
        """Compile, in forwards of several tokens and of one; where that cannot be, all runs as it was, and that is said."""
        try:
            for module, forward in self.found():
                module.__dict__["forward"] = MethodType(forward, module)
                self.held.append(module)
            for count in (SEVERAL, 1) if self.held else ():
                with torch.no_grad():
                    self.model(input_ids=torch.zeros(1, count, dtype=torch.long, device=self.model.device), use_cache=False)
        except Exception as error:  # whatever a compiler lacks
            self.detach()
            log.warning("norms and rotations run uncompiled, which is slower: %s", reason(error))

    def detach(self) -> None:
        """Put all back as it was."""
        for module in self.held:
            module.__dict__.pop("forward", None)
        self.held.clear()

    def found(self) -> Iterator[tuple[nn.Module, Callable[..., Any]]]:
        """The modules that are worth it and whose forward is their class's, and what is to run in its place."""
        for module in self.model.modules():
            if "forward" not in vars(module):
                forward = inspect.unwrap(type(module).forward)
                if is_norm(module):
                    yield module, self.compiled(forward)
                elif ROTATES in forward.__code__.co_names and ROTATES in forward.__globals__:
                    yield module, self.rotating(forward)

    def rotating(self, forward: Any) -> Callable[..., Any]:
        """The same function, with what rotates compiled; nothing else that calls it sees that."""
        names = forward.__globals__ | {ROTATES: self.compiled(forward.__globals__[ROTATES])}
        made = FunctionType(forward.__code__, names, forward.__name__, forward.__defaults__, forward.__closure__)
        made.__kwdefaults__ = forward.__kwdefaults__
        return made


def is_norm(module: nn.Module) -> bool:
    """Whether a module is a norm of many kernels: its class says that it is one, and it has vectors at most."""
    named = type(module).__name__.endswith("Norm") and not isinstance(module, WHOLE)
    return named and not list(module.children()) and all(value.dim() <= 1 for value in module.parameters())
