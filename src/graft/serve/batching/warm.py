"""Recording CUDA graphs before the batches come that need them: the bare base's at the start, what went stale while nothing runs.

A graph belongs to a size that batches are padded to, to its plan (graft.serve.batching.paging) and to what its requests ask for, the
guest's variant. With two sets of static tensors (batches that overlap) each has its own.
"""

import functools
from collections.abc import Callable, Hashable, Iterator
from typing import Any, NamedTuple

import torch
from transformers.generation.continuous_batching import requests, utils

from graft.serve.batching.paging import Paging, Plan, padded

create: Any = getattr(requests, "create_warmup_future_states", None) or utils.create_warmup_future_states
STATUS = requests.RequestStatus


class Kind(NamedTuple):
    """A batch of so many tokens, each a request of its own or not, and its variant."""

    tokens: int
    single: bool
    variant: Hashable


def warm(processor: Any, model: Any, paging: Paging) -> None:
    """Run a batch of each kind with every set of static tensors; a model without graphs needs none. For the engine's thread."""
    if processor.model_runner.pad_inputs:
        for kind in kinds(processor):
            run(processor, model, paging, kind)
        processor.inputs_and_outputs.reset()
        if hasattr(processor.cache, "reset"):
            processor.cache.reset()  # 5.24: pages go back to what all kinds of layers share


def catch_up(processor: Any, model: Any, paging: Paging, busy: Callable[[], bool]) -> None:
    """Record what is missing, while nothing runs and nobody waits."""
    if processor.scheduler.has_pending_requests():
        return
    ran = False
    for kind in missing(processor):
        if busy():
            break
        run(processor, model, paging, kind, busy)
        ran = True
    if ran:
        processor.inputs_and_outputs.reset()  # what ran last had no requests of anybody


def missing(processor: Any) -> list[Kind]:
    """What is likely to come and not recorded yet; nothing where there are no graphs."""
    runner, inputs = processor.model_runner, processor.inputs_and_outputs
    recorded = runner.pad_inputs and runner.use_cuda_graph_decode
    return [kind for kind in kinds(processor) if not known(inputs, kind)] if recorded else []


def kinds(processor: Any) -> Iterator[Kind]:
    """Every kind that the guest thinks likely."""
    runner, cache, guest = processor.model_runner, processor.cache, processor.logit_processor.guest
    longest = min(cache.max_batch_tokens, cache.max_blocks_per_request * page_of(cache))
    for variant, singles in guest.variants():
        for tokens, single in sizes(runner.cb_config.max_requests_per_batch, longest):
            if singles or not single:
                yield Kind(tokens, single, variant)


def known(inputs: Any, kind: Kind) -> bool:
    """Whether each set of static tensors has a graph of this kind."""
    holders = [pair.device_io for pair in inputs.io_pairs] if hasattr(inputs, "io_pairs") else [inputs]
    return all((kind.tokens, Plan(kind.single), kind.variant) in each.graphs._storage for each in holders)


@torch.no_grad()
def run(processor: Any, model: Any, paging: Paging, kind: Kind, busy: Callable[[], bool] = lambda: False) -> None:
    """Run a batch of one kind with every set of static tensors, or until somebody comes, which records what is not recorded."""
    inputs, cache, rows = processor.inputs_and_outputs, processor.cache, processor.logit_processor
    count, length = (kind.tokens, 1) if kind.single else (1, kind.tokens)
    for number in range(len(getattr(inputs, "io_pairs", [None]))):
        if number and busy():
            break
        states = create(count, STATUS.DECODING if kind.single else STATUS.PREFILLING, length, 0, cache)
        try:
            if len(states) == count:
                paging.plan = Plan(kind.single)
                inputs.prepare_batch_tensors(states, rows, True, kind.tokens, 0, True)
                rows.assume(kind.variant)
                wait(inputs)
                processor.model_runner.compute_batch(model, inputs.get_model_kwargs(use_padding=True))
                wait(inputs)
        finally:
            for one in states:
                cache.free_blocks(one.state.request_id)
        if hasattr(inputs, "io_pairs"):
            inputs.swap_io_pairs()


def wait(inputs: Any) -> None:
    """Until the device has done all: static tensors are written again right after."""
    if inputs.compute_stream is not None:
        torch.cuda.synchronize()


@functools.cache
def sizes(most_requests: int, most_tokens: int) -> tuple[tuple[int, bool], ...]:
    """The sizes of batches and whether they are of single tokens, the largest first, so that the graphs' memory is that of the largest."""
    found: list[tuple[int, bool]] = []
    for most, single in ((most_tokens, False), (most_requests, True)):
        own = sorted({padded(count, most) for count in range(1, most + 1)}, reverse=True)
        found += [(size, single) for size in own if single or size > 1]
    return tuple(found)


def page_of(cache: Any) -> int:
    """How many tokens a page holds."""
    found = getattr(cache, "block_size", None)
    return int(found if found is not None else next(iter(cache.cache_allocators.values())).tokens_per_page)
