"""Activation checkpointing of a transformers model, non-reentrant: less memory for one more forward of each layer that needs one.

Transformers 5.24 calls it activation checkpointing; before, it was gradient checkpointing. It also hooks the embeddings so that
their output requires a gradient, which only reentrant checkpointing needs. With the hook the blocks below the lowest that is trained would
run twice and pass on a gradient that nobody asks for: the last two blocks of 32 took as long as all of them. So the hook is taken off, and
those blocks are not checkpointed: they keep nothing anyway.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import takewhile
from typing import Any

import torch.nn as nn

from graft.errors import ModelError
from graft.model.regional import blocks


@contextmanager
def checkpointed(model: Any, wanted: bool = True) -> Iterator[None]:
    """Checkpoint every layer that a gradient goes through, if `wanted`. Raises ModelError where the architecture does not support it."""
    if not wanted:
        yield
        return
    word = "activation" if hasattr(model, "activation_checkpointing_enable") else "gradient"
    try:
        getattr(model, f"{word}_checkpointing_enable")(**{f"{word}_checkpointing_kwargs": {"use_reentrant": False}})
    except ValueError as error:
        raise ModelError(f"{type(model).__name__} cannot be trained with checkpointing; train it without.") from error
    frozen = untouched(model)
    for block in frozen:
        block.gradient_checkpointing = False  # type: ignore[assignment]  # a switch of transformers' layers
    if frozen:
        model.disable_input_require_grads()
    try:
        yield
    finally:
        getattr(model, f"{word}_checkpointing_disable")()
        model.disable_input_require_grads()


def untouched(model: Any) -> list[nn.Module]:
    """The blocks that no gradient goes through: those below the lowest with a trained tensor, if only blocks and the head have any."""
    layers, head = blocks(model), model.get_output_embeddings()
    trained = {id(value) for value in model.parameters() if value.requires_grad}
    above = ids(*layers.values(), *([head] if head is not None else [])) - ids(model.get_input_embeddings())  # a tied head is below, too
    if not trained or trained - above:
        return []
    return list(takewhile(lambda block: hasattr(block, "gradient_checkpointing") and not trained & ids(block), layers.values()))


def ids(*modules: nn.Module) -> set[int]:
    """The parameters of modules, by identity."""
    return {id(value) for module in modules for value in module.parameters()}
