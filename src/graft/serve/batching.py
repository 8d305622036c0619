"""The one place that touches the private parts of transformers' continuous batching.

    manager     a thread that schedules requests, packs their tokens into one row [1, T], runs the model and hands out tokens
    guest       what rides on it here: rows of numbers for each token and request, keys and values, the choice of tokens

Numbers of ours travel with the engine's own small inputs: it keeps room [rows, width] (int32) in one static tensor for "logits
processors", fills it on the host before each batch, copies it to the device with everything else, and gives it to the model. So nothing
of ours needs another copy, and a recorded CUDA graph reads what belongs to the batch that it runs. Results travel back likewise, in rows
that are added to the engine's output tensor.

Private parts move between transformers' minor versions: those that are known here are stated, each with a contract test
(tests/test_serve_contract.py), and others are refused.
"""

import math
from collections.abc import Hashable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
import transformers
from torch import Tensor
from transformers import ContinuousBatchingConfig, GenerationConfig
from transformers.generation.continuous_batching.continuous_api import ContinuousBatchingManager, OutputRouter

from graft.errors import ServeError
from graft.serve.guest import Guest, Room, Scheduled

KNOWN = ("5.17", "5.24")
NEVER = -1  # an end-of-sequence id that no token has
WARPED = 0x7FFFFFFF  # hashed token ids stay non-negative int32


class Names(NamedTuple):
    """What is called differently in the minor versions."""

    page: str
    wake: str
    complete: str
    paged: str  # before the attention's name


NAMES = {
    "5.17": Names("block_size", "_has_new_requests", "mark_shareable_blocks_as_complete", "paged|"),
    "5.24": Names("page_size", "_wake_up_loop", "mark_complete_blocks", ""),
}


def minor(version: str = transformers.__version__) -> str:
    """The minor version of transformers. Raises ServeError where its private parts are not known."""
    found = ".".join(version.split(".")[:2])
    if found not in NAMES:
        raise ServeError(
            f"serving rides on private parts of transformers that are known for {' and '.join(KNOWN)}, and this is {version}: "
            f"pip install 'transformers=={KNOWN[-1]}.*'"
        )
    return found


class Batching:
    """A model that answers requests, each of them with a salt for what it caches."""

    def __init__(self, model: Any, guest: Guest, room: Room) -> None:
        self.names, self.model, self.guest = NAMES[minor()], model, guest
        self.salts: dict[str, bytes] = {}  # of the requests that are there
        self.shared = 0  # tokens whose keys and values were found in the cache
        self.attention = str(model.config._attn_implementation)
        if self.names.paged and "flash" not in self.attention:
            model.set_attn_implementation(self.names.paged + self.attention)  # else it may look for a kernel to download
        asked = {
            self.names.page: room.page,
            "num_blocks": math.ceil(room.cached / room.page),
            "max_batch_tokens": room.batch,
            "max_requests_per_batch": min(room.requests, room.batch),
            "allow_block_sharing": room.share,
            "use_cuda_graph": room.graphs,
            "use_async_batching": room.overlap,
        }
        asked |= {} if self.names.paged else {"auto_switch_to_flash": False}
        plain = GenerationConfig(do_sample=False, eos_token_id=NEVER, pad_token_id=0, max_new_tokens=1)
        self.manager = Manager(self, plain, ContinuousBatchingConfig(**asked))

    def start(self) -> None:
        """Start the engine's thread."""
        self.manager.start()

    def stop(self, *, now: bool = False) -> None:
        """Stop it, after what is there was answered, or at once."""
        if self.manager._generation_thread is not None:
            self.manager.stop(block=True, hard_stop=now)
        if self.names.paged and str(self.model.config._attn_implementation) != self.attention:
            self.model.set_attn_implementation(self.attention)

    def wake(self) -> None:
        """Let the thread look for work."""
        getattr(self.manager, self.names.wake).set()

    def add(self, name: str, ids: list[int], new: int, ends: Iterable[int], salt: bytes) -> None:
        """Answer `ids` with at most `new` tokens; requests share what is cached of equal ids under equal salts alone."""
        self.salts[name] = salt
        self.manager.add_request(ids, request_id=name, max_new_tokens=new, streaming=True, eos_token_id=[*ends] or NEVER)

    def cancel(self, name: str) -> None:
        """End a request; the guest hears of it once it is gone."""
        self.manager.cancel_request(name)

    def forget_graphs(self) -> None:
        """Let no CUDA graph run again that was recorded until now: tensors that it reads have moved."""
        processor = self.manager.batch_processor
        if processor is not None and processor.inputs_and_outputs.compute_stream is not None:
            processor.inputs_and_outputs.compute_stream.synchronize()  # one may run now
        for each in () if processor is None else inputs_of(processor.inputs_and_outputs):
            each.graphs = type(each.graphs)()

    @property
    def stream(self) -> Any:
        """A context for work on the device that follows the batches launched so far."""
        processor = self.manager.batch_processor
        compute = None if processor is None else processor.inputs_and_outputs.compute_stream
        return nullcontext() if compute is None else torch.cuda.stream(compute)

    @contextmanager
    def plain(self) -> Iterator[None]:
        """Within it the model's attention is as it was, for a forward that is not the engine's. For the engine's thread."""
        paged = str(self.model.config._attn_implementation)
        self.model.set_attn_implementation(self.attention)
        try:
            yield
        finally:
            self.model.set_attn_implementation(paged)

    def salted(self, name: str, ids: Sequence[int]) -> list[int]:
        """The ids of a request as they are hashed: those of each page's length differ with the salt."""
        salt = self.salts.get(name, b"")
        words = [int.from_bytes(salt[k : k + 4], "little") & WARPED for k in range(0, len(salt), 4)]
        return [number ^ words[k % len(words)] for k, number in enumerate(ids)] if words else list(ids)


class Manager(ContinuousBatchingManager):  # type: ignore[misc]
    """transformers' manager with a guest."""

    def __init__(self, batching: Batching, generation: Any, config: Any) -> None:
        super().__init__(model=batching.model, generation_config=generation, continuous_batching_config=config)
        self.batching = batching
        self.logit_processor = Rows(batching.guest)
        self.output_router = Router(batching)

    def _create_batch_processor(self) -> Any:
        """The processor, its parts wired to the guest once."""
        known = getattr(self, "batch_processor", None)
        processor = super()._create_batch_processor()
        if processor is not known:
            wire(processor, self.batching, self.logit_processor)
        return processor

    def _handle_critical_error(self, error: Exception, batch_processor: Any) -> None:
        """The thread dies; the guest hears of it after its requests were failed."""
        super()._handle_critical_error(error, batch_processor)
        self.batching.guest.died(f"{type(error).__name__}: {error}")


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

    def __init__(self, batching: Batching) -> None:
        super().__init__()
        self.batching = batching
        self.rows: dict[str, Tensor] = {}  # outputs of the last batch

    def deliver(self, output: Any) -> None:
        """Hand one on."""
        if output.is_finished():
            self.batching.salts.pop(output.request_id, None)
        row = self.rows.get(output.request_id)
        failed = str(output.error) if output.error is not None else ""
        self.batching.guest.deliver(output.request_id, output.generated_tokens, row, finished=output.is_finished(), error=failed)

    def deliver_batch(self, outputs: list[Any]) -> None:
        """Hand all on."""
        for output in outputs:
            self.deliver(output)


def inputs_of(inputs: Any) -> list[Any]:
    """Every set of static tensors: one, or two pairs where batches overlap."""
    pairs = getattr(inputs, "io_pairs", None)
    return [inputs] if pairs is None else [each for pair in pairs for each in (pair.host_io, pair.device_io)]


def wire(processor: Any, batching: Batching, rows: Rows) -> None:
    """Put the guest into the parts of a new processor, as attributes of these very objects: no class of transformers is changed."""
    guest, inputs = batching.guest, processor.inputs_and_outputs
    for each in inputs_of(inputs):
        kept = each.output_ids
        each.output_ids = torch.zeros(1 + guest.outputs, kept.shape[1], dtype=kept.dtype, device=kept.device, pin_memory=kept.is_pinned())
        own_key = each._get_graph_key
        each._get_graph_key = lambda own_key=own_key: (*own_key(), rows.variant)
    processor.model_runner._sample = rows.sample
    wire_cache(processor.cache, batching)
    prepare, update, drop = processor.prepare_next_batch, inputs.prepare_batch_update, processor.scheduler.clear_cancelled_requests

    def prepare_next_batch() -> bool:
        guest.between()
        ready = bool(prepare())
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


def wire_cache(cache: Any, batching: Batching) -> None:
    """Keys and values pass the guest, and pages are hashed with their request's salt."""
    update, search, complete = cache.update, cache.search_prefix_match, getattr(cache, batching.names.complete)

    def changed(key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any) -> Any:
        key_states, value_states = batching.guest.keys_values(layer_idx, key_states, value_states)
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


def token_rows(call: dict[str, Any]) -> Tensor | None:
    """The rows [rows, T] of a batch's tokens in a call of the model by the engine; None in any other call.

    The engine passes the first columns, as many as there are requests; the same storage holds a column for each token.
    """
    given = call.get("logits_processor_args")
    return None if given is None else given.as_strided((given.shape[0], call["input_ids"].shape[1]), given.stride())
