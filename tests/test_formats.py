"""Adapters on disk: every method comes back as it went, the folder is whole, and an adapter enters only the base it was made for."""

import json
import logging

import pytest
import torch
import transformers
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import graft
from graft import IA3, BiasOnly, DoRA, LoRA, Prefix, Prompt, Selective
from graft.errors import AdapterError, GraftError, ModelError
from graft.formats.names import cover
from graft.methods import METHODS
from graft.model import belonging
from graft.model.families import sites
from settings import SETTINGS
from tiny import CONFIGS, inputs, tiny

FAMILIES = ("llama_bias", "gpt2", "gpt_neox", "phi3", "opt", "roberta")
NATIVE = {"houlsby", "pfeiffer", "parallel", "block", "bias", "last", "head", "full", "ia3+lora"} | {
    name for name in SETTINGS if name.endswith("+lora") and name != "lora+lora"
}
TYPES = {"lora": "LORA", "rslora": "LORA", "dora": "LORA", "lora_embedding": "LORA", "prompt": "PROMPT_TUNING"}
TYPES |= {"prefix": "PREFIX_TUNING", "prefix_mlp": "PREFIX_TUNING", "norm": "LN_TUNING"} | dict.fromkeys(NATIVE, "GRAFT")


OUR_OWN = [
    ("llama", [LoRA(r=2, targets=("q_proj",)), LoRA(r=2, targets=("k_proj",), dropout=0.1)]),
    ("llama", [LoRA(r=2, targets=("q_proj",)), LoRA(r=2, targets=("k_proj",), rslora=True)]),
    ("llama", [LoRA(r=2, targets=("q_proj",)), LoRA(r=2, targets=("q_proj", "k_proj"))]),
    ("llama", [LoRA(r=2, targets=("q_proj",)), DoRA(r=2, targets=("k_proj",))]),
    ("llama", [LoRA(r=2, bias=True, init_A="gaussian")]),
    ("llama", [LoRA(r=2), BiasOnly(add=True)]),
    ("gpt2", [LoRA(r=2), BiasOnly(targets=("ln_1",))]),
    ("gpt2", [LoRA(r=2), Selective("head"), Selective("norm")]),
    ("gpt2", [LoRA(r=2, targets=("c_attn",)), Selective(targets=("wte",))]),
    ("gpt2", [LoRA(r=2), Selective("full")]),
    ("llama_bias", [IA3(), Selective(targets=("embed_tokens",))]),
    ("bert", [Prompt(n=2), Selective(targets=("pooler.dense",))]),
    ("bert", [IA3(), BiasOnly()]),
]


def trained(name, methods, dtype=torch.float32, seed=5):
    """A model of the family with an adapter whose tensors have all moved."""
    adapted = graft.adapt(tiny(name, dtype), methods)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in adapted.parameters():
            value.add_(torch.empty_like(value).normal_(std=0.1, generator=generator))
    return adapted


def logits(adapted, name):
    """Logits of the family's inputs, without gradients."""
    with torch.no_grad():
        return adapted.model(**inputs(name)).logits


def config_of(path):
    """The saved config."""
    return json.loads((path / "adapter_config.json").read_text())


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("setting", SETTINGS)
def test_saved_then_loaded_is_the_same(name, setting, tmp_path):
    adapted = trained(name, SETTINGS[setting])
    adapted.save(tmp_path / "a")
    assert config_of(tmp_path / "a")["peft_type"] == TYPES.get(setting, config_of(tmp_path / "a")["peft_type"])
    loaded = graft.load(tiny(name), tmp_path / "a")
    assert torch.equal(logits(loaded, name), logits(adapted, name))
    ours, theirs = adapted.adapter(), loaded.adapter()
    assert [method.kind for method, _ in ours.parts] == [method.kind for method, _ in theirs.parts]
    assert ours.count() == theirs.count()
    assert ours.fingerprint == theirs.fingerprint
    if setting == "lora+bias":  # that nothing was added is not said where all biases are the base's own
        assert config_of(tmp_path / "a")["peft_type"] == ("GRAFT" if name in ("phi3", "roberta") else "LORA")
    elif "rows" not in setting and "embedding" not in setting and setting != "lora+lora":  # roles come back as the names of the modules
        assert [method for method, _ in ours.parts] == [method for method, _ in theirs.parts]


def test_what_is_in_the_folder(tmp_path):
    trained("llama", LoRA(r=4, alpha=8.0, rslora=True)).save(tmp_path / "deep" / "a")
    path = tmp_path / "deep" / "a"
    names = ["README.md", "adapter_config.json", "adapter_model.safetensors", "generation_config.json"]
    assert sorted(file.name for file in path.iterdir()) == names
    assert [file.name for file in path.parent.iterdir()] == ["a"]
    config = config_of(path)
    assert config["target_modules"] == ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    assert (config["r"], config["lora_alpha"], config["use_rslora"], config["task_type"]) == (4, 8, True, "CAUSAL_LM")
    with safe_open(path / "adapter_model.safetensors", framework="pt") as file:
        facts = json.loads(file.metadata()["graft"])
        assert "base_model.model.model.layers.1.self_attn.q_proj.lora_A.weight" in file.keys()  # noqa: SIM118
    assert facts["fingerprint"].count(":") == 2
    assert all((file.stat().st_mode & 0o777) == 0o644 for file in path.iterdir())
    assert "lora adapter" in (path / "README.md").read_text()


def test_ia3_scales_of_up_are_written_at_down(tmp_path):
    adapted = trained("llama", IA3())
    adapted.save(tmp_path / "a")
    config = config_of(tmp_path / "a")
    assert config["target_modules"] == ["k_proj", "v_proj", "down_proj"]
    assert config["feedforward_modules"] == ["down_proj"]
    with safe_open(tmp_path / "a" / "adapter_model.safetensors", framework="pt") as file:
        stored = file.get_tensor("base_model.model.model.layers.0.mlp.down_proj.ia3_l")
    live = adapted.model.model.layers[0].mlp.up_proj.graft.c
    assert torch.equal(stored, live.detach()[None])


def test_a_head_is_one_module_to_peft(tmp_path):
    trained("roberta", [LoRA(r=2), Selective("head")]).save(tmp_path / "a")
    config = config_of(tmp_path / "a")
    assert (config["task_type"], config["modules_to_save"]) == ("SEQ_CLS", ["classifier"])


def test_what_peft_has_no_form_for_is_saved_in_our_own_type(tmp_path):
    for number, (name, methods) in enumerate(OUR_OWN):
        adapted = trained(name, methods)
        adapted.save(tmp_path / str(number))
        assert config_of(tmp_path / str(number))["peft_type"] == "GRAFT"
        loaded = graft.load(tiny(name), tmp_path / str(number))
        assert torch.equal(logits(loaded, name), logits(adapted, name))
        assert loaded.adapter().parts[0][0] == adapted.adapter().parts[0][0]


def test_texts_that_an_adapter_started_from_come_back(tmp_path, tiny_tokenizer, tiny_llama):
    adapted = graft.adapt(tiny_llama, Prompt(n=3, init_embeds="text", text="Name the intent"), tokenizer=tiny_tokenizer)
    adapted.save(tmp_path / "a")
    adapted.detach()
    loaded = graft.load(tiny_llama, tmp_path / "a")
    assert loaded.adapter().parts[0][0] == adapted.adapter().parts[0][0]
    loaded.detach()
    adapted = graft.adapt(tiny_llama, Prefix(n=3, init_kv="text", text="Name the intent"), tokenizer=tiny_tokenizer)
    adapted.save(tmp_path / "b")
    adapted.detach()
    loaded = graft.load(tiny_llama, tmp_path / "b")
    assert loaded.adapter().parts[0][0] == adapted.adapter().parts[0][0]
    loaded.detach()


def test_precision_of_the_base_does_not_matter(tmp_path):
    trained("llama", LoRA()).save(tmp_path / "a")
    loaded = graft.load(tiny("llama", torch.bfloat16), tmp_path / "a")
    assert {value.dtype for value in loaded.parameters()} == {torch.float32}


# the base


def test_another_base_is_refused_unless_forced(tmp_path):
    adapted = trained("llama", LoRA())
    adapted.save(tmp_path / "a")
    other = tiny("llama")
    other.model.layers[0].mlp.up_proj.weight.data[0, 0] += 1
    with pytest.raises(AdapterError, match="differs in its weights"):
        graft.load(other, tmp_path / "a")
    assert not hasattr(other, "graft")
    assert graft.load(other, tmp_path / "a", force=True).adapter().fingerprint != adapted.adapter().fingerprint
    with pytest.raises(AdapterError, match="differs in its architecture"):
        graft.load(tiny("mistral"), tmp_path / "a")


def test_a_new_random_head_is_no_other_base(tmp_path):
    trained("bert", [LoRA(r=2), Selective("head")]).save(tmp_path / "a")
    model = tiny("bert")
    model.classifier.weight.data.normal_()
    graft.load(model, tmp_path / "a")


def test_four_bit_weights_count_as_their_dense_base(tmp_path, caplog):
    bnb = pytest.importorskip("bitsandbytes")
    trained("llama", LoRA()).save(tmp_path / "a")
    model = tiny("llama")
    for layer in model.model.layers:
        dense = layer.mlp.up_proj
        packed = bnb.nn.Linear4bit(dense.in_features, dense.out_features, bias=False, quant_type="nf4")
        packed.weight = bnb.nn.Params4bit(dense.weight.data, requires_grad=False, quant_type="nf4")
        layer.mlp.up_proj = packed.to("cpu")
    with caplog.at_level(logging.INFO, "graft"):
        loaded = graft.load(model, tmp_path / "a")
    assert "dense numbers" in caplog.text
    assert loaded.adapter().notes["weights"] == "nf4"


def test_a_foreign_file_is_noted(tmp_path, caplog):
    trained("llama", LoRA()).save(tmp_path / "a")
    weights = tmp_path / "a" / "adapter_model.safetensors"
    save_file(load_file(weights), weights)
    belonging.SAID.clear()
    with caplog.at_level(logging.INFO, "graft"):
        graft.load(tiny("llama"), tmp_path / "a")
    assert "only the shapes were checked" in caplog.text


def test_a_model_that_has_an_adapter_takes_no_second(tmp_path):
    adapted = trained("llama", LoRA())
    adapted.save(tmp_path / "a")
    with pytest.raises(AdapterError, match="adapted already"):
        graft.load(adapted.model, tmp_path / "a")


@pytest.mark.parametrize("setting", [name for name in SETTINGS if not name.startswith(("prefix", "prompt"))])
def test_an_adapter_that_changes_nothing_is_reported(setting, tmp_path, caplog):
    adapted = graft.adapt(tiny("gpt2"), SETTINGS[setting])
    adapted.save(tmp_path / "fresh")
    with torch.no_grad():
        last = adapted.parameters()[-1]
        last.view(-1)[-1] += 0.1
    adapted.save(tmp_path / "moved")
    with caplog.at_level(logging.WARNING, "graft"):
        loaded = graft.load(tiny("gpt2"), tmp_path / "moved")
        moved = not torch.equal(logits(loaded, "gpt2"), logits(graft.adapt(tiny("gpt2"), SETTINGS[setting]), "gpt2"))
        assert not (moved and "changes nothing" in caplog.text)
        caplog.clear()
        graft.load(tiny("gpt2"), tmp_path / "fresh")
    assert "changes nothing" in caplog.text


def test_a_loaded_adapter_drops_nothing_in_a_model_that_evaluates(tmp_path):
    adapted = trained("llama", LoRA(dropout=0.5))
    adapted.save(tmp_path / "a")
    loaded = graft.load(tiny("llama"), tmp_path / "a")
    assert torch.equal(logits(loaded, "llama"), logits(loaded, "llama"))
    assert torch.equal(logits(loaded, "llama"), logits(adapted, "llama"))
    loaded.model.train()
    assert not torch.equal(logits(loaded, "llama"), logits(loaded, "llama"))


# counts and names


@pytest.mark.parametrize("name", ["llama_bias", "gpt2", "bert"])
@pytest.mark.parametrize("method", METHODS)
def test_counts_from_a_config_are_exact(name, method):
    adapted = graft.adapt(tiny(name), METHODS[method])
    assert graft.count(CONFIGS[name](), METHODS[method]) == sum(value.numel() for value in adapted.parameters())
    assert graft.count(tiny(name), [METHODS[method]]) == graft.count(CONFIGS[name](), METHODS[method])


def test_a_large_model_is_counted_without_memory():
    config = transformers.LlamaConfig(hidden_size=8192, num_hidden_layers=80, num_attention_heads=64, num_key_value_heads=8)
    assert graft.count(config, LoRA(r=1, targets=("query",))) == 80 * 2 * 8192
    with pytest.raises(GraftError, match="no biases"):
        graft.count(config, BiasOnly())
    with pytest.raises(ModelError, match="encoder-decoder"):
        graft.count(transformers.T5Config(), LoRA())


def test_names_are_as_short_as_they_can_be():
    paths = ["a.0.q", "a.0.out.dense", "a.0.dense", "a.1.q", "a.1.out.dense", "a.1.dense", "head"]
    assert cover({"a.0.q", "a.1.q"}, paths) == ["q"]
    assert cover({"a.0.out.dense", "a.1.out.dense"}, paths) == ["out.dense"]
    assert cover({"a.0.dense", "a.1.dense"}, paths) == ["0.dense", "1.dense"]
    assert cover({"a.1.q", "head"}, paths) == ["1.q", "head"]


def test_an_adapters_own_tensors_are_no_sites():
    adapted = trained("llama", [LoRA(), BiasOnly(add=True)])
    assert sites(adapted.model) == sites(tiny("llama"))
