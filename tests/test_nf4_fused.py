"""Low-rank branches on a base in 4 bits run fused: the same values, the same packed bytes, and nothing dense between the passes."""

import copy
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers as T
from functorch.compile import make_boxed_func
from torch._dynamo.backends.common import aot_autograd
from torch._inductor.decomposition import select_decomp_table

import graft
from graft.errors import AdapterError
from graft.kernels import nf4
from graft.kernels.affine import Packed
from graft.model.checkpointing import checkpointed
from graft.model.rebuilt import partition
from settings import SETTINGS
from test_fused import results, same
from test_laws import shake
from test_qlora import bytes_of, in_4_bits, packed
from tiny import GQA, IDS, SMALL, inputs

bnb = pytest.importorskip("bitsandbytes")
FAMILIES = ("llama_bias", "phi3", "bert")
LOW = ("lora", "rslora", "lora_rows", "lora_bias", "dora", "dora_rows")
ROUNDING = 1e-3  # of sums in another order in float32, through two layers with large branches and back


def adapted(setting, name="llama_bias", method=None):
    """An adapted model with its layers in 4 bits, and one of the same dense values."""
    hosts = [graft.adapt(model, method or SETTINGS[setting]) for model in packed(name)]
    for host in hosts:
        host.unfuse()  # a run with --fused
        shake(host)
        host.model.train()
    return hosts


@pytest.mark.parametrize("setting", LOW)
@pytest.mark.parametrize("name", FAMILIES)
def test_outputs_and_gradients_are_those_of_the_plain_path_and_of_the_dense_weights_fused(name, setting):
    (host, dense), batch = adapted(setting, name), inputs(name)
    plain, before = results(host, batch), bytes_of(host.model)
    dense.fuse(layout="pitched")
    ran = host.fuse(layout="pitched")
    assert {how.how for how in ran} == {"packed"}
    same(results(host, batch), plain, ROUNDING)
    same(results(host, batch), results(dense, batch), 1e-6)
    for one in (host, dense):
        shake(one, seed=5)
    with torch.no_grad():
        same([host.model(**batch).logits], [dense.model(**batch).logits], 1e-6)
    fused = results(host, batch)
    same(fused, results(dense, batch), 1e-6)
    host.unfuse()
    same(fused, results(host, batch), ROUNDING)
    assert all(torch.equal(value, before[path]) for path, value in bytes_of(host.model).items())


@pytest.mark.parametrize("setting", ["lora", "dora"])
def test_leaving_the_fused_state_gives_the_same_bits_as_before(setting):
    host, batch = adapted(setting)[0], inputs("llama_bias")
    weights = {path: module.weight for path, module in host.model.named_modules() if nf4.is_packed(getattr(module, "weight", None))}
    plain = results(host, batch)
    host.fuse(layout="pitched")
    results(host, batch)
    host.unfuse()
    assert all(torch.equal(a, b) for a, b in zip(results(host, batch), plain, strict=True))
    assert all(host.model.get_submodule(path).weight is weight for path, weight in weights.items())


def test_what_is_dropped_is_what_a_dense_base_drops():
    ours, theirs = adapted(None, method=graft.LoRA(r=2, dropout=0.5))
    found = []
    for host in (ours, theirs):
        host.fuse(layout="pitched")
        torch.manual_seed(0)
        found.append(results(host, inputs("llama_bias")))
    same(*found, 1e-6)
    assert not torch.equal(found[0][0], results(ours, inputs("llama_bias"))[0])


@pytest.mark.parametrize("setting", ["lora", "dora"])
def test_checkpointing_changes_nothing(setting):
    host, batch = adapted(setting)[0], inputs("llama_bias")
    host.fuse(layout="pitched")
    plain = results(host, batch)
    with checkpointed(host.model):
        same(results(host, batch), plain, 1e-6)


def test_groups_are_of_what_is_packed_alike():
    host, batch = adapted("lora")[0], inputs("llama_bias")
    attention = host.model.model.layers[0].self_attn
    old = attention.q_proj.weight
    dense = nf4.dequantise(old)
    attention.q_proj.weight = bnb.nn.Params4bit(dense, requires_grad=False, quant_type="fp4", blocksize=128, compress_statistics=False).to(
        "cpu"
    )
    plain = results(host, batch)
    host.fuse(layout="pitched")
    first = [
        len(group.slots) for group in host.fused.groups if group.slots[0] is attention.q_proj.graft or attention.k_proj.graft in group.slots
    ]
    assert sorted(first) == [1, 2]
    assert all(isinstance(group.maps, Packed) for group in host.fused.groups)
    same(results(host, batch), plain, ROUNDING)


def test_a_wider_input_is_computed_as_wide():
    host, batch = adapted("lora")[0], inputs("llama_bias")
    for module in host.model.modules():
        if nf4.is_packed(getattr(module, "weight", None)):
            dense = nf4.dequantise(module.weight).bfloat16()
            module.weight = bnb.nn.Params4bit(dense, requires_grad=False, quant_type="nf4", compress_statistics=True).to("cpu")
    plain = results(host, batch)
    host.fuse(layout="pitched")
    assert plain[0].dtype == torch.float32
    same(results(host, batch), plain, 3e-2)  # of the branches, which are as wide as the weights


def test_elsewhere_than_on_a_gpu_they_run_apart_unless_asked():
    host = adapted("lora")[0]
    assert {how.how for how in host.fuse()} == {"apart"}
    with pytest.raises(AdapterError, match="in 4 bits, and those are fused in the pitched layout only"):
        host.fuse(strict=True, layout="stacked")


def test_a_deep_copy_runs_on_weights_of_its_own():
    host, batch = adapted("lora")[0], inputs("llama_bias")
    host.fuse(layout="pitched")
    with torch.no_grad():
        expected = host.model(**batch).logits
        twin = copy.deepcopy(host.model)
        for module in (*host.model.modules(), *twin.modules()):
            if getattr(module, "group", None) is not None:
                assert module.group.maps.weights[module.place] is module.group.modules[module.place].weight
        for value in host.model.parameters():
            value.data.zero_()
        assert torch.equal(twin(**batch).logits, expected)


@pytest.mark.parametrize("setting", ["lora", "dora"])
def test_merging_saving_and_moving_work_while_fused(setting, tmp_path):
    (host, other), batch = adapted(setting), inputs("llama_bias")
    host.fuse(layout="pitched")
    host.save(tmp_path / "adapter")
    with torch.no_grad():
        expected = host.model(**batch).logits
        graft.merge(host)
        same([host.model(**batch).logits], [expected], ROUNDING)
        graft.unmerge(host)
        host.fuse(layout="pitched")
        host.model.to("cpu")
        same([host.model(**batch).logits], [expected], ROUNDING)
        other.detach()
        graft.load(other.model, tmp_path / "adapter", force=True)
        same([other.model(**batch).logits], [expected], ROUNDING)


@pytest.mark.parametrize("fuses", [False, True])
@pytest.mark.parametrize("setting", ["lora", "dora"])
@pytest.mark.filterwarnings("ignore")
def test_blocks_share_their_graphs_and_each_runs_on_its_own_weights(setting, fuses, counting):
    backend, graphs = counting
    torch.manual_seed(0)
    config = T.LlamaConfig(**SMALL | {"num_hidden_layers": 4}, **IDS, **GQA, use_cache=False)
    host, batch = graft.adapt(in_4_bits(T.AutoModelForCausalLM.from_config(config)), SETTINGS[setting]), inputs("llama")
    host.unfuse()
    host.model.train()
    shake(host)
    plain = results(host, batch)
    if fuses:
        host.fuse(layout="pitched")
    for layer in host.model.model.layers:
        layer.compile(backend=backend, fullgraph=True)
    same(results(host, batch), plain, ROUNDING)
    assert len(graphs) == 2, "the first block, whose input needs no gradient, and the others"


# what is kept between the passes


@pytest.fixture
def backend():
    """Graphs run as Graft partitions them."""
    torch._dynamo.reset()

    def plain(graph, _):
        return make_boxed_func(graph.forward)

    yield aot_autograd(fw_compiler=plain, bw_compiler=plain, partition_fn=partition, decompositions=select_decomp_table())
    torch._dynamo.reset()


def kept(model, run):
    """The tensors that a forward saves, beside what the model holds anyhow, and what it gives."""
    found, known = [], set()
    for value in (*model.parameters(), *model.buffers()):
        known |= {tensor.data_ptr() for tensor in (nf4.reference.parts(value) if nf4.is_packed(value) else [value])}
    for module in model.modules():
        group = getattr(module, "group", None)
        known |= {tensor.data_ptr() for tensor in group.maps.held()} if group is not None else set()

    def keep(value):
        if value.data_ptr() not in known:
            found.append(value)
        return value

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value):
        out = run()
    return found, out


@pytest.mark.parametrize("fuses", [False, True])
@pytest.mark.parametrize("compiles", [False, True])
@pytest.mark.parametrize("setting", ["lora", "dora"])
@pytest.mark.filterwarnings("ignore")
def test_no_dense_weight_is_kept_between_the_passes(setting, compiles, fuses, backend):
    host = adapted(setting)[0]
    layer, tokens = host.model.model.layers[1], 5
    hidden = torch.randn(1, tokens, 32).requires_grad_()
    positions = host.model.model.rotary_emb(hidden, torch.arange(tokens)[None])
    trained = [value for value in layer.parameters() if value.requires_grad]

    def run():
        return layer(hidden, position_embeddings=positions, attention_mask=None)

    plain = torch.autograd.grad(run().square().sum(), [hidden, *trained])
    if fuses:
        host.fuse(layout="pitched")
        host.fused.write()
    if compiles:
        layer.compile(fullgraph=True, backend=backend)
    found, out = kept(host.model, run)
    assert found
    assert all(value.numel() < 32 * 16 and (tokens in value.shape or value.numel() <= 3 * 48) for value in found)
    same(torch.autograd.grad(out.square().sum(), [hidden, *trained]), plain, ROUNDING)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("tells", [True, False])
def test_a_compiler_would_keep_a_weight_that_both_passes_make_alike(tells, backend, monkeypatch):
    if not tells:
        monkeypatch.setattr(sys.modules["graft.kernels.nf4.linear"], "dequantise", lambda weight, after=None: nf4.dequantise(weight))
    module, x = packed("llama_bias")[0].model.layers[0].mlp.up_proj, torch.randn(5, 32, requires_grad=True)
    compiled = torch.compile(module, fullgraph=True, backend=backend)
    found, out = kept(module, lambda: compiled(x))
    assert any(value.numel() == 32 * 48 for value in found) is not tells
    (dx,) = torch.autograd.grad(out.sum(), x)
    same([dx], [nf4.dequantise(module.weight).sum(0).expand(5, -1)], 1e-5)


def test_kernel_under_the_interpreter():
    pytest.importorskip("triton", reason="Triton is not installed")
    script = Path(__file__).with_name("interpreted_nf4.py")
    done = subprocess.run([sys.executable, script], env=os.environ | {"TRITON_INTERPRET": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "all agree" in done.stdout
