"""What is hung into a batch processor of transformers: the guest's rows, its choice of tokens, its keys and values, and the salts.

Nothing of transformers' classes is changed: what is replaced are attributes of these very objects.
"""

from collections.abc import Hashable
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers.generation.continuous_batching.continuous_api import OutputRouter

from graft.serve.batching.graphs import Graphs
from graft.serve.batching.paging import Paging
from graft.serve.guest import Guest, Scheduled

if TYPE_CHECKING:
    from graft.serve.batching.manager import Batching

LARGEST = {torch.float16: 2.0**13}
"""Keys and values that models have are far below; where there is nothing else, 2^60."""


class Rows:
    """In the place of transformers' list of logits processors: rows of ours, and the choice of the next tokens."""

    def __init__(self, guest: Guest) -> None:
        self.guest = guest
        self.tensors_required = guest.rows
        self.do_processing = True
        self.chosen: Tensor | None = None
        self.variant: Hashable = ()

    def check_kwargs(self, kwargs: dict[str, Any]) -> None:
        """Requests carry none."""

    def fill_defaults(self, storage: Tensor) -> None:
        """Zeros [rows, 1]."""
        storage.zero_()

    def prepare_tensor_args(self, requests_in_batch: list[Any], arg_storage: Tensor) -> Tensor:
        """Fill the rows for a batch."""
        batch = [
            Scheduled(one.state.request_id, one.query_length, one.state.position_offset, one.has_new_token) for one in requests_in_batch
        ]
        self.variant = self.guest.fill(batch, arg_storage)
        return arg_storage

    def assume(self, variant: Hashable) -> None:
        """Take the batch that was filled for one of this variant."""
        self.variant = variant
        self.guest.assume(variant)

    def __call__(self, input_ids: Tensor, scores: Tensor, logits_processor_args: Tensor) -> Tensor:
        """Choose; the engine's own choice, which follows, is replaced by `sample`."""
        self.chosen = self.guest.choose(scores, logits_processor_args)
        return scores

    def sample(self, scores: Tensor, output_ids: Tensor) -> None:
        """Write what was chosen, [up to 1 + outputs, n], into the output tensor [1 + outputs, width]."""
        if self.chosen is not None:
            output_ids[: len(self.chosen), : self.chosen.shape[1]].copy_(self.chosen)


class Router(OutputRouter):  # type: ignore[misc]
    """Results go to the guest at once, on the engine's thread, which needs no event loop."""

    def __init__(self, batching: "Batching") -> None:
        super().__init__()
        self.batching = batching
        self.rows: dict[str, Tensor] = {}  # outputs of the last batch

    def deliver(self, output: Any) -> None:
        """Hand one on."""
        if output.is_finished():
            self.batching.salts.pop(output.request_id, None)
        row = self.rows.get(output.request_id)
        failed = "" if output.error is None else str(output.error) or "an error that says nothing of itself"
        self.batching.guest.deliver(output.request_id, output.generated_tokens, row, finished=output.is_finished(), error=failed)

    def deliver_batch(self, outputs: list[Any]) -> None:
        """Hand all on."""
        for output in outputs:
            self.deliver(output)


def inputs_of(inputs: Any) -> list[Any]:
    """Every set of static tensors: one, or two pairs where batches overlap."""
    pairs = getattr(inputs, "io_pairs", None)
    return [inputs] if pairs is None else [each for pair in pairs for each in (pair.host_io, pair.device_io)]


def widen(inputs: Any, batching: "Batching", rows: Rows) -> None:
    """Room for the guest's outputs in one set of static tensors, and a graph's key with what is ours."""
    kept, own_key = inputs.output_ids, inputs._get_graph_key
    shape = 1 + batching.guest.outputs, kept.shape[1]
    inputs.output_ids = torch.zeros(shape, dtype=kept.dtype, device=kept.device, pin_memory=kept.is_pinned())
    inputs.graphs = Graphs()
    inputs._get_graph_key = lambda: (*own_key(), batching.plan, rows.variant)


def wire(processor: Any, batching: "Batching", rows: Rows) -> None:
    """Put the guest into the parts of a new processor, as attributes of these very objects: no class of transformers is changed."""
    guest, inputs = batching.guest, processor.inputs_and_outputs
    for each in inputs_of(inputs):
        widen(each, batching, rows)
    processor.model_runner._sample = rows.sample
    if batching.paged:
        batching.paging = Paging(processor, guest)
        batching.paging.wire(processor)
    wire_cache(processor.cache, batching)
    prepare, update, drop = processor.prepare_next_batch, inputs.prepare_batch_update, processor.scheduler.clear_cancelled_requests

    def prepare_next_batch() -> bool:
        guest.between()
        ready = bool(prepare())
        if not ready:
            batching.idle(processor)
        if inputs.compute_stream is not None and not hasattr(inputs, "io_pairs"):
            inputs.compute_stream.wait_stream(torch.cuda.current_stream())  # which wrote the batch's inputs
        return ready

    def prepare_batch_update() -> Any:
        done = update()
        pairs = getattr(inputs, "io_pairs", None)
        written = (inputs if pairs is None else pairs[inputs.current_pair].host_io).output_ids
        new = [one.state.request_id for one in done[0] if one.has_new_token]
        processor.output_router.rows = dict(zip(new, written[1:, : len(new)].t().clone(), strict=True))
        return done

    def clear_cancelled_requests() -> list[Any]:
        states: list[Any] = drop()
        for state in states:
            batching.salts.pop(state.request_id, None)
            guest.gone(state.request_id)
        return states

    processor.prepare_next_batch = prepare_next_batch
    inputs.prepare_batch_update = prepare_batch_update
    processor.scheduler.clear_cancelled_requests = clear_cancelled_requests


def wire_cache(cache: Any, batching: "Batching") -> None:
    """Keys and values pass the guest, and pages are hashed with their request's salt."""
    update, search, complete = cache.update, cache.search_prefix_match, getattr(cache, batching.names.complete)

    def changed(key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any) -> Any:
        if batching.paging is not None:
            return key_states, value_states  # its attention function does all
        key_states, value_states = map(harmless, batching.guest.keys_values(layer_idx, key_states, value_states))
        return update(key_states, value_states, layer_idx, *args, **kwargs)

    def search_prefix_match(request_id: str, prompt_ids: list[int]) -> int:
        found = int(search(request_id, batching.salted(request_id, prompt_ids)))
        batching.shared += found
        batching.guest.found(request_id, found)
        return found

    def complete_blocks(state: Any, count: Any) -> None:
        if not count or state.request_id not in batching.salts:  # one that was cancelled while it ran has no pages left
            return
        hashed = batching.salted(state.request_id, state.initial_tokens + state.generated_tokens)
        complete(SimpleNamespace(request_id=state.request_id, status=state.status, initial_tokens=hashed, generated_tokens=[]), count)

    cache.update, cache.search_prefix_match = changed, search_prefix_match
    setattr(cache, batching.names.complete, complete_blocks)


def harmless(value: Tensor) -> Tensor:
    """Keys or values, with 0 for those that would reach other requests: attention sees all requests at once behind a mask here, and what
    is no number, or makes a product that is none, comes through it.
    """
    return torch.where(value.abs() <= LARGEST.get(value.dtype, 2.0**60), value, 0)


def token_rows(call: dict[str, Any]) -> Tensor | None:
    """The rows [rows, T] of a batch's tokens in a call of the model by the engine; None in any other call.

    The engine passes the first columns, as many as there are requests; the same storage holds a column for each token.
    """
    given = call.get("logits_processor_args")
    return None if given is None else given.as_strided((given.shape[0], call["input_ids"].shape[1]), given.stride())
