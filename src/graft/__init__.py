"""Graft: every parameter-efficient fine-tuning method on one frozen transformers model."""

from graft import errors
from graft.methods import IA3, BiasOnly, Bottleneck, DoRA, LoRA, Prefix, Prompt, Selective
from graft.model.adapted import Adapted, adapt
from graft.model.load_adapter import load
from graft.model.merge import merge, unmerge
from graft.model.skeleton import count

__all__ = [
    "IA3",
    "Adapted",
    "BiasOnly",
    "Bottleneck",
    "DoRA",
    "LoRA",
    "Prefix",
    "Prompt",
    "Selective",
    "adapt",
    "count",
    "errors",
    "load",
    "merge",
    "unmerge",
]
