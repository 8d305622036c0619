"""What serving relies on in transformers' continuous batching, for each minor version that it knows: attributes and signatures."""

import inspect

import pytest
import torch
import transformers
from transformers.generation.continuous_batching import cache as caches
from transformers.generation.continuous_batching import continuous_api as api
from transformers.generation.continuous_batching import input_outputs as ios
from transformers.generation.continuous_batching import model_runner as runners
from transformers.generation.continuous_batching import requests, scheduler

from graft.errors import ServeError
from graft.serve import batching
from graft.serve.batching import manager, paging, warm
from tiny import tiny

HERE = ".".join(transformers.__version__.split(".")[:2])

SIGNATURES = {
    api.ContinuousBatchingManager.add_request: [
        "input_ids",
        "request_id",
        "max_new_tokens",
        "streaming",
        "record_timestamps",
        "eos_token_id",
    ],
    api.ContinuousBatchingManager.stop: ["block", "timeout", "keep_for_next_session", "hard_stop"],
    api.ContinuousBatchingManager._create_batch_processor: [],
    api.ContinuousBatchingManager._handle_critical_error: ["error", "batch_processor"],
    api.ContinuousBatchProcessor.prepare_next_batch: [],
    api.OutputRouter.deliver: ["output"],
    api.OutputRouter.deliver_batch: ["outputs"],
    ios.ContinuousBatchingIOs.prepare_batch_update: [],
    ios.ContinuousBatchingAsyncIOs.prepare_batch_update: [],
    ios.ContinuousBatchingIOs._get_graph_key: [],
    runners.ModelRunner._sample: ["scores", "output_ids"],
    runners.ModelRunner.maybe_pad_inputs: ["num_q_tokens", "max_kv_read", "use_decode_fast_path"],
    runners.ModelRunner.compute_batch: ["model", "batch_data"],
    ios.ContinuousBatchingIOs.get_model_kwargs: ["use_padding"],
    ios.ContinuousBatchingIOs.prepare_batch_tensors: [
        "requests_in_batch",
        "logits_processors",
        "use_decode_fast_path",
        "num_q_tokens",
        "max_kv_read",
        "use_padding",
    ],
    scheduler.FIFOScheduler.schedule_batch: ["token_budget", "cache_budget"],
    warm.create: ["num", "status", "num_q_tokens", "max_kv_read", "cache"],
    caches.PagedAttentionCache.search_prefix_match: ["request_id", "prompt_ids"],
}
OWN = {
    "5.17": {
        caches.PagedAttentionCache.update: ["key_states", "value_states", "layer_idx", "read_index", "write_index"],
        getattr(caches.PagedAttentionCache, "mark_shareable_blocks_as_complete", None): ["state", "num_complete_blocks"],
    },
    "5.24": {
        caches.PagedAttentionCache.update: ["key_states", "value_states", "layer_idx", "kwargs"],
        getattr(caches.PagedAttentionCache, "mark_complete_blocks", None): ["state", "complete_blocks"],
    },
}
READS = {
    ios.ContinuousBatchingIOs._setup_static_tensors: ["self.static_inputs + logit_processor.tensors_required", "self.output_ids = "],
    ios.ContinuousBatchingIOs.prepare_batch_tensors: [
        "state.position_offset += query_length",
        "self.use_block_table = use_decode_fast_path and self.block_table.numel() > 0",
        "self.cache.fill_block_table(state.request_id, past_length, query_length, self.block_table[:, i])",
        "logits_processors.prepare_tensor_args(",
        "arg_storage=self._bulk_input_tensor[self.static_inputs :]",
    ],
    ios.ContinuousBatchingIOs.get_model_kwargs: [
        "logits_processor_args=self._bulk_input_tensor[self.static_inputs :, :num_sequences]",
        "block_table=self.block_table[:, :num_sequences] if self.use_block_table else None",
        "cu_seq_lens_q=self.cumulative_seqlens_q[: num_sequences + 1]",
    ],
    ios.ContinuousBatchingIOs.prepare_batch_update: ["self.output_ids[0, : self.num_request_in_batch]"],
    ios.HostDeviceIOPair.transfer_outputs_d2h: ["self.host_io.output_ids.copy_(self.device_io.output_ids"],
    runners.ModelRunner._forward_process_and_sample: [
        "model(**batch_data).logits",
        'self.logit_processor(sliced_input_ids_2d, logits_2d, batch_data["logits_processor_args"])',
        "self._sample(scores, output_ids)",
    ],
    api.ContinuousBatchProcessor.update_batch: ["self.inputs_and_outputs.prepare_batch_update()", "self.output_router.deliver_batch("],
    api.ContinuousBatchProcessor.prepare_next_batch: ["self._update_tp_group_state()", "self.scheduler.clear_cancelled_requests()"],
    api.ContinuousBatchingManager._generation_loop_body: ["batch_processor.prepare_next_batch()", "batch_processor.update_batch()"],
    api.ContinuousBatchingManager._create_batch_processor: ["logit_processor=self.logit_processor", "output_router=self.output_router"],
}
"""What the source says, where a signature does not: the order of events, and what is read from where."""


def only(version):
    return pytest.mark.skipif(version != HERE, reason=f"transformers {HERE} is installed")


@pytest.mark.parametrize("version", [pytest.param(version, marks=only(version)) for version in batching.KNOWN])
def test_signatures_and_sources_are_those_relied_on(version):
    for function, names in (SIGNATURES | OWN[version]).items():
        assert function is not None
        found = [name for name, one in inspect.signature(function).parameters.items() if name != "self" and one.kind is not one.VAR_KEYWORD]
        assert found == names, function
    for function, parts in READS.items():
        source = inspect.getsource(function)
        for part in parts:
            assert part in source, (function, part)


@pytest.mark.parametrize("version", [pytest.param(version, marks=only(version)) for version in batching.KNOWN])
def test_attributes_are_there(version):
    names = batching.NAMES[version]
    assert {names.page, "num_blocks", "max_batch_tokens", "max_requests_per_batch", "allow_block_sharing", "use_cuda_graph"} <= {
        *inspect.signature(transformers.ContinuousBatchingConfig).parameters
    }
    assert {"state", "has_new_token", "query_length"} <= set(requests.FutureRequestState.__slots__)
    assert {"request_id", "generated_tokens", "error"} <= set(inspect.signature(requests.GenerationOutput).parameters)
    assert {"request_id", "initial_tokens"} <= set(inspect.signature(requests.RequestState).parameters)
    made = batching.Batching(tiny("llama", torch.float32), Silent(), batching.Room(cached=64, batch=16, requests=4))
    manager = made.manager
    assert hasattr(manager, names.wake)
    assert manager._generation_thread is None
    processor = manager._create_batch_processor()
    assert hasattr(processor.cache, names.complete)
    inputs = processor.inputs_and_outputs
    assert inputs.output_ids.shape[0] == 1 + Silent.outputs
    assert inputs._bulk_input_tensor.shape[0] == inputs.static_inputs + Silent.rows
    assert inputs.compute_stream is None
    assert {"pad_inputs", "use_cuda_graph_decode", "cb_config"} <= set(vars(processor.model_runner))
    assert manager.background_thread_status.local_status == 0
    assert not processor.scheduler.has_pending_requests()
    assert type(inputs.graphs)().get_graph(()) is None
    assert inputs.attention_mask is not None
    made.stop()


@pytest.mark.parametrize("version", [pytest.param(version, marks=only(version)) for version in batching.KNOWN])
def test_paged_attention_finds_pages_and_tables_and_makes_no_mask(version, monkeypatch):
    monkeypatch.setattr(manager, "suits", lambda model, attention: True)
    model = tiny("llama", torch.float32)
    made = batching.Batching(model, Silent(), batching.Room(cached=64, batch=16, requests=4, page=8))
    processor = made.manager._create_batch_processor()
    inputs, cache = processor.inputs_and_outputs, processor.cache
    assert inputs.attention_mask is None
    assert tuple(inputs.block_table.shape) == (1, 4, 8)
    assert warm.page_of(cache) == 8
    assert isinstance(type(inputs.graphs)()._storage, dict)
    places = [paging.place(cache, layer) for layer in range(model.config.num_hidden_layers)]
    assert {(group, kind) for group, _, _, kind in places} == {(0, "full_attention")}
    for _, keys, values, _ in places:
        assert keys.shape == values.shape
        assert keys.shape[1:] == (8, model.config.num_key_value_heads, paging.head_dim(model.config))
        assert keys.is_contiguous()
        assert values.is_contiguous()
    assert len({value.data_ptr() for _, *pair, _ in places for value in pair}) == 2 * len(places)
    made.stop()


def test_other_versions_are_refused_with_a_sentence():
    for version in ("5.16.2", "5.18.0", "5.25.0", "6.0.0"):
        with pytest.raises(ServeError, match=rf"known for 5\.17 and 5\.24, and this is {version}: pip install"):
            batching.minor(version)
    assert batching.minor("5.17.3") == "5.17"


class Silent:
    """A guest that does nothing."""

    rows, outputs = 2, 1

    def between(self):
        pass
