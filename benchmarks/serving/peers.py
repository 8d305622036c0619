"""What others do with the same requests: transformers' own continuous batching, and PEFT's mixed batch."""

import math
import time
from typing import Any

import torch
from transformers import ContinuousBatchingConfig, GenerationConfig

from graft.serve.batching import NAMES, minor
from serving.models import ON_CARD, room_for
from serving.points import Point
from serving.traffic import prompts

RANKS = (8, 16, 64, 8, 16, 64, 8, 16)


def transformers_rate(model: Any, point: Point, seed: int) -> float:
    """Tokens a second of transformers' continuous batching, nothing of ours in it, after a round that is not counted."""
    room, graphs = room_for(point), point.engine.endswith("graphs") and ON_CARD
    blocks = math.ceil(room.cached / room.page)
    asked: dict[str, Any] = {NAMES[minor()].page: room.page, "num_blocks": blocks, "max_batch_tokens": room.batch}
    asked |= {"max_requests_per_batch": room.requests} | ({"use_cuda_graph": True} if graphs else {})
    generation = GenerationConfig(do_sample=False, eos_token_id=-1, pad_token_id=0, max_new_tokens=point.new)
    before = model.config._attn_implementation
    manager = model.init_continuous_batching(generation_config=generation, continuous_batching_config=ContinuousBatchingConfig(**asked))
    manager.start()
    try:
        for turn in range(2):
            texts = prompts(point.requests, point.length, model.config.vocab_size, seed + turn)
            began = time.perf_counter()
            for text in texts:
                manager.add_request(text, max_new_tokens=point.new)
            for _ in texts:
                manager.get_result(timeout=600)
            rate = point.requests * point.new / (time.perf_counter() - began)
    finally:
        manager.stop(block=True)
        model.set_attn_implementation(before)
    return rate


def peft_rate(model: Any, point: Point, seed: int) -> float:
    """Tokens a second of PEFT's `generate` with a LoRA for each row, `point.resident` of them; the model is PEFT's afterwards."""
    import peft

    for number in range(point.resident):
        config = peft.LoraConfig(r=RANKS[number % len(RANKS)], target_modules="all-linear")
        if number:
            model.add_adapter(f"a{number}", config, autocast_adapter_dtype=False)
        else:
            model = peft.get_peft_model(model, config, adapter_name="a0", autocast_adapter_dtype=False)
    model.eval()
    names = [f"a{row % point.resident}" for row in range(point.requests)]
    for turn in range(2):
        ids = torch.tensor(prompts(point.requests, point.length, model.config.vocab_size, seed + turn), device=model.device)
        began = time.perf_counter()
        with torch.no_grad():
            model.generate(
                input_ids=ids, attention_mask=torch.ones_like(ids), adapter_names=names, do_sample=False, max_new_tokens=point.new,
                min_new_tokens=point.new,
            )  # fmt: skip
        if ON_CARD:
            torch.cuda.synchronize()
        rate = point.requests * point.new / (time.perf_counter() - began)
    return rate
