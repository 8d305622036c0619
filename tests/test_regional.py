"""Blocks compiled by themselves: few graphs, none for other values or lengths, one clear word where it cannot be, and all put back."""

import copy

import pytest
import torch
import transformers as T

import graft
from graft.errors import ModelError, TrainingError
from graft.model import regional as module
from graft.model.checkpointing import checkpointed
from graft.model.regional import EARNS, EXCESS, Regional, blocks, pays, regional
from settings import SETTINGS
from test_laws import shake
from tiny import CONFIGS, ENCODERS, MODELS, inputs, tiny

LENGTHS = (8, 16, 24, 32, 40, 48, 56, 64, 72, 80)
CASES = [("llama", setting) for setting in ("lora", "dora", "ia3", "pfeiffer", "bias", "last", "norm", "full", "prefix", "prompt")]
CASES += [("gpt2", "lora"), ("gemma2", "dora"), ("bert", "ia3"), ("qwen3", "prefix")]


def adapted(name="llama", setting="lora", layers=4):
    torch.manual_seed(0)
    config = CONFIGS[name]()
    config.num_hidden_layers = layers
    config.layer_types = None if getattr(config, "layer_types", None) is None else config.layer_types * (layers // 2)
    auto = T.AutoModelForSequenceClassification if name in ENCODERS else T.AutoModelForCausalLM
    host = graft.adapt(auto.from_config(config, attn_implementation=config._attn_implementation), SETTINGS[setting])
    shake(host, 3)
    host.model.train()
    return host


def step(host, name="llama", length=8, **more):
    """One pass forward and back without a mask; the gradients, which are then gone."""
    call = {"input_ids": inputs(name, 2, length, seed=length)["input_ids"]} | ({} if name in ENCODERS else {"use_cache": False})
    host.model(**call, **more).logits.float().square().mean().backward()
    found = [value.grad for value in host.parameters()]
    for value in host.parameters():
        value.grad = None
    return found


def near(ours, plain):
    for x, y in zip(ours, plain, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-5 * max(1.0, float(y.abs().max())))


@pytest.mark.parametrize(("name", "setting"), CASES)
def test_two_graphs_a_kind_of_block_serve_every_length(counting, name, setting):
    backend, graphs = counting
    host, lengths = adapted(name, setting), LENGTHS[:4] if name == "gpt2" else LENGTHS[:6]
    plain = [step(host, name, length) for length in lengths]
    kinds = 2 if setting not in ("prompt", "full") else 1  # the first block's input needs no gradient, but where what enters it is trained
    with regional(host.model, backend=backend, strict=True) as made:
        for length, expected in zip(lengths, plain, strict=True):
            near(step(host, name, length), expected)
    assert made.report.graphs == len(graphs) == 2 * kinds
    assert (made.report.blocks, made.report.notes) == (4, [])
    assert made.report.seconds > 0


def test_ten_lengths_and_what_adapters_hold_make_no_graph(counting):
    backend, graphs = counting
    host = adapted("llama", "dora")
    with regional(host.model, backend=backend, strict=True):
        for length in LENGTHS:
            step(host, length=length)
        assert len(graphs) == 4
        shake(host, 9)
        step(host, length=24)
        for value in host.parameters():
            value.data.mul_(3)
        step(host, length=88)
    assert len(graphs) == 4


def test_routes_make_no_graph(counting):
    backend, graphs = counting
    host = adapted()
    host.add("other", graft.adapt(adapted().detach(), SETTINGS["dora"]).adapter())
    found = []
    with regional(host.model, backend=backend, strict=True):
        for routes in (["live", "other"], ["other", None], [None, "live"]):
            host.route(routes)
            host.model(**inputs("llama"), use_cache=False)
            found.append(len(graphs))
    assert found == [found[0]] * 3


@pytest.mark.parametrize("setting", ["lora", "dora"])
@pytest.mark.parametrize("fuses", [False, True])
def test_checkpointed_blocks_are_compiled_too(counting, setting, fuses):
    backend, _ = counting
    host = adapted("llama", setting)
    plain = step(host)
    if fuses:
        host.fuse()
    with checkpointed(host.model), regional(host.model, backend=backend, strict=True) as made:
        near(step(host), plain)
        near(step(host, length=16), step(host, length=16))
    assert made.report.graphs == 2  # checkpointing has every block's input require a gradient


@pytest.mark.parametrize("setting", ["lora", "dora"])
def test_what_is_done_ahead_waits_for_the_first_block(counting, setting):
    backend, _ = counting
    host, plain, seen = adapted("llama", setting), adapted("llama", setting), []
    host.fuse(layout="pitched")
    host.fused.replay = lambda values, replay=host.fused.replay: (seen.append("ahead"), replay(values))
    host.model.model.rotary_emb.register_forward_hook(lambda *_: seen.append("positions"))
    with regional(host.model, backend=backend, strict=True, ahead=host.fused):
        for seed in (1, 2):
            shake(host, seed)
            compiled = step(host)
            host.model.eval()
            with torch.no_grad():
                late = host.model(**inputs("llama")).logits
            host.model.train()
            seen.append("step")
            shake(plain, seed)
            expected = [plain.model(**inputs("llama")).logits.detach(), *step(plain)]
            pairs = zip([late, *compiled], expected, strict=True)
            assert all(float((x - y).norm()) <= 1e-3 * float(y.norm()) for x, y in pairs)
    assert seen == ["positions", "ahead", "positions", "ahead", "step"] * 2
    seen.clear()
    step(host)
    assert seen == ["ahead", "positions"]


def test_evaluation_runs_blocks_as_they_are(counting):
    backend, graphs = counting
    host = adapted()
    with regional(host.model, backend=backend), torch.no_grad():
        host.model.eval()
        host.model(**inputs("llama"))
    assert not graphs


def test_everything_is_put_back(counting, tmp_path):
    backend, graphs = counting
    host = adapted()
    before = {path: dict(vars(block)) for path, block in blocks(host.model).items()}
    other = list(blocks(host.model).values())[2]
    other.compile(backend=backend)  # somebody else's
    own = vars(other)["_compiled_call_impl"]
    with pytest.raises(KeyError), regional(host.model, backend=backend):
        raise KeyError
    assert vars(other).pop("_compiled_call_impl") is own
    assert {path: dict(vars(block)) for path, block in blocks(host.model).items()} == before
    with regional(host.model, backend=backend):
        step(host)
        twin = copy.deepcopy(host.model)
        host.save(tmp_path / "adapter")
        torch.save(host.model.state_dict(), tmp_path / "state.pt")
    count = len(graphs)
    assert not any("_compiled_call_impl" in vars(block) for block in blocks(twin).values())
    call = inputs("llama")
    assert torch.equal(twin(**call).logits, host.model(**call).logits)
    assert len(graphs) == count
    assert not [key for key in torch.load(tmp_path / "state.pt") if "compiled" in key]


def broken(host):
    """The third block's MLP cannot be traced."""
    mlp = host.model.model.layers[2].mlp
    inner = mlp.forward

    def forward(x):
        torch._dynamo.graph_break()
        return inner(x)

    mlp.forward = forward
    return host


def test_a_block_that_is_not_one_graph_is_an_error_if_strict_and_else_a_note(counting):
    backend, _ = counting
    host = adapted()
    plain = step(host)
    with regional(broken(host).model, backend=backend) as made:
        near(step(host), plain)
    assert made.report.notes == [made.report.failed]
    assert made.report.failed.startswith("model.layers.2 cannot be compiled as one graph (")
    assert "uncompiled" in made.report.failed
    assert len(made.report.failed) < 400
    with regional(host.model, backend=backend, strict=True), pytest.raises(TrainingError, match=r"model\.layers\.2 cannot be compiled"):
        step(host)


def test_a_backend_that_fails_is_a_note(counting):
    host = adapted()
    plain = step(host)

    def backend(graph, _):
        raise RuntimeError("no such compiler. At all.")

    with regional(host.model, backend=backend) as made:
        near(step(host), plain)
    assert "no such compiler" in made.report.failed
    assert made.report.graphs == 0


def numbering(host):
    """Every call of a block reads another number, so that each makes a graph."""
    for layer in host.model.model.layers:
        layer.mlp.number = 1000
        inner = layer.mlp.forward

        def forward(x, mlp=layer.mlp, inner=inner):
            return inner(x) * (mlp.number / mlp.number)

        layer.mlp.forward = forward


def numbered(host, number):
    for layer in host.model.model.layers:
        layer.mlp.number = number


def test_too_many_graphs_are_an_error_if_strict_and_else_a_note(counting):
    backend, _ = counting
    with torch._dynamo.config.patch(allow_unspec_int_on_nn_module=False):
        host = adapted()
        numbering(host)
        with regional(host.model, backend=backend) as made:
            for number in range(EXCESS + 3):
                numbered(host, 1000 + number)
                step(host)
        assert "was compiled once more" in made.report.excess
        assert "number" in made.report.excess
        assert made.report.failed
        graphs = made.report.graphs
        numbered(host, 2000)
        with regional(host.model, backend=backend, strict=True):
            step(host)
            numbered(host, 2001)
            with pytest.raises(TrainingError, match=r"model\.layers\.0 was compiled once more for the same kind of input \(.*number"):
                step(host)
    assert graphs <= 2 + EXCESS + 2


@pytest.mark.parametrize("name", MODELS)
def test_the_blocks_of_every_family_are_found(name):
    found = blocks(graft.adapt(tiny(name), graft.LoRA(r=2)).model)
    assert len(found) == 2
    assert [path.rpartition(".")[2] for path in found] == ["0", "1"]


def test_a_model_without_blocks_is_refused():
    with pytest.raises(ModelError, match="no transformer blocks"):
        Regional(torch.nn.Linear(2, 2))


def test_it_pays_on_a_gpu_with_enough_work(monkeypatch):
    model = tiny("llama")
    assert not pays(model, 10**15)
    numbers = sum(value.numel() for block in blocks(model).values() for value in block.parameters())
    monkeypatch.setattr(module, "on_gpu", lambda value: True)
    assert pays(model, int(EARNS / numbers) + 1)
    assert not pays(model, int(EARNS / numbers) - 1)
