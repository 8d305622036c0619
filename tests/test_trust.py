"""Trust: the base is what it was, to the byte; an adapter is loaded where it belongs, and what is amiss is said."""

import pytest
import torch

import graft
from graft import verify as verifying
from graft.errors import ModelError
from graft.model.digest import changed, digests
from settings import SETTINGS
from test_laws import made
from tiny import tiny

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
