"""Graft: every parameter-efficient fine-tuning method on one frozen transformers model."""

from graft.methods import IA3, BiasOnly, Bottleneck, DoRA, LoRA, Prefix, Prompt, Selective
from graft.model.adapted import Adapted, adapt
from graft.model.merge import merge, unmerge

__all__ = ["IA3", "Adapted", "BiasOnly", "Bottleneck", "DoRA", "LoRA", "Prefix", "Prompt", "Selective", "adapt", "merge", "unmerge"]
