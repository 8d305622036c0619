"""Trust: the base is what it was, to the byte; an adapter is loaded where it belongs, and what is amiss is said."""

import copy
import json

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import graft
from graft import verify as verifying
from graft.errors import AdapterError, ModelError
from graft.model import belonging, speech
from graft.model.digest import changed, digests
from settings import SETTINGS
from test_laws import made, shake
from tiny import CONFIGS, tiny

FEW = ("lora", "dora", "ia3", "houlsby", "parallel", "bias", "last", "full", "prefix_mlp", "prompt", "lora+head")


@pytest.mark.parametrize("name", ["llama", "llama_bias", "gpt2", "bert"])
def test_a_digest_sees_every_value_and_not_the_adapter(name):
    model = tiny(name)
    before = graft.digest(model)
    adapted = graft.adapt(model, SETTINGS["lora+head"])
    assert graft.digest(model) == before
    adapted.detach()
    for key, value in [*model.named_parameters(), *model.named_buffers()]:
        if key.rpartition(".")[2] in model.get_submodule(key.rpartition(".")[0])._non_persistent_buffers_set:
            continue
        kept = value.detach().clone()
        value.data.view(-1)[-1] = 7.0
        assert changed(digests(tiny(name)), digests(model)).startswith(key)
        value.data.copy_(kept)
    assert graft.digest(model) == before


def test_a_digest_sees_dtypes_shapes_names_and_ties():
    model = tiny("llama_bias")
    marks = {graft.digest(model), graft.digest(tiny("llama_bias", torch.float64)), graft.digest(tiny("llama"))}
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    marks.add(graft.digest(model))
    head = model.lm_head.weight
    head.data = head.data.reshape(head.shape[::-1])
    marks.add(graft.digest(model))
    assert len(marks) == 5


def test_a_digest_needs_bytes():
    with pytest.raises(ModelError, match="meta device"):
        graft.digest(tiny("llama").to("meta"))


def test_a_digest_sees_packed_bytes_and_their_scales():
    pytest.importorskip("bitsandbytes")
    from test_nf4 import packed_linear

    module = packed_linear(64, 64)
    marks = [graft.digest(module)]
    module.weight.data[0] ^= 1
    marks.append(graft.digest(module))
    module.weight.quant_state.absmax[0] += 1
    marks.append(graft.digest(module))
    module.weight.quant_state.offset += 1
    marks.append(graft.digest(module))
    assert len(set(marks)) == 4


@pytest.mark.parametrize("setting", FEW)
@pytest.mark.parametrize("name", ["llama", "bert"])
def test_verify_finds_the_base_untouched_and_leaves_the_model_as_it_was(name, setting, tmp_path):
    made(name, setting, torch.float32).save(tmp_path / "a")
    model = tiny(name)
    before = graft.digest(model)
    stages = verifying.verify(model, tmp_path / "a")
    assert all(stage.equal for stage in stages), stages
    assert {stage.digest for stage in stages if stage.name != verifying.MERGED} == {before}
    merged = [stage.digest for stage in stages if stage.name == verifying.MERGED]
    assert before not in merged
    assert bool(merged) == (not made(name, setting, torch.float32).mergeable)
    assert graft.digest(model) == before
    assert list(model.state_dict()) == list(tiny(name).state_dict())


def test_verify_says_what_was_touched(tmp_path, monkeypatch):
    made("llama", "lora", torch.float32).save(tmp_path / "a")
    unmerge = verifying.unmerge

    def careless(adapted):
        unmerge(adapted)
        adapted.model.model.norm.weight.data[0] += 1e-3

    monkeypatch.setattr(verifying, "unmerge", careless)
    stages = verifying.verify(tiny("llama"), tmp_path / "a")
    assert [stage.name for stage in stages if not stage.equal] == ["unmerged", "detached"]
    assert stages[-1].note == "model.norm.weight"


def load_refused(model, folder):
    with pytest.raises(AdapterError) as caught:
        graft.load(model, folder)
    assert "force=True" in str(caught.value)
    return str(caught.value)


def test_a_refusal_says_what_differs_in_words_to_act_on(tmp_path):
    made("llama", "lora", torch.float32).save(tmp_path)
    said = load_refused(tiny("gpt2"), tmp_path)
    assert "differs in its architecture (LlamaForCausalLM (llama) there, GPT2LMHeadModel (gpt2) here)" in said
    config = CONFIGS["llama"]()
    config.intermediate_size = 96
    said = load_refused(transformers.AutoModelForCausalLM.from_config(config), tmp_path)
    assert "differs in its shapes (model.layers.*.mlp." in said
    assert "_proj.weight: 2 of 48x32 there, 2 of 96x32 here" in said
    model = tiny("llama")
    model.model.norm.weight.data += 1
    model.lm_head.weight.data += 1
    said = load_refused(model, tmp_path)
    assert "differs in its weights (2 of 21 tensors have other values, the first is model.norm.weight)" in said
    before = graft.load(model, tmp_path, force=True).adapter()
    assert torch.equal(before.walk()[0][2], made("llama", "lora", torch.float32).adapter().walk()[0][2])
    host = made("llama", "ia3", torch.float32)
    model = tiny("llama")
    model.model.norm.weight.data += 1
    host = graft.adapt(model, SETTINGS["ia3"])
    for source in (tmp_path, made("llama", "lora", torch.float32).adapter()):
        with pytest.raises(AdapterError, match="1 of 21 tensors"):
            host.add("x", source)
    host.add("x", tmp_path, force=True)


def test_a_foreign_file_is_spoken_of_once(tmp_path, caplog):
    made("llama", "lora", torch.float32).save(tmp_path)
    save_file(load_file(tmp_path / "adapter_model.safetensors"), tmp_path / "adapter_model.safetensors")
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": "someone/elses"}))
    belonging.SAID.clear()
    host = graft.load(tiny("llama"), tmp_path)
    for number in range(5):
        host.add(f"a{number}", tmp_path)
    assert len([one for one in caplog.messages if "carries no fingerprint" in one and "someone/elses" in one]) == 1


@pytest.mark.parametrize("setting", FEW)
def test_an_adapter_that_changes_nothing_is_reported(setting, tmp_path, caplog):
    graft.adapt(tiny("llama"), SETTINGS[setting]).save(tmp_path / "fresh")
    made("llama", setting, torch.float32).save(tmp_path / "trained")
    host = graft.load(tiny("llama"), tmp_path / "trained")
    host.add("trained", tmp_path / "trained")
    assert not [one for one in caplog.messages if "changes nothing" in one]
    host.add("fresh", tmp_path / "fresh")
    graft.load(tiny("llama"), tmp_path / "fresh")
    said = [one for one in caplog.messages if "changes nothing" in one]
    assert len(said) == (0 if setting in ("prefix_mlp", "prompt") else 2)
    assert all(str(tmp_path / "fresh") in one and SETTINGS[setting][0].kind in one for one in said)


def test_the_part_that_changes_nothing_is_named(tmp_path, caplog):
    adapted = graft.adapt(tiny("llama"), [graft.LoRA(r=2), graft.IA3()])
    with torch.no_grad():
        for name, value in adapted.model.named_parameters():
            if value.requires_grad and name.endswith("B"):
                value.fill_(1.0)
    adapted.save(tmp_path)
    graft.load(tiny("llama"), tmp_path)
    assert [one for one in caplog.messages if one.endswith("has parts that change nothing: ia3")]


def test_template_and_generation_settings_travel(tmp_path, tiny_llama, tiny_tokenizer, plain_tokenizer, caplog):
    model = copy.deepcopy(tiny_llama)
    model.generation_config = transformers.GenerationConfig(eos_token_id=[2, 7], do_sample=True, temperature=0.3, top_p=0.9)
    adapted = graft.adapt(model, graft.LoRA(r=2))
    shake(adapted)
    adapted.save(tmp_path, tokenizer=tiny_tokenizer)
    assert (tmp_path / "chat_template.jinja").read_text() == tiny_tokenizer.chat_template
    assert json.loads((tmp_path / "generation_config.json").read_text())["eos_token_id"] == [2, 7]
    other = copy.deepcopy(tiny_llama)
    graft.load(other, tmp_path, tokenizer=plain_tokenizer)
    assert [one for one in caplog.messages if "another chat template" in one]
    said = speech.speak(tmp_path, other, plain_tokenizer)
    assert len(said) == 2
    assert plain_tokenizer.chat_template == tiny_tokenizer.chat_template
    assert (other.generation_config.eos_token_id, other.generation_config.temperature) == ([2, 7], 0.3)
    assert speech.speak(tmp_path, other, plain_tokenizer) == []
    (tmp_path / "generation_config.json").write_text(json.dumps({"assistant_model": "x", "eos_token_id": 3, "top_k": "many"}))
    speech.speak(tmp_path, other, plain_tokenizer)
    assert other.generation_config.eos_token_id == 3
    for text in ("[1]", "{", '{"max_new_tokens": -5}'):
        (tmp_path / "generation_config.json").write_text(text)
        with pytest.raises(AdapterError, match=r"generation_config.json in .* cannot be used"):
            speech.speak(tmp_path, other, plain_tokenizer)
    (tmp_path / "chat_template.jinja").write_bytes(b"\xff\xfe")
    with pytest.raises(AdapterError, match="cannot be read as text"):
        speech.speak(tmp_path, other, plain_tokenizer)
