"""How large an engine is made where nothing is said.

    bytes of a token in the cache = 2 (keys, values) * layers * key-value heads * head dimension * bytes of a number

On a device with a memory of its own the cache takes a share of what the weights leave; on a CPU, whose memory is everybody's, it is small.
"""

from dataclasses import replace
from typing import Any

import torch

from graft.serve.guest import Room

SHARE = 0.8  # of the free memory, for the cache; the rest is for adapters, activations and recorded graphs
ON_CPU = Room(cached=16_384, batch=512, requests=64)
ON_DEVICE = Room(batch=4096, requests=256)
MOST_CACHED = 4 << 20


def room_for(model: Any, *, cached: int | None = None, batch: int | None = None, requests: int | None = None) -> Room:
    """The room for a model where it lies; what is given is taken as it is."""
    room = ON_CPU if model.device.type == "cpu" else ON_DEVICE
    if cached is None and model.device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(model.device)
        cached = min(MOST_CACHED, int(SHARE * free) // token_bytes(model))
    given = {"cached": cached, "batch": batch, "requests": requests}
    return replace(room, **{name: value for name, value in given.items() if value is not None})  # type: ignore[arg-type]


def token_bytes(model: Any) -> int:
    """What one token takes of the cache."""
    config = model.config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return int(2 * config.num_hidden_layers * heads * dim * model.dtype.itemsize)
