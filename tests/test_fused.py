"""Fusing changes how a model runs and nothing else: every law's subject again, on the fused path."""

import copy

import pytest
import torch

import graft
from graft.errors import AdapterError
from graft.model.checkpointing import checkpointed
from graft.model.regional import regional
from settings import SETTINGS
from test_laws import close, made, shake, tolerance
from tiny import inputs, tiny

LAYOUTS = ("stacked", "pitched")
LOW = tuple(name for name in SETTINGS if "lora" in name or name.startswith("dora"))
FAMILIES = ("llama", "llama_bias", "qwen3", "gemma2", "phi3", "opt", "gpt_neox", "bert")


def results(host, batch):
    """Outputs and the gradients of all trained tensors."""
    out = host.model(**batch).logits
    return [out, *torch.autograd.grad(out.square().mean(), host.parameters())]


def same(ours, theirs, bound):
    for a, b in zip(ours, theirs, strict=True):
        close(a, b, bound)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("setting", LOW)
@pytest.mark.parametrize("name", FAMILIES)
def test_outputs_and_gradients_are_those_of_the_plain_path(name, setting, layout):
    host, batch = made(name, setting), inputs(name)
    host.model.train()
    plain = results(host, batch)
    before = {key: value.clone() for key, value in host.model.state_dict().items()}
    ran = host.fuse(layout=layout)
    assert {how.how for how in ran} <= {layout, "apart"}
    same(results(host, batch), plain, tolerance(name))
    shake(host, seed=5)
    fused = results(host, batch)
    with torch.no_grad():
        close(host.model(**batch).logits, fused[0], tolerance(name))
    host.unfuse()
    same(fused, results(host, batch), tolerance(name))
    shake(host, seed=3)
    after = host.model.state_dict()
    assert set(after) == set(before)
    assert all(torch.equal(after[key], value) for key, value in before.items() if ".graft." not in f".{key}")
    assert all(value.is_contiguous() for value in host.model.parameters())


def test_what_shares_an_input_runs_together():
    host = made("llama", "dora")
    ran = host.fuse()
    assert len(ran) == 14
    assert all(how.how == "stacked" and not how.reason for how in ran)
    layer = [[module for module in group.slots] for group in host.fused.groups][:4]
    assert sorted(len(group) for group in layer) == [1, 1, 2, 3]


def test_what_cannot_be_fused_says_why_and_strict_refuses_it():
    host = made("llama", "lora_embedding")
    (how,) = host.fuse()
    assert how.path == "model.embed_tokens"
    assert how.how == "apart"
    assert "no plain linear map" in how.reason
    with pytest.raises(AdapterError, match=r"model\.embed_tokens does not run fused: it is no plain linear map"):
        host.fuse(strict=True)
    assert host.fused is None
    assert made("llama", "houlsby").fuse(strict=True) == []


def test_methods_that_meet_with_a_scale_run_apart():
    ran = {how.path: how for how in made("llama", "ia3+lora").fuse()}
    assert ran["model.layers.0.mlp.down_proj"].how == "stacked"
    assert "at most one scale" in ran["model.layers.0.self_attn.v_proj"].reason


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("setting", ["lora", "dora"])
def test_checkpointing_changes_nothing(setting, layout):
    host, batch = made("llama", setting), inputs("llama")
    host.model.train()
    host.fuse(layout=layout)
    plain = results(host, batch)
    with checkpointed(host.model):
        same(results(host, batch), plain, 1e-6)


def test_a_step_by_hand_is_seen_at_once():
    host, batch = made("gpt_neox", "lora"), inputs("gpt_neox")
    host.fuse()
    with torch.no_grad():
        first = host.model(**batch).logits
        for value in host.parameters():
            value.mul_(2)
        second = host.model(**batch).logits
    host.unfuse()
    with torch.no_grad():
        close(second, host.model(**batch).logits, 1e-12)
    assert not torch.equal(first, second)


def test_modules_called_with_different_tensors_still_give_their_own():
    host, batch = made("llama", "lora"), inputs("llama")
    host.fuse()
    attention = host.model.model.layers[0].self_attn
    x = torch.randn(2, 5, 32, dtype=torch.float64)
    with torch.no_grad():
        host.model(**batch)
        fused = attention.q_proj(x), attention.k_proj(x.clone()), attention.v_proj(x)
        host.unfuse()
        for a, module in zip(fused, (attention.q_proj, attention.k_proj, attention.v_proj), strict=True):
            close(a, module(x), 1e-12)


def test_a_deep_copy_and_other_adapters_run_as_before():
    host, batch = made("llama", "lora"), inputs("llama")
    host.fuse(layout="pitched")
    with torch.no_grad():
        expected = host.model(**batch).logits
        close(copy.deepcopy(host.model)(**batch).logits, expected, 1e-6)
        host.add("other", made("llama", "dora", seed=9).adapter())
        host.route(["live", "other"])
        mixed = host.model(**batch).logits
    close(mixed[:1], expected[:1], 1e-5)
    host.route(None)
    host.detach()
    with torch.no_grad():
        assert torch.equal(host.model(**batch).logits, tiny("llama", torch.float64)(**batch).logits)


def test_dropout_drops_and_its_gradients_are_of_what_was_kept():
    host = graft.adapt(tiny("llama", torch.float64), graft.LoRA(r=2, dropout=0.5))
    shake(host)
    host.fuse()
    batch = inputs("llama")
    host.model.train()
    torch.manual_seed(0)
    a = host.model(**batch).logits
    torch.manual_seed(0)
    assert torch.equal(a, host.model(**batch).logits)
    assert not torch.equal(a, host.model(**batch).logits)
    host.model.eval()
    with torch.no_grad():
        assert torch.equal(host.model(**batch).logits, host.model(**batch).logits)


@pytest.fixture
def blocks(counting):
    """Compile the layers of a model, each a graph, run as it is."""
    backend, graphs = counting

    def compiled(host):
        for layer in host.model.model.layers:
            layer.compile(backend=backend, fullgraph=True)
        return graphs

    with torch._dynamo.config.patch(skip_fwd_side_effects_in_bwd_under_checkpoint=True):  # as regional compiling sets it
        yield compiled


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("compiles", [False, True])
@pytest.mark.parametrize("setting", ["lora", "dora", "lora_bias"])
@pytest.mark.filterwarnings("ignore")
def test_steps_of_a_fused_optimizer_are_seen(setting, compiles, layout, blocks):
    # such a step leaves no version on the tensors, so nothing computed before it may be used after it
    hosts, batch = [graft.adapt(tiny("llama", torch.float32), SETTINGS[setting]) for _ in range(2)], inputs("llama")
    hosts[0].fuse(layout=layout)
    graphs = blocks(hosts[0]) if compiles else []
    for host in hosts:
        host.model.train()  # once: it makes a slot forget
    optimizers = [torch.optim.AdamW(host.parameters(), lr=1e-2, fused=True) for host in hosts]
    for _ in range(3):
        for host, optimizer in zip(hosts, optimizers, strict=True):
            optimizer.zero_grad()
            host.model(**batch, use_cache=False).logits.square().mean().backward()
        # Adam divides a gradient by its size: what is nothing but rounding must not be compared after a step
        for a, b in zip(hosts[0].parameters(), hosts[1].parameters(), strict=True):
            close(a.grad, b.grad, 2e-5)
        for optimizer in optimizers:
            optimizer.step()
        with torch.no_grad():
            for a, b in zip(hosts[0].parameters(), hosts[1].parameters(), strict=True):
                b.copy_(a)  # into the plain one: a copy would leave a version
    assert len(graphs) == (2 if compiles else 0), "the first block, whose input needs no gradient, and the others"


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("setting", ["lora", "dora"])
@pytest.mark.filterwarnings("ignore")
def test_compiled_blocks_can_be_checkpointed(setting, layout, blocks):
    host, batch = made("llama", setting), inputs("llama")
    host.model.train()
    plain = results(host, batch)
    host.fuse(layout=layout)
    graphs = blocks(host)
    with checkpointed(host.model):
        same(results(host, batch), plain, 1e-5)
    assert graphs


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.filterwarnings("ignore")
def test_compiled_blocks_drop(layout, blocks):
    host, batch = graft.adapt(tiny("llama"), graft.LoRA(r=2, dropout=0.5)), inputs("llama")
    shake(host)
    host.fuse(layout=layout)
    blocks(host)
    host.model.train()
    outs = [host.model(**batch, use_cache=False).logits for _ in range(2)]
    assert not torch.equal(*outs)
    for value in torch.autograd.grad(outs[0].square().mean(), host.parameters()):
        assert value.isfinite().all()
        assert value.any()


@pytest.mark.parametrize(("setting", "runs"), [("last", [1, 2]), ("lora", [2, 2]), ("prefix", [2, 2]), ("prompt", [2, 2])])
def test_checkpointing_leaves_blocks_alone_below_the_lowest_that_is_trained(setting, runs):
    host, batch, calls = made("llama", setting), inputs("llama"), [0, 0]
    host.model.train()
    plain = results(host, batch)
    blocks = host.model.model.layers
    watched = [
        block.self_attn.q_proj.register_forward_hook(lambda module, args, out, number=number: calls.__setitem__(number, calls[number] + 1))
        for number, block in enumerate(blocks)
    ]
    with checkpointed(host.model):
        same(results(host, batch), plain, 1e-6)
    assert calls == runs
    for hook in watched:
        hook.remove()
    assert not any(block.gradient_checkpointing for block in blocks)
    with checkpointed(host.model), regional(host.model, backend="aot_eager", strict=True):
        same(results(host, batch), plain, 1e-6)
