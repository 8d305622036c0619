"""Finding and loading base models: tiny ones made on the spot, and no network."""

import json
import os

import huggingface_hub
import pytest
import torch
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    T5Config,
)

from graft.errors import ModelError
from graft.kernels import nf4
from graft.model import load as loading
from graft.model.load import config_of, load
from tiny_llama import LAYERS, VOCABULARY, WIDTH, llama, tokenizer


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """A cache of its own for every test, and no way to the network."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "cache"


@pytest.fixture
def folder(tmp_path):
    """A local folder with a tiny causal model and its tokenizer."""
    path = tmp_path / "tiny"
    llama().save_pretrained(path)
    tokenizer().save_pretrained(path)
    return path


def test_a_folder_loads_with_its_tokenizer(folder):
    loaded = load(str(folder), dtype=torch.float32, device="cpu")
    assert (loaded.name, loaded.note) == (str(folder), "")
    assert not loaded.model.training
    reference = llama()
    for name, value in reference.state_dict().items():
        assert torch.equal(loaded.model.state_dict()[name], value), name
    assert loaded.tokenizer.pad_token == "<|endoftext|>"
    assert loaded.model.config.pad_token_id == loaded.model.generation_config.pad_token_id == 0
    assert loaded.model.generation_config.eos_token_id == 2


def test_dtype_and_config(folder):
    assert load(str(folder), dtype=torch.bfloat16, device="cpu").model.dtype == torch.bfloat16
    assert load(str(folder), device="cpu").model.dtype == loading.default_dtype(torch.device("cpu"))
    assert config_of(str(folder)).num_hidden_layers == LAYERS
    with pytest.raises(ModelError, match="float16"):
        load(str(folder), dtype=torch.float16, device="cpu")


@pytest.mark.parametrize(("flags", "expected"), [({"avx512_bf16": True}, True), ({"amx_bf16": True}, True), ({"avx512_f": True}, False)])
def test_bfloat16_is_the_default_only_where_the_cpu_computes_in_it(monkeypatch, flags, expected):
    monkeypatch.setattr(loading, "cpu_capabilities", lambda: flags)
    assert loading.computes_bf16(torch.device("cpu")) is expected


def test_noise_is_put_back_as_it_was(folder, capfd):
    from transformers.utils import logging

    before = logging.get_verbosity()
    load(str(folder), device="cpu")
    assert logging.get_verbosity() == before
    assert logging.set_tqdm_hook(None) is None
    assert capfd.readouterr() == ("", "")


def test_nf4_keeps_its_bytes_through_evaluation_and_training(folder):
    pytest.importorskip("bitsandbytes")
    loaded = load(str(folder), dtype=torch.float32, nf4=True, device="cpu")
    linears = [module for module in loaded.model.modules() if nf4.is_packed(getattr(module, "weight", None))]
    assert len(linears) == 7 * LAYERS
    assert loaded.note == "linear layers in 4 bits (NF4)"
    before = [module.weight.data.clone() for module in linears]
    ids = torch.randint(0, len(VOCABULARY), (2, 9))
    with torch.no_grad():
        evaluated = loaded.model(input_ids=ids).logits
    embeddings = loaded.model.get_input_embeddings()(ids).detach().requires_grad_()
    loaded.model.train()
    trained = loaded.model(inputs_embeds=embeddings).logits
    trained.square().mean().backward()
    assert torch.equal(trained, evaluated)
    assert embeddings.grad.abs().sum() > 0
    assert all(torch.equal(module.weight.data, bytes_) for module, bytes_ in zip(linears, before, strict=True))


def test_nf4_gradients_are_those_of_the_dequantised_model(folder):
    pytest.importorskip("bitsandbytes")
    packed = load(str(folder), dtype=torch.float32, nf4=True, device="cpu").model
    dense = load(str(folder), dtype=torch.float32, device="cpu").model
    for name, module in packed.named_modules():
        if nf4.is_packed(getattr(module, "weight", None)):
            dense.get_submodule(name).weight.data = nf4.dequantise(module.weight)
    inputs = torch.randn(2, 7, WIDTH)
    gradients = []
    for model in (packed, dense):
        x = inputs.clone().requires_grad_()
        model(inputs_embeds=x).logits.square().mean().backward()
        gradients.append(x.grad)
    torch.testing.assert_close(gradients[0], gradients[1])


def test_nf4_without_bitsandbytes_names_the_extra(folder, monkeypatch):
    monkeypatch.setattr(loading.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModelError, match=r"graft-peft\[nf4\]"):
        load(str(folder), nf4=True, device="cpu")


@pytest.mark.parametrize("name", ["./nowhere", "/no/such/folder", "a/b/c", "~/nothing-here"])
def test_a_path_to_nothing_never_asks_the_network(name):
    with pytest.raises(ModelError, match="there is no model at"):
        load(name)


def test_other_wrong_names(tmp_path):
    with pytest.raises(ModelError, match="the model has no name"):
        load(" ")
    with pytest.raises(ModelError, match=r"there is no file .*x\.gguf"):
        load(str(tmp_path / "x.gguf"))
    with pytest.raises(ModelError, match=r"has no config\.json"):
        load(str(tmp_path))
    (tmp_path / "model.bin").write_bytes(b"")
    with pytest.raises(ModelError, match=r"not a \.gguf file"):
        load(str(tmp_path / "model.bin"))
    with pytest.raises(ModelError, match=r"cannot load nobody/nothing .*check the id"):
        load("nobody/nothing")


def test_a_folder_without_safetensors_or_with_broken_ones(folder):
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(ModelError, match="cannot load"):
        load(str(folder), device="cpu")
    os.rename(weights, folder / "elsewhere")
    torch.save(llama().state_dict(), folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"\*\.safetensors"):
        load(str(folder), device="cpu")


def test_code_in_a_repository_is_never_run(folder):
    (folder / "own.py").write_text("raise RuntimeError('run')\n")
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "unheard-of", "auto_map": {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"}}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="cannot load"):
        load(str(folder), device="cpu")


def test_classifiers_load_and_other_architectures_are_refused(tmp_path):
    small = BertConfig(
        vocab_size=len(VOCABULARY), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, num_labels=3
    )
    BertForSequenceClassification(small).save_pretrained(tmp_path / "classifier")
    tokenizer().save_pretrained(tmp_path / "classifier")
    loaded = load(str(tmp_path / "classifier"), device="cpu")
    assert loaded.model.num_labels == 3
    BertForMaskedLM(small).save_pretrained(tmp_path / "encoder")
    with pytest.raises(ModelError, match="num_labels=N"):
        load(str(tmp_path / "encoder"), device="cpu")
    T5Config(d_model=16, num_layers=1).save_pretrained(tmp_path / "t5")
    with pytest.raises(ModelError, match="encoder-decoder"):
        load(str(tmp_path / "t5"), device="cpu")
