"""The engine: transformers' manager of continuous batching with a guest on it."""

import logging
import math
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from transformers import ContinuousBatchingConfig, GenerationConfig
from transformers.generation.continuous_batching.continuous_api import ContinuousBatchingManager

from graft.kernels import slots
from graft.model.attention import set_attention
from graft.serve.batching.paging import NAME, Paging, pages_for, suits
from graft.serve.batching.versions import NAMES, minor
from graft.serve.batching.warm import catch_up, missing, warm
from graft.serve.batching.wires import Router, Rows, inputs_of, wire
from graft.serve.guest import Guest, Room

log = logging.getLogger("graft")
NEVER = -1  # an end-of-sequence id that no token has
WARPED = 0x7FFFFFFF  # hashed token ids stay non-negative int32


class Batching:
    """A model that answers requests, each of them with a salt for what it caches."""

    def __init__(self, model: Any, guest: Guest, room: Room) -> None:
        self.names, self.model, self.guest, self.room = NAMES[minor()], model, guest, room
        self.salts: dict[str, bytes] = {}  # of the requests that are there
        self.shared = 0  # tokens whose keys and values were found in the cache
        self.attention = str(model.config._attn_implementation)
        self.paged = suits(model, self.attention)
        self.paging: Paging | None = None
        if self.paged:
            set_attention(model, NAME)
        elif self.names.paged and "flash" not in self.attention:
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
        if self.paged:
            self.manager.continuous_batching_config.max_blocks_per_request = pages_for(model, room)

    def start(self) -> None:
        """Start the engine's thread."""
        self.manager.start()

    def stop(self, *, now: bool = False) -> None:
        """Stop it, after what is there was answered, or at once."""
        if self.manager._generation_thread is not None:
            self.manager.stop(block=True, hard_stop=now)
        if str(self.model.config._attn_implementation) != self.attention:
            set_attention(self.model, self.attention)

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

    def forget_graphs(self, stale: Callable[[Any], bool] = lambda variant: True) -> None:
        """Let no CUDA graph run again that reads tensors which have moved: those of batches whose `Guest.fill` gave a stale variant."""
        processor = self.manager.batch_processor
        if processor is not None and processor.inputs_and_outputs.compute_stream is not None:
            processor.inputs_and_outputs.compute_stream.synchronize()  # one may run now
        for each in () if processor is None else inputs_of(processor.inputs_and_outputs):
            before, each.graphs = each.graphs, type(each.graphs)()
            for key in [key for key in before._storage if not stale(key[-1])]:
                each.graphs.set_graph(key, before._storage.pop(key))

    def idle(self, processor: Any) -> None:
        """Nothing runs: record graphs, until somebody comes. For the engine's thread."""
        if self.paging is not None and self.room.warm:
            event, status = getattr(self.manager, self.names.wake), self.manager.background_thread_status
            catch_up(processor, self.model, self.paging, lambda: bool(event.is_set() or status.local_status))

    @property
    def missing(self) -> int:
        """CUDA graphs of likely batches that are not recorded yet; each is while nothing runs, or when its batch comes."""
        processor = self.manager.batch_processor
        return 0 if processor is None or self.paging is None or not self.room.warm else len(missing(processor))

    @property
    def plan(self) -> Hashable:
        """What a recorded graph depends on beside the batch's size and variant."""
        return None if self.paging is None else self.paging.plan

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
        set_attention(self.model, self.attention)
        try:
            yield
        finally:
            set_attention(self.model, paged)

    def salted(self, name: str, ids: Sequence[int]) -> list[int]:
        """The ids of a request as they are hashed: those of each page's length differ with the salt."""
        salt = self.salts.get(name, b"")
        words = [int.from_bytes(salt[k : k + 4], "little") & WARPED for k in range(0, len(salt), 4)]
        return [number ^ words[k % len(words)] for k, number in enumerate(ids)] if words else list(ids)


class Manager(ContinuousBatchingManager):  # type: ignore[misc]
    """transformers' manager with a guest."""

    def __init__(self, batching: Batching, generation: Any, config: Any) -> None:
        self.batching = batching
        super().__init__(model=batching.model, generation_config=generation, continuous_batching_config=config)
        self.logit_processor = Rows(batching.guest)
        self.output_router = Router(batching)

    def switch_to_cb_friendly_attn(self, model: Any, *args: Any) -> None:
        """Attention is chosen already, where it is ours."""
        if not self.batching.paged:
            super().switch_to_cb_friendly_attn(model, *args)

    def _create_batch_processor(self) -> Any:
        """The processor, its parts wired to the guest once."""
        known = getattr(self, "batch_processor", None)
        processor = super()._create_batch_processor()
        if processor is not known:
            wire(processor, self.batching, self.logit_processor)
            stream = processor.inputs_and_outputs.compute_stream
            with nullcontext() if stream is None else torch.cuda.stream(stream):
                slots.keep(self.model.device)
                if self.batching.room.warm:
                    slots.make(self.model.get_input_embeddings().weight.detach())
            if self.batching.paging is not None and self.batching.room.warm:
                warm(processor, self.model, self.batching.paging)
        return processor

    def _handle_critical_error(self, error: Exception, batch_processor: Any) -> None:
        """The thread dies; the guest hears of it after its requests were failed."""
        try:
            super()._handle_critical_error(error, batch_processor)
        except Exception as another:
            log.error("an engine that failed could not tell all of its requests: %s: %s", type(another).__name__, another)
        finally:
            self.batching.guest.died(f"{type(error).__name__}: {error}")
