"""A prefix joined to a fused causal kernel: the same as keys beside each other and a mask, taken where it may be and nowhere else."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers as T
from torch._subclasses import FakeTensorMode

import graft
import test_laws
from graft.kernels import attention
from graft.kernels.attention import joint, products, reference, stock
from settings import SETTINGS, VIRTUAL
from test_laws import close, made, shake
from tiny import CONFIGS, inputs

SHAPES = {  # rows, heads, heads of keys, text, head dim, prefix, rows of the prefix
    "shared": (2, 4, 4, 17, 8, 5, 1),
    "grouped": (3, 4, 2, 33, 16, 20, 1),
    "a prefix a row": (3, 6, 2, 40, 16, 7, 3),
    "one position": (1, 2, 1, 129, 6, 1, 1),
    "a text of two": (2, 2, 2, 2, 8, 3, 2),
    "long": (2, 4, 2, 300, 64, 130, 1),
}
BOUNDS = {torch.float64: 1e-14, torch.float32: 2e-6, torch.bfloat16: 1e-2, torch.float16: 2e-3}
"""Of a norm, against float64 on the same rounded tensors. Measured: 1.2e-15, 6e-7, 7e-3, 1.1e-3; torch's own, with a mask, is as far."""


def tensors(shape, dtype, seed=0):
    """q, k, v as projections lay them out, and a prefix in master precision."""
    rows, heads, groups, length, dim, n, prefixes = SHAPES[shape]
    generator = torch.Generator().manual_seed(seed)

    def drawn(*sizes):
        return torch.empty(*sizes, dtype=torch.float64).normal_(generator=generator).to(dtype)

    text = [drawn(rows, length, count, dim).transpose(1, 2) for count in (heads, groups, groups)]
    prefix = drawn(2, prefixes, n, groups, dim).transpose(2, 3).to(torch.promote_types(dtype, torch.float32))
    return [value.requires_grad_() for value in (*text, prefix)]


def outcome(function, values):
    """Output and all gradients."""
    out = function(*values)
    grad = torch.empty(out.shape, dtype=torch.float64).normal_(generator=torch.Generator().manual_seed(9)).to(values[0].dtype)
    return [out, *torch.autograd.grad(out, values, grad.to(out.dtype))]


def exact(values):
    return [value.detach().double().requires_grad_() for value in values]


@pytest.fixture
def short(monkeypatch):
    """No text is too short for the joint kernel."""
    monkeypatch.setattr(attention, "SHORT", 0)


@pytest.fixture
def joined(short, monkeypatch):
    """The texts that went through the joint kernel."""
    calls, run = [], joint.prefixed
    monkeypatch.setattr(joint, "prefixed", lambda *args: calls.append(args[0].shape) or run(*args))
    return calls


@pytest.mark.parametrize("dtype", BOUNDS, ids=str)
@pytest.mark.parametrize("shape", SHAPES)
def test_joint_attention_is_attention_over_both(shape, dtype):
    values = tensors(shape, dtype)
    wanted = outcome(reference.prefixed, exact(values))
    found = outcome(joint.prefixed, values)
    assert [value.dtype for value in found] == [dtype, *(value.dtype for value in values)]
    for ours, truth in zip(found, wanted, strict=True):
        assert ours.shape == truth.shape
        assert (ours - truth).norm() <= BOUNDS[dtype] * truth.norm()


def test_a_scale_of_its_own():
    values = tensors("grouped", torch.float64)
    for ours, truth in zip(
        *(outcome(lambda *x, run=run: run(*x, 0.7), values) for run in (joint.prefixed, reference.prefixed)), strict=True
    ):
        close(ours, truth, 1e-13)


def test_the_operators_keep_torchs_contract():
    values = [value.detach() for value in tensors("grouped", torch.float32)]
    out, lse = joint.forward(*values, 0.3)
    torch.library.opcheck(joint.forward, (*[value.requires_grad_() for value in values], 0.3))
    for text in (True, False):
        torch.library.opcheck(joint.backward, (torch.ones_like(out), *[value.detach() for value in values], out, lse, 0.3, text))


def test_the_text_gets_no_gradient_where_nobody_asks_for_it(monkeypatch):
    query, key, value, prefix = tensors("shared", torch.float64)
    monkeypatch.setattr(stock, "backward", None)
    (found,) = torch.autograd.grad(joint.prefixed(query.detach(), key.detach(), value.detach(), prefix).sum(), prefix)
    (wanted,) = torch.autograd.grad(reference.prefixed(query, key, value, prefix).sum(), prefix)
    close(found, wanted, 1e-13)


@pytest.mark.parametrize("compiled", [False, True])
def test_autocast_computes_in_its_own_dtype(compiled, joined):
    values = tensors("grouped", torch.float32)

    def run(*given):
        with torch.autocast("cpu", torch.bfloat16):
            return attention.prefixed(*given)

    torch._dynamo.reset()
    found = outcome(torch.compile(run, backend="aot_eager", fullgraph=True) if compiled else run, values)
    assert found[0].dtype == torch.bfloat16
    assert joined
    for ours, truth in zip(found, outcome(reference.prefixed, exact(values)), strict=True):
        assert (ours - truth).norm() <= 2 * BOUNDS[torch.bfloat16] * truth.norm()


def test_kernels_under_the_interpreter():
    pytest.importorskip("triton", reason="Triton is not installed")
    script = Path(__file__).with_name("interpreted_attention.py")
    done = subprocess.run([sys.executable, script], env=os.environ | {"TRITON_INTERPRET": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "all agree" in done.stdout


@pytest.mark.parametrize("name", ["llama", "gpt2", "qwen3"])
@pytest.mark.parametrize(
    "law",
    [
        test_laws.test_gradient_checkpointing_changes_nothing,
        test_laws.test_every_trained_tensor_gets_a_gradient_and_moves_and_the_base_does_not,
        test_laws.test_left_padding_changes_nothing,
    ],
)
def test_laws_hold_on_the_joint_path(name, law, joined):
    law(name, "prefix")
    assert joined


@pytest.mark.parametrize("setting", ["prefix", "prefix_unshifted", "prefix_mlp", "prefix+lora"])
@pytest.mark.parametrize("name", ["llama", "gpt2", "qwen2", "gpt_neox", "phi3"])
def test_a_model_is_the_same_by_either_path(name, setting, joined, monkeypatch):
    ids = inputs(name, length=9)["input_ids"]
    adapted = made(name, setting, torch.float64)

    def run():
        loss = adapted.model(input_ids=ids, labels=ids).loss
        return [loss, *torch.autograd.grad(loss, list(adapted.parameters()))]

    found, taken = run(), len(joined)
    monkeypatch.setattr(attention, "is_fast", lambda *args: False)
    wanted = run()
    assert taken == len(joined) == 2
    for ours, theirs in zip(found, wanted, strict=True):
        close(ours, theirs, test_laws.tolerance(name))


def test_generation_reads_a_text_by_the_joint_path(joined):
    model, ids = made("llama", "prefix").model, inputs("llama")["input_ids"]
    model.generate(input_ids=ids, max_new_tokens=3, do_sample=False)
    assert [shape[2] for shape in joined] == [ids.shape[1]] * 2


def windowed(window):
    torch.manual_seed(0)
    config = CONFIGS["mistral"]()
    config.sliding_window = window
    model = T.AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").eval()
    adapted = graft.adapt(model, SETTINGS["prefix"])
    shake(adapted)
    return adapted.model


ONES = torch.ones(2, 9, dtype=torch.long)
CALLS = {
    "nothing more": ({}, True),
    "a mask of ones": ({"attention_mask": ONES}, True),
    "padding": ({"attention_mask": ONES.clone().index_fill_(1, torch.tensor([8]), 0)}, False),
    "one token": ({"input_ids": torch.ones(2, 1, dtype=torch.long)}, False),
    "packed texts": ({"position_ids": torch.arange(9).remainder(5)[None], "use_cache": False}, False),
}


@pytest.mark.parametrize("call", CALLS)
def test_the_joint_path_is_taken_where_there_is_no_mask(call, joined):
    more, taken = CALLS[call]
    made("llama", "prefix").model(**{"input_ids": ONES} | more)
    assert bool(joined) == taken


@pytest.mark.parametrize(("window", "taken"), [(9 + 4, True), (9 + 3, False), (5, False)])
def test_a_window_that_cuts_the_prefix_is_left_to_a_mask(window, taken, joined):
    model = windowed(window)
    found = model(input_ids=ONES).logits
    assert bool(joined) == taken
    if taken:
        joined.clear()
        close(model(input_ids=ONES, position_ids=torch.arange(9)[None]).logits, found, 1e-6)
        assert not joined, "positions that were given may be anywhere"


def test_dropout_and_rows_with_different_prefixes_are_left_to_a_mask(joined):
    adapted = made("llama", "prefix")
    adapted.add("longer", made("llama", "prefix_mlp").adapter())
    adapted.route(["live", "longer"])
    with torch.no_grad():
        adapted.model(input_ids=ONES)
    adapted.route(None)
    for layer in adapted.model.model.layers:
        layer.self_attn.attention_dropout = 0.5
    adapted.model.train()(input_ids=ONES)
    assert not joined


def test_no_kernel_on_a_device_or_for_a_kind_that_is_not_known(joined):
    meta = torch.empty(1, 2, 8, 8, device="meta")
    assert not attention.is_fast(meta, meta, meta)
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        assert not attention.is_fast(*tensors("shared", torch.float32)[:3])
    assert attention.is_fast(*tensors("shared", torch.float32)[:3])
    assert not attention.is_fast(*tensors("shared", torch.float32)[:2], torch.empty(2, 4, 17, 6))


@pytest.mark.parametrize("length", [511, 512])
def test_a_cpu_joins_long_texts_only(length):
    query = torch.empty(1, 1, length, 8)
    assert attention.is_fast(query, query, query) == (length >= 512)


@pytest.fixture
def counted(counting):
    """A compiler of blocks that counts its graphs."""
    backend, graphs = counting
    return (lambda block: block.compile(backend=backend, fullgraph=True)), graphs


@pytest.mark.parametrize("checkpointed", [False, True])
@pytest.mark.parametrize("setting", ["prefix", "prefix_mlp", "prompt"])
@pytest.mark.parametrize("name", ["llama", "mistral"])
@pytest.mark.filterwarnings("ignore")
def test_blocks_are_one_graph_of_a_kind_and_none_is_made_anew(name, setting, checkpointed, counted, short):
    compiler, graphs = counted
    config = CONFIGS[name]()
    config.num_hidden_layers = 4
    if name == "mistral":
        config.sliding_window = 64
    adapted = graft.adapt(T.AutoModelForCausalLM.from_config(config, attn_implementation="sdpa"), SETTINGS[setting])
    model = adapted.model.train()
    if checkpointed:
        model.gradient_checkpointing_enable({"use_reentrant": False})

    def step(seed, length):
        shake(adapted, seed)
        ids = inputs(name, length=length, seed=seed)["input_ids"]
        model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
        model.zero_grad()

    for block in model.model.layers:
        compiler(block)
    kinds = 1 if setting == "prompt" or checkpointed else 2  # where nothing before the first block is trained, it passes no gradient on
    counts = []
    for number, length in enumerate((9, 9, 12, 15, 11)):
        step(number, length)
        counts.append(len(graphs))
    assert counts == [kinds, kinds, *[2 * kinds] * 3]  # a second length, and all others, are one more
    if "prefix" in setting:
        assert all("ops.graft.prefixed" in graph.print_readable(print_output=False) for graph in graphs)


def unreal(model, mode):
    """Tensors with a device and no memory instead of a model's own: what mixes devices or looks at a value fails, as on a GPU or slower."""
    for module in model.modules():
        for held in (module._parameters, module._buffers):
            for key, value in held.items():
                if value is not None:
                    with mode:
                        empty = torch.empty(value.shape, dtype=value.dtype, device="meta")
                        held[key] = torch.nn.Parameter(empty, value.requires_grad) if isinstance(value, torch.nn.Parameter) else empty


@pytest.mark.parametrize("mask", [False, True])
@pytest.mark.parametrize("setting", VIRTUAL)
@pytest.mark.parametrize("name", ["llama", "gpt2", "bert"])
def test_training_stays_on_the_device_and_waits_for_no_value(name, setting, mask):
    adapted, mode = made(name, setting), FakeTensorMode()
    unreal(adapted.model.train(), mode)
    with mode:
        ids = torch.zeros(2, 9, dtype=torch.long, device="meta")
        batch = {"input_ids": ids} | ({"attention_mask": torch.ones_like(ids)} if mask else {})
        batch |= {"labels": ids[:, 0]} if name == "bert" else {"labels": ids, "use_cache": False}
        adapted.model(**batch).loss.backward()
    assert all(value.grad.device.type == "meta" for value in adapted.parameters())


@pytest.mark.parametrize("padding", [0, 3])
@pytest.mark.parametrize("name", ["llama", "gpt2", "opt"])
def test_a_prompts_positions_pass_no_head_and_the_loss_is_the_same(name, padding, monkeypatch):
    adapted = made(name, "prompt", torch.float64)
    model, batch = adapted.model, inputs(name)
    batch = test_laws.padded(batch, padding) if padding else batch
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    seen = []
    handle = model.get_output_embeddings().register_forward_hook(lambda module, args, out: seen.append(out.shape[1]))
    found = [model(**batch, labels=labels), model(**batch)]
    handle.remove()
    length = labels.shape[1]
    assert seen == [length + 1, length]
    monkeypatch.setattr("graft.model.virtual_tokens.spare", lambda *args: None)
    whole = model(**batch, labels=labels)
    close(found[0].loss, whole.loss, test_laws.tolerance(name))
    for out in found:
        close(out.logits, whole.logits, test_laws.tolerance(name))
    assert model(**batch, logits_to_keep=2).logits.shape[1] == 2


def test_a_prefixs_layers_are_cut_from_it_at_once():
    adapted = made("llama", "prefix")
    ids = inputs("llama")["input_ids"]
    adapted.model(input_ids=ids)
    cuts = {layer.self_attn.graft_kv.kv.grad_fn for layer in adapted.model.model.layers}
    assert len(cuts) == 1


def test_products_take_a_gradient_of_the_prefix_alone():
    query, key, value, prefix = (part.detach() for part in tensors("grouped", torch.float64))
    out, lse = products.joined(query, prefix, *stock.forward(query, key, value, 0.3), 0.3)
    dq, alone = products.differentiated(torch.ones_like(out), query, prefix, out, lse, None, 0.3)
    _, both = products.differentiated(torch.ones_like(out), query, prefix, out, lse, torch.zeros_like(query), 0.3)
    assert dq is None
    assert torch.equal(alone, both)
