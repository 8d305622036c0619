"""Importing what describes a model without what would run it: for a process that plans and ends.

transformers' model classes import torch's compiler and its distributed tensors, to mark functions and to ask what a tensor is; tensors
without memory ask whether a condition is a symbol. All of that is large and brings sympy along: it takes longer to import than everything
that a plan does. Here modules are put off: a few functions have a stand-in that does the same where nothing is compiled or symbolic, and
whatever else is asked of such a module gets the real one. Torch says that it was built without distributed, which transformers and
accelerate know how to live with.
"""

import gc
import importlib
import sys
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from types import ModuleType
from typing import Any


def unmarked(function: Callable[..., Any] | None = None, *_: Any, **__: Any) -> Any:
    """The function itself, or what gives it back, as a decorator with arguments."""
    return (lambda given: given) if function is None else function


class Symbol:
    """What nothing is an instance of."""


STAND_INS: dict[str, dict[str, Any]] = {
    "torch._dynamo": dict.fromkeys(("allow_in_graph", "assume_constant_result", "disable"), unmarked),
    "torch.fx.experimental.symbolic_shapes": {
        **dict.fromkeys(("expect_true", "guard_or_false", "guard_or_true", "guard_size_oblivious", "statically_known_true"), bool),
        "guarding_hint_or_throw": int,
        "has_guarding_hint": lambda _: True,
        "is_nested_int": lambda _: False,
        "sym_and": lambda *found: all(found),
        "sym_or": lambda *found: any(found),
        "sym_eq": lambda one, other: list(one) == list(other) if isinstance(one, list | tuple) else one == other,
    },
    "sympy": {"Basic": Symbol},
}
"""By module: names that need not be the real ones."""


class Deferred(ModuleType):
    """A module until something of it is used that has no stand-in."""

    def __init__(self, name: str, known: Mapping[str, Any]) -> None:
        super().__init__(name)
        self.__spec__ = find_spec(name)
        places = self.__spec__.submodule_search_locations if self.__spec__ else None
        if places is not None:
            self.__path__ = list(places)
        vars(self).update(known)

    def __getattr__(self, name: str) -> Any:
        """What the real module has by this name."""
        if name.startswith("__"):
            raise AttributeError(name)
        if sys.modules.get(self.__name__) is self:
            del sys.modules[self.__name__]
        return getattr(importlib.import_module(self.__name__), name)


def defer() -> None:
    """Put off what a plan does not use for the rest of this process, and collecting garbage with it.

    Nothing is done where torch is imported already: such a process may have other plans.
    """
    if "torch" in sys.modules:
        return
    gc.disable()
    import torch.distributed

    for name, known in STAND_INS.items():
        if name not in sys.modules:
            sys.modules[name] = Deferred(name, known)
    torch.distributed.is_available = lambda: False
