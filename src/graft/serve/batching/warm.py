"""Recording the CUDA graphs of the bare base's batches before the first request: each size that a batch is padded to."""

from collections.abc import Iterator
from typing import Any

import torch
from transformers.generation.continuous_batching import requests, utils

from graft.serve.batching.paging import Paging, Plan, padded

create: Any = getattr(requests, "create_warmup_future_states", None) or utils.create_warmup_future_states
STATUS = requests.RequestStatus


@torch.no_grad()
def warm(processor: Any, model: Any, paging: Paging) -> None:
    """Run a batch of each size with every set of static tensors; a model without graphs needs none. For the engine's thread."""
    inputs, cache, runner = processor.inputs_and_outputs, processor.cache, processor.model_runner
    if not runner.pad_inputs:
        return
    longest = cache.max_blocks_per_request * page_of(cache)
    for tokens, single in sizes(runner.cb_config.max_requests_per_batch, min(cache.max_batch_tokens, longest)):
        for _ in range(len(getattr(inputs, "io_pairs", [None]))):
            count, length = (tokens, 1) if single else (1, tokens)
            states = create(count, STATUS.DECODING if single else STATUS.PREFILLING, length, 0, cache)
            try:
                if len(states) == count:
                    paging.plan = Plan(single)
                    inputs.prepare_batch_tensors(states, processor.logit_processor, True, tokens, 0, True)
                    wait(inputs)
                    runner.compute_batch(model, inputs.get_model_kwargs(use_padding=True))
                    wait(inputs)
            finally:
                for one in states:
                    cache.free_blocks(one.state.request_id)
            if hasattr(inputs, "io_pairs"):
                inputs.swap_io_pairs()
    inputs.reset()
    if hasattr(cache, "reset"):
        cache.reset()  # 5.24: pages go back to what all kinds of layers share


def wait(inputs: Any) -> None:
    """Until the device has done all: static tensors are written again right after."""
    if inputs.compute_stream is not None:
        torch.cuda.synchronize()


def sizes(requests: int, tokens: int) -> Iterator[tuple[int, bool]]:
    """The sizes of batches and whether they are of single tokens, the largest first, so that the graphs' memory is that of the largest."""
    for most, single in ((tokens, False), (requests, True)):
        found = sorted({padded(count, most) for count in range(1, most + 1)}, reverse=True)
        yield from ((size, single) for size in found if single or size > 1)


def page_of(cache: Any) -> int:
    """How many tokens a page holds."""
    found = getattr(cache, "block_size", None)
    return int(found if found is not None else next(iter(cache.cache_allocators.values())).tokens_per_page)
