"""Paged attention as the engine's: no mask, and nothing gathered; requests of any length run through tables of their pages.

transformers fills a table of pages for a batch in which every request has one token, and lists of single places, which a mask goes with,
for any other. Kernels that take requests of any length (graft.kernels.attention.paged) need neither: here every batch has a table.
The name of the attention function holds "flash", by which transformers knows attention that needs no mask.
"""

import math
import threading
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import AttentionInterface

from graft.errors import ServeError
from graft.kernels.attention import paged
from graft.model.positions import context
from graft.serve.guest import Guest, Room

NAME = "graft_paged_flash"
REPLACED = ("sdpa", "eager")
UNLIMITED = 1 << 40
HERE = threading.local()  # whose batch runs on this thread


class Plan(NamedTuple):
    """How a batch is run, known before it is: whether each request has one token, and into how many parts keys are cut."""

    single: bool = False
    parts: int = 1


def suits(model: Any, attention: str) -> bool:
    """Whether this attention can take the place of a model's: kernels run there, and every layer sees all that is before."""
    config = model.config.get_text_config()
    kinds = getattr(config, "layer_types", None) or ["full" if getattr(config, "sliding_window", None) is None else "sliding"]
    head = head_dim(config)
    alike = getattr(config, "v_head_dim", None) in (None, head) and getattr(config, "qk_head_dim", None) in (None, head)
    like = torch.empty(0, 1, head, dtype=model.dtype, device=model.device)
    return attention in REPLACED and alike and all(kind.startswith("full") for kind in kinds) and paged.takes(like)


def head_dim(config: Any) -> int:
    """The size of one head."""
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def pages_for(model: Any, room: Room) -> int:
    """How many pages the longest request has."""
    return math.ceil(min(context(model) or room.cached, room.cached) / room.page)


class Paging:
    """The attention of one batch processor. `plan` is that of the batch being made; `batches`, by kind of layer, of the one that runs."""

    def __init__(self, processor: Any, guest: Guest) -> None:
        self.cache, self.guest = processor.cache, guest
        self.kv_heads = int(getattr(processor.config, "num_key_value_heads", None) or processor.config.num_attention_heads)
        self.plan = Plan()
        self.call: dict[str, Any] = {}
        self.batches: dict[int, paged.Batch] = {}

    def wire(self, processor: Any) -> None:
        """Take the place of what the processor does for other attention."""
        inputs, scheduler, runner = processor.inputs_and_outputs, processor.scheduler, processor.model_runner
        schedule, call = scheduler.schedule_batch, inputs.get_model_kwargs
        most, limit = runner.cb_config.max_requests_per_batch, self.cache.max_batch_tokens

        def schedule_batch(token_budget: int, cache_budget: int) -> tuple[list[Any] | None, bool, int, int]:
            batch, _, tokens, _ = schedule(token_budget, UNLIMITED)  # the budget is of places that other attention lists
            if batch:
                self.plan = self.planned([one.query_length for one in batch], [one.state.position_offset for one in batch])
            return batch, True, tokens, 0

        def get_model_kwargs(*args: Any, **kwargs: Any) -> Any:
            made = call(*args, **kwargs)
            self.call, self.batches, HERE.paging = made, {}, self
            return made

        def maybe_pad_inputs(num_q_tokens: int, max_kv_read: int, use_decode_fast_path: bool) -> tuple[int, int]:
            return (padded(num_q_tokens, most if self.plan.single else limit) if runner.pad_inputs else num_q_tokens), 0

        scheduler.schedule_batch, inputs.get_model_kwargs, runner.maybe_pad_inputs = schedule_batch, get_model_kwargs, maybe_pad_inputs

    def planned(self, lengths: list[int], before: list[int]) -> Plan:
        """The plan of requests of so many tokens, with so many keys before them."""
        if max(lengths) > 1:
            return Plan()
        return Plan(True, paged.parts_for(len(lengths), self.kv_heads, max(before) + 1))

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float, cap: float) -> Tensor:
        """out [T, H, d] of q [T, H, d] over the pages, once the new k and v [T, K, d] are in them."""
        group, k_pages, v_pages, kind = place(self.cache, layer)
        if group not in self.batches:
            ends = self.call["cu_seq_lens_k"]
            ends = ends[kind] if isinstance(ends, dict) else ends
            self.batches[group] = paged.Batch(self.call["cu_seq_lens_q"], ends, self.call["block_table"][group], *self.plan)
        batch = self.batches[group]
        paged.write(batch, k, v, k_pages, v_pages)
        return paged.attend(batch, q, k_pages, v_pages, scale, cap)


def place(cache: Any, layer: int) -> tuple[int, Tensor, Tensor, str]:
    """A layer's row of tables, its pages of keys and of values [pages, page, K, d], and its kind."""
    if hasattr(cache, "layer_to_allocator"):  # 5.24
        allocator = cache.layer_to_allocator[layer]
        return allocator.index, *allocator.get_cache_for_block_table(layer), allocator.layer_type
    group, number = cache.layer_index_to_group_indices[layer]
    shape = -1, cache.block_size, cache.num_key_value_heads, cache.head_dim
    return group, cache.key_cache[number].view(shape), cache.value_cache[number].view(shape), "full_attention"


def padded(tokens: int, most: int) -> int:
    """The size that a batch of so many tokens is padded to, `most` at most: a power of two, or from 64 on one and a half of one."""
    above = 1 << (tokens - 1).bit_length()
    between = above - above // 4
    return min(between if tokens <= between and above > 64 else above, most)


def attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, scaling: float | None = None, **kwargs: Any
) -> tuple[Tensor, None]:
    """transformers' attention function: query [1, H, T, d], key and value [1, K, T, d] -> [1, T, H, d]."""
    if kwargs.get("s_aux") is not None or kwargs.get("position_bias") is not None:
        raise ServeError(f"{type(module).__name__} has attention sinks or biases, which paged attention does not know: serve it elsewhere")
    paging: Paging = HERE.paging
    key, value = paging.guest.keys_values(module.layer_idx, key, value)
    q, k, v = (one.transpose(1, 2)[0] for one in (query, key, value))
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    return paging.attend(module.layer_idx, q, k, v, scale, float(kwargs.get("softcap") or 0.0))[None], None


AttentionInterface.register(NAME, attention)
