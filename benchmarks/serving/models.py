"""The base and its adapters: random weights in the shapes that a point names."""

from collections.abc import Iterable
from typing import Any

import torch
import transformers

import graft
from graft.adapter import Adapter
from graft.serve import Room
from serving.points import KINDS, SHAPES, Point

ON_CARD = torch.cuda.is_available()
ADAPTER_STD = 0.02  # of what is added to fresh tensors: answers differ from the base's


def base(shape: str) -> Any:
    """A Llama in bfloat16 on a card, in float32 elsewhere."""
    config = transformers.LlamaConfig(
        **SHAPES[shape], max_position_embeddings=8192, bos_token_id=None, eos_token_id=None, pad_token_id=None
    )
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16 if ON_CARD else torch.float32)
    try:
        with torch.device("cuda" if ON_CARD else "cpu"):
            model = transformers.LlamaForCausalLM(config)
    finally:
        torch.set_default_dtype(before)
    model.generation_config.eos_token_id = None
    return model.eval().requires_grad_(False)


def adapters(model: Any, kinds: Iterable[Any] = KINDS, std: float = ADAPTER_STD) -> list[Adapter]:
    """One of each kind: adapters that hold the same values take as much memory and time as others, each in a slot of its own."""
    made = []
    for number, method in enumerate(kinds):
        host = graft.adapt(model, method, seed=number)
        generator = torch.Generator(device=model.device).manual_seed(number)
        with torch.no_grad():
            for value in host.parameters():
                value.add_(torch.empty_like(value).normal_(std=std, generator=generator))
        made.append(host.adapter())
        host.detach()
    return made


def room_for(point: Point) -> Room:
    """An engine as large as the point's requests, their virtual tokens included."""
    each = point.length + point.new + 32
    return Room(cached=point.requests * each, batch=512 if ON_CARD else 256, requests=point.requests)
