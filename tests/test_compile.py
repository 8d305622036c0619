"""torch.compile(fullgraph=True) of a whole adapted model: no break, the same numbers, and no graph anew for other values or adapters."""

import pytest
import torch
import transformers as T

import graft
from settings import SETTINGS
from test_laws import close, shake
from tiny import CONFIGS, inputs

DOORWAY = ("prefix", "prompt")  # the root's hooks are graphs of their own
LLAMA = (
    "lora",
    "lora_rows",
    "lora_embedding",
    "dora",
    "ia3",
    "pfeiffer",
    "residual",
    "bias",
    "full",
    "prefix_mlp",
    "prompt",
    "prompt+lora",
)
GPT2 = ("dora_rows", "ia3", "parallel", "prefix")


def small(name):
    """One layer of the family's tiny model, shaken."""
    torch.manual_seed(0)
    config = CONFIGS[name]()
    config.num_hidden_layers = 1
    model = T.AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").eval()
    with torch.no_grad():
        for value in model.parameters():
            value.add_(torch.randn_like(value) * 0.1)
    return model


def adapted(name, setting, seed=3):
    host = graft.adapt(small(name), SETTINGS[setting])
    shake(host, seed)
    return host


@pytest.fixture
def compiled(counting):
    """A compiler that runs graphs as they are and counts them."""
    backend, graphs = counting
    return (lambda model: torch.compile(model, backend=backend, fullgraph=True)), graphs


CASES = [("llama", setting) for setting in LLAMA] + [("gpt2", setting) for setting in GPT2]


@pytest.mark.parametrize(("name", "setting"), CASES)
@pytest.mark.filterwarnings("ignore")
def test_the_whole_model_is_one_graph_to_train_and_one_to_evaluate(name, setting, compiled):
    compiler, graphs = compiled
    host = adapted(name, setting)
    model, batch = host.model, inputs(name)
    run = compiler(model)
    for mode in (True, False):
        model.train(mode)
        before = len(graphs)
        with torch.set_grad_enabled(mode):
            for seed in range(3):
                shake(host, seed)
                ours, theirs = run(**batch, use_cache=False).logits, model(**batch, use_cache=False).logits
                close(ours, theirs, 1e-6)
                if mode:
                    mine, other = (torch.autograd.grad(out.square().sum(), host.parameters()) for out in (ours, theirs))
                    for a, b in zip(mine, other, strict=True):
                        close(a, b, 1e-6)
                if not seed:
                    first = len(graphs)
        assert len(graphs) == first, "another value made another graph"
        assert first - before <= (3 if any(word in setting for word in DOORWAY) else 1)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
@pytest.mark.filterwarnings("ignore")
def test_routing_switching_and_replacing_adapters_makes_no_graph_anew(name, compiled):
    compiler, graphs = compiled
    host = adapted(name, "lora")
    model, batch = host.model, inputs(name)
    run = compiler(model)
    for number, setting in enumerate(("lora", "dora", "ia3", "houlsby", "bias", "prefix")):
        host.add(setting, adapted(name, setting, seed=number).adapter())
    weights = [["lora", "dora"], ["ia3", "houlsby"], ["bias", "live"], [None, "lora"], ["live", "live"]]
    virtual = [["prefix", "lora"], ["dora", "prefix"], [None, "prefix"]]

    def check(rows):
        host.route(rows)
        close(run(**batch, use_cache=False).logits, model(**batch, use_cache=False).logits, 1e-6)

    with torch.no_grad():
        for rows in (weights[0], virtual[0]):
            check(rows)
        first = len(graphs)
        assert first <= 4  # batches without virtual tokens and with them, each with the root's hook
        for rows in weights + virtual:
            check(rows)
        assert len(graphs) == first, "another route made another graph"
        for number, method in enumerate((graft.LoRA(r=3, alpha=9.0), graft.LoRA(r=2, alpha=0.5), graft.DoRA(r=1))):
            other = graft.adapt(small(name), method)
            shake(other, number)
            host.add("lora", other.adapter(), replace=True)
            check(["lora", None])
        assert len(graphs) == first, "another rank or scale made another graph"


@pytest.mark.filterwarnings("ignore")
def test_a_merged_and_an_unmerged_model_are_two_graphs(compiled):
    compiler, graphs = compiled
    host = adapted("llama", "lora")
    run, batch = compiler(host.model), inputs("llama")
    with torch.no_grad():
        for seed in range(3):
            expected = run(**batch, use_cache=False).logits
            graft.merge(host)
            close(run(**batch, use_cache=False).logits, expected, 2e-5)
            graft.unmerge(host)
            shake(host, seed)
    assert len(graphs) == 2


@pytest.mark.filterwarnings("ignore")
def test_a_pack_that_grows_makes_a_graph_anew_and_only_then(compiled):
    compiler, graphs = compiled
    host = adapted("llama", "lora")
    run, batch = compiler(host.model), inputs("llama")
    with torch.no_grad():
        for number in range(6):
            host.add(f"a{number}", adapted("llama", "lora", seed=number).adapter())
            host.route([f"a{number}", None])
            close(run(**batch, use_cache=False).logits, host.model(**batch, use_cache=False).logits, 1e-6)
    assert len(graphs) == 4  # 2, 3, 5 and 8 adapters' columns, where 7 come
