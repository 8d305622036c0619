"""Activation checkpointing of a transformers model, non-reentrant: less memory for one more forward of each layer.

Transformers 5.24 calls it activation checkpointing; before, it was gradient checkpointing. It also hooks the embeddings so that
their output requires a gradient, which only reentrant checkpointing needs: the hook is taken off again at the end.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from graft.errors import ModelError


@contextmanager
def checkpointed(model: Any, wanted: bool = True) -> Iterator[None]:
    """Checkpoint every layer inside the block, if `wanted`. Raises ModelError where the architecture does not support it."""
    if not wanted:
        yield
        return
    word = "activation" if hasattr(model, "activation_checkpointing_enable") else "gradient"
    try:
        getattr(model, f"{word}_checkpointing_enable")(**{f"{word}_checkpointing_kwargs": {"use_reentrant": False}})
    except ValueError as error:
        raise ModelError(f"{type(model).__name__} cannot be trained with checkpointing; train it without.") from error
    try:
        yield
    finally:
        getattr(model, f"{word}_checkpointing_disable")()
        model.disable_input_require_grads()
