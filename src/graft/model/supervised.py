"""Logits at chosen positions only: the head, often the largest product of a small model, is not run anywhere else."""

from collections.abc import Mapping
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from graft.errors import ModelError


def logits_at(model: Any, batch: Mapping[str, Tensor], mask: Tensor) -> Tensor:
    """Logits [N, vocabulary] at the N positions where `mask` [B, T] is true, in row order, of a causal model.

    `batch` holds the forward's arguments (labels, if any, are left out). The hidden states are picked before the head runs, so that
    memory and time are those of N positions. A prompt's extra positions come before the text and are never picked.
    """
    head = model.get_output_embeddings()
    if head is None:
        raise ModelError(f"{type(model).__name__} has no language-model head: load it with AutoModelForCausalLM")

    def pick(module: Any, args: tuple[Any, ...]) -> tuple[Tensor]:
        hidden = args[0]
        extra = hidden.shape[1] - mask.shape[1]
        return (hidden[F.pad(mask, (extra, 0))],)

    handle = head.register_forward_pre_hook(pick)
    try:
        inputs = {name: value for name, value in batch.items() if name != "labels"}
        logits: Tensor = model(**inputs, use_cache=False).logits
    finally:
        handle.remove()
    return logits
