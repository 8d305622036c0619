"""Graft: every parameter-efficient fine-tuning method on one frozen transformers model.

The names below are imported when they are first asked for, so that `graft --help` needs no torch; type checkers see them at once.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from graft import errors, export
    from graft.methods import IA3, METHODS, BiasOnly, Bottleneck, DoRA, LoRA, Prefix, Prompt, Selective
    from graft.model.adapted import Adapted, adapt
    from graft.model.combine import combine
    from graft.model.digest import digest
    from graft.model.load_adapter import load
    from graft.model.merge import merge, merge_cost, unmerge
    from graft.model.skeleton import count

ROOMS = {
    **dict.fromkeys(("errors", "export"), "graft"),
    **dict.fromkeys(("IA3", "METHODS", "BiasOnly", "Bottleneck", "DoRA", "LoRA", "Prefix", "Prompt", "Selective"), "graft.methods"),
    **dict.fromkeys(("Adapted", "adapt"), "graft.model.adapted"),
    "digest": "graft.model.digest",
    "load": "graft.model.load_adapter",
    "combine": "graft.model.combine",
    **dict.fromkeys(("merge", "merge_cost", "unmerge"), "graft.model.merge"),
    "count": "graft.model.skeleton",
}

__all__ = [
    "IA3",
    "METHODS",
    "Adapted",
    "BiasOnly",
    "Bottleneck",
    "DoRA",
    "LoRA",
    "Prefix",
    "Prompt",
    "Selective",
    "adapt",
    "combine",
    "count",
    "digest",
    "errors",
    "export",
    "load",
    "merge",
    "merge_cost",
    "unmerge",
]


def __getattr__(name: str) -> Any:
    """A public name, from the module it lives in."""
    if name in ("errors", "export"):
        return importlib.import_module(f"graft.{name}")
    if name not in ROOMS:
        raise AttributeError(f"module 'graft' has no attribute {name!r}")
    return getattr(importlib.import_module(ROOMS[name]), name)


def __dir__() -> list[str]:
    """The public names."""
    return __all__
