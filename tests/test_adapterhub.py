"""AdapterHub, both ways, by what its own library wrote and computed (tests/fixtures/adapterhub, made by scripts/adapterhub.py)."""

import contextlib
import importlib.util
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import graft
from graft.errors import GraftError
from tiny import tiny

HERE = Path(__file__).parent
FIXTURES = HERE / "fixtures" / "adapterhub"
CASES = sorted(path.name for path in FIXTURES.iterdir() if path.is_dir())
LOGITS = load_file(FIXTURES / "logits.safetensors")
EXACT = ("bert", "roberta", "gpt2")
"""Families that compute in float64 throughout; the others' norms cast to float32 inside."""


def script():
    spec = importlib.util.spec_from_file_location("script", HERE.parent / "scripts" / "adapterhub.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


THEIRS = script()


def base(case: str):
    return THEIRS.model_of(case.partition("-")[0]).double()


def gap(found, expected) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


def logits(model, case: str):
    return THEIRS.logits(model, case.partition("-")[0])


@pytest.mark.parametrize("family", sorted(THEIRS.MODELS))
def test_the_base_is_the_one_that_the_fixtures_were_made_on(family):
    assert gap(logits(base(family), family), LOGITS[family]) < (1e-12 if family in EXACT else 1e-6)


@pytest.mark.parametrize("case", CASES)
def test_what_adapterhub_wrote_runs_as_it_did_there(case):
    adapted = graft.load(base(case), FIXTURES / case)
    assert gap(logits(adapted.model, case), LOGITS[case]) < (1e-12 if case.partition("-")[0] in EXACT else 1e-6)
    assert gap(LOGITS[case], LOGITS[case.partition("-")[0]]) > 1e-3


def test_a_head_in_float32_runs_on_a_base_in_bfloat16():
    model = THEIRS.model_of("bert").to(torch.bfloat16)
    adapted = graft.load(model, FIXTURES / "bert-head")
    with torch.no_grad():
        found = adapted.model(**THEIRS.batch("bert")).logits
    assert found.dtype == torch.bfloat16
    assert gap(found.double(), LOGITS["bert-head"]) < 0.05


OTHERWISE = {
    "bert-attention": {"reduction_factor"},  # 32 // 11 is 32 // 16
    "gpt2-factors": {"reduction_factor"},  # a table without a default
    "gpt2-after": {"original_ln_after", "residual_before_ln"},  # without norms, the same numbers as the library's own default
    "bert-prefix_mlp": {"bottleneck_size", "flat"},  # written as what the MLP makes
    "llama-prefix_mlp": {"bottleneck_size", "flat", "non_linearity"},
}
"""What our configs say in another way than the library's, with the same meaning."""


@pytest.mark.parametrize("case", CASES)
def test_what_we_write_is_what_adapterhub_wrote(case, tmp_path):
    graft.load(base(case), FIXTURES / case).save(tmp_path / "out", format="adapterhub")
    ours, theirs = (json.loads((folder / "adapter_config.json").read_text()) for folder in (tmp_path / "out", FIXTURES / case))
    odd = {key for key in ours["config"] | theirs["config"] if ours["config"].get(key, 0) != theirs["config"].get(key, 0)}
    assert odd == OTHERWISE.get(case, set())
    assert ours | {"config": None} == theirs | {"config": None}
    for file in ("adapter.safetensors", "model_head.safetensors") if case in THEIRS.HEADS else ("adapter.safetensors",):
        written, found = load_file(tmp_path / "out" / file), load_file(FIXTURES / case / file)
        if "flat" not in odd:
            assert set(written) == set(found)
            assert all(torch.equal(written[key].float(), value) for key, value in found.items())
    again = graft.load(base(case), tmp_path / "out")
    assert gap(logits(again.model, case), LOGITS[case]) < (1e-12 if case.partition("-")[0] in EXACT else 1e-6)


BOTH = ("attention", "mlp")
WRITES = {
    "llama-rslora": [graft.LoRA(r=4, alpha=3.0, rslora=True, targets=("query", "key", "up"), dropout=0.1)],
    "gpt2-rows": [graft.LoRA(r=2, targets=("query", "value", "down"))],
    "bert-size": [graft.Bottleneck(size=5, act="tanh", scale=0.5)],
    "mistral-residual": [graft.Bottleneck(size=12, act="silu", placement="parallel", scale=4.0, targets=("residual",))],
    "bert-parallel": [graft.Bottleneck(size=3, placement="parallel", targets=BOTH)],
    "llama-sizes": [graft.Bottleneck(size=5, targets=("block:0",)), graft.Bottleneck(size=40, targets=("block:1",))],
    "roberta-one": [graft.Bottleneck(size=2, act="gelu_tanh", targets=("attention:1", "mlp:1"))],
    "llama-ia3": [graft.IA3()],
    "bert-ia3": [graft.IA3(targets=("query", "up"))],
    "gpt2-prefix": [graft.Prefix(n=4, shift=False)],
    "bert-prefix": [graft.Prefix(n=4)],
    "llama-prefix_mlp": [graft.Prefix(n=4, mlp=6, shift=False)],
    "bert-prompt": [graft.Prompt(n=2, into="layers")],
    "bert-lora_head": [graft.LoRA(r=2, targets=("value",)), graft.Selective("head")],
}


def written(case: str, folder: Path):
    """An adapter of ours, moved off its start, saved as AdapterHub's."""
    adapted = graft.adapt(base(case), WRITES[case])
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for value in adapted.parameters():
            value.add_(torch.empty_like(value).normal_(std=0.1, generator=generator)).copy_(value.float())
    adapted.save(folder, format="adapterhub")
    return adapted


@pytest.mark.parametrize("case", WRITES)
def test_what_we_write_comes_back(case, tmp_path):
    adapted = written(case, tmp_path / "out")
    assert json.loads((tmp_path / "out" / "adapter_config.json").read_text())["name"] == "out"
    again = graft.load(base(case), tmp_path / "out")
    bound = 1e-12 if case.partition("-")[0] in EXACT else 1e-6
    assert gap(logits(again.model, case), logits(adapted.model, case)) < bound
    assert gap(logits(again.model, case), LOGITS[case.partition("-")[0]]) > 1e-3


def changed(case: str, tmp_path: Path, config=None, tensors=None, **top) -> Path:
    """A copy of a fixture with other words in its config, or other tensors."""
    folder = tmp_path / case
    shutil.copytree(FIXTURES / case, folder)
    said = json.loads((folder / "adapter_config.json").read_text())
    said["config"] |= config or {}
    (folder / "adapter_config.json").write_text(json.dumps({key: value for key, value in (said | top).items() if value != "absent"}))
    if tensors is not None:
        save_file(tensors(load_file(folder / "adapter.safetensors")), folder / "adapter.safetensors")
    return folder


BN, LR, PF = "bert-seq_bn", "llama-lora", "bert-prefix_mlp"
WRONG = {
    "ln_before": (BN, {"ln_before": True}, "ln_before"),
    "ln_after": (BN, {"ln_after": True}, "ln_after"),
    "gating": (BN, {"use_gating": True}, "use_gating"),
    "phm": (BN, {"phm_layer": True}, "phm_layer"),
    "invertible": (BN, {"inv_adapter": "nice"}, "inv_adapter"),
    "learned": (BN, {"scaling": "learned"}, "scaling = learned"),
    "channel": (BN, {"scaling": "channel"}, "scaling = channel"),
    "dropout": (BN, {"dropout": 0.1}, "set it to 0 to load"),
    "stochastic_depth": (BN, {"stochastic_depth": 0.1}, "set it to 0 to load"),
    "activation": (BN, {"non_linearity": "mish"}, "non_linearity = mish"),
    "after_the_norm": (BN, {"residual_before_ln": False, "original_ln_after": False}, "no adapter at that place"),
    "twice_residual": ("llama-seq_bn", {"residual_before_ln": False}, "no adapter at that place"),
    "without_residual": ("gpt2-double_seq_bn", {"original_ln_after": False}, "no adapter at that place"),
    "attention_block": ("llama-seq_bn", {"mh_adapter": True}, "no adapter at that place"),
    "attention_parallel": ("llama-par_bn", {"mh_adapter": True}, "no adapter at that place"),
    "no_default_factor": ("gpt2-factors", {"reduction_factor": {"0": 16}}, "gives layer 1 no width"),
    "no_place": (BN, {"output_adapter": False}, "names no place for an adapter"),
    "no_matrix": (LR, {"selfattn_lora": False}, "names no place for an adapter"),
    "no_layer": (LR, {"leave_out": [0, 1]}, "leaves out every layer"),
    "mtl_lora": (LR, {"architecture": "mtl_lora"}, "its architecture is mtl_lora"),
    "reft": (LR, {"architecture": "reft"}, "its architecture is reft"),
    "union": (LR, {"architecture": "union"}, "its architecture is union"),
    "dora": (LR, {"use_dora": True}, "use_dora"),
    "vera": (LR, {"vera_d": 0.1}, "vera_d"),
    "lora_gating": (LR, {"use_gating": True}, "use_gating"),
    "matrices": (LR, {"attn_matrices": ["q", "o"]}, "attn_matrices"),
    "composition": (LR, {"composition_mode": "divide"}, "composition_mode = divide"),
    "scale_alpha": ("bert-ia3", {"alpha": 2}, "r or alpha that is not 1"),
    "prefix_leave_out": (PF, {"leave_out": [1]}, "prefix is in every layer"),
    "prefix_gating": (PF, {"use_gating": True}, "use_gating"),
    "prefix_dropout": (PF, {"dropout": 0.1}, "set it to 0 to load"),
    "prefix_activation": (PF, {"non_linearity": "mish"}, "unknown activation"),
    "prompt_after_bos": ("bert-prompt", {"combine": "prefix_after_bos"}, "before the first token"),
    "unknown_key": (BN, {"residual_twice": True}, "residual_twice = True, a key that Graft does not know"),
}


@pytest.mark.parametrize("which", WRONG)
def test_what_has_no_exact_form_is_refused_by_name(which, tmp_path):
    case, config, said = WRONG[which]
    with pytest.raises(GraftError, match=said):
        graft.load(base(case), changed(case, tmp_path, config))


FOLDERS = {
    "top_key": ({"layers": 3}, "its layers is a key that Graft does not know"),
    "model_type": ({"model_type": "gpt2"}, "model_type = gpt2, this model has bert"),
    "hidden_size": ({"hidden_size": 64}, "hidden_size = 64, this model has 32"),
    "name": ({"name": "absent"}, "its config has no name"),
    "version": ({"version": "adapters.new"}, "its version is adapters.new"),
}


@pytest.mark.parametrize("which", FOLDERS)
def test_a_config_for_something_else_is_refused(which, tmp_path):
    top, said = FOLDERS[which]
    with pytest.raises(GraftError, match=said):
        graft.load(base("bert"), changed("bert-lora", tmp_path, **top))


FILES = {
    "missing": ("bert-seq_bn", lambda found: dict(list(found.items())[1:]), "1 missing"),
    "extra": ("bert-seq_bn", lambda found: found | {"more": torch.ones(1)}, "1 not known"),
    "copy": ("gpt2-prefix", lambda found: found | {next(iter(found)): torch.ones(384)}, "differs from the model's own copy"),
    "mlp": ("bert-prefix_mlp", lambda found: {key: value for key, value in found.items() if "wte" not in key}, "made by an MLP without"),
    "mlp_shape": ("bert-prefix_mlp", lambda found: {k: v[..., :2].clone() for k, v in found.items()}, "do not fit each other"),
    "fused": ("gpt2-lora", lambda found: {key: value[:3].clone() for key, value in found.items()}, "does not part into 2 projections"),
    "shape": ("bert-lora", lambda found: {key: value[:1].clone() for key, value in found.items()}, "another shape"),
}


@pytest.mark.parametrize("which", FILES)
def test_tensors_that_do_not_fit_are_refused(which, tmp_path):
    case, tensors, said = FILES[which]
    with pytest.raises(GraftError, match=said):
        graft.load(base(case), changed(case, tmp_path, tensors=tensors))


def test_pickles_are_not_opened_and_the_way_out_is_named(tmp_path):
    folder = changed("bert-head", tmp_path)
    (folder / "model_head.safetensors").rename(folder / "pytorch_model_head.bin")
    with pytest.raises(GraftError, match=r"a head as a pickle \(pytorch_model_head.bin\).*scripts/adapterhub.py"):
        graft.load(base("bert"), folder)
    (folder / "adapter.safetensors").rename(folder / "pytorch_adapter.bin")
    with pytest.raises(GraftError, match=r"only pytorch_adapter.bin, a pickle.*scripts/adapterhub.py"):
        graft.load(base("bert"), folder)


def test_the_script_converts_pickles(tmp_path):
    folder = changed("bert-head", tmp_path)
    for pickled, safe in THEIRS.PICKLES.items():
        torch.save(load_file(folder / safe), folder / pickled)
        (folder / safe).unlink()
    THEIRS.convert(folder)
    adapted = graft.load(base("bert"), folder)
    assert gap(logits(adapted.model, "bert"), LOGITS["bert-head"]) < 1e-12


def test_a_head_that_is_not_the_models_is_refused(tmp_path):
    folder = changed("gpt2-head", tmp_path)
    save_file({"lm_head.weight": torch.ones(64, 32)}, folder / "model_head.safetensors")
    with pytest.raises(GraftError, match="shares with its embeddings"):
        graft.load(base("gpt2"), folder)
    save_file({"heads.mine.1.weight": torch.ones(32, 32)}, folder / "model_head.safetensors")
    with pytest.raises(GraftError, match="one of AdapterHub's own"):
        graft.load(base("gpt2"), folder)


def test_a_family_that_the_two_do_not_share_is_refused(tmp_path):
    with pytest.raises(GraftError, match="exchanged on bert, roberta, gpt2, llama, mistral"):
        graft.load(tiny("qwen2"), changed("llama-lora", tmp_path))
    with pytest.raises(GraftError, match="exchanged on bert, roberta, gpt2, llama, mistral"):
        graft.adapt(tiny("qwen2"), graft.LoRA()).save(tmp_path / "out", format="adapterhub")


def test_prompts_are_on_encoders_only(tmp_path):
    with pytest.raises(GraftError, match="prompts on encoders only"):
        graft.load(base("llama"), changed("bert-prompt", tmp_path, model_type="llama"))


@pytest.mark.parametrize("with_root", [True, False])
def test_keys_may_have_the_base_models_name_or_not(with_root, tmp_path):
    # a file of a model without a head names no `bert.`, and one of a model with a head may be loaded into a bare one
    folder = changed("bert-lora", tmp_path, tensors=lambda found: {key[0 if with_root else 5 :]: value for key, value in found.items()})
    assert gap(logits(graft.load(base("bert"), folder).model, "bert"), LOGITS["bert-lora"]) < 1e-12
    whole = graft.load(base("bert"), FIXTURES / "bert-lora").model.bert
    with torch.no_grad():
        expected = whole(**THEIRS.batch("bert")).last_hidden_state
        found = graft.load(base("bert").bert, folder).model(**THEIRS.batch("bert")).last_hidden_state
    assert torch.equal(found, expected)


def test_what_older_versions_meant_is_read_as_the_library_reads_it(tmp_path):
    # a LoRA of before 1.1.0 was scaled by 1; without a version, "gelu" was the tanh approximation
    old = graft.load(base("bert"), changed("bert-lora", tmp_path, version="adapters.1.0.1")).adapter()
    assert old.parts[0][0].alpha == old.parts[0][0].r == 2
    older = graft.load(base("roberta"), changed("roberta-head", tmp_path, version="absent")).adapter()
    assert older.parts[0][0].act == "gelu_tanh"


NOT_THERE = {
    "dora": ("llama", [graft.DoRA(r=2)], "no form for dora"),
    "bias": ("bert", [graft.BiasOnly()], "no form for bias"),
    "two_kinds": ("bert", [graft.LoRA(r=2, targets=("query",)), graft.IA3(targets=("up",))], "one at a time"),
    "two_parts": ("bert", [graft.LoRA(r=2, targets=("query",)), graft.LoRA(r=3, targets=("value",))], "no lora of several parts"),
    "attention_out": ("bert", [graft.LoRA(r=2)], "no lora at attention_out"),
    "lora_bias": ("bert", [graft.LoRA(r=2, bias=True, targets=("query",))], "lora has no bias"),
    "whole_qkv": ("gpt2", [graft.LoRA(r=2, targets=("qkv",))], "no lora at qkv"),
    "input_scale": ("bert", [graft.IA3()], "it scales outputs"),
    "layers_differ": ("llama", [graft.LoRA(r=2, targets=("query:0", "value"))], "same places in every layer"),
    "behind_the_norm": ("llama", [graft.Bottleneck(size=2, placement="parallel")], "reads the residual"),
    "mlp_and_block": ("llama", [graft.Bottleneck(size=2, targets=("mlp", "block"))], "no sequential adapter at block and mlp"),
    "two_acts": (
        "bert",
        [graft.Bottleneck(size=2, targets=("mlp:0",)), graft.Bottleneck(size=2, act="tanh", targets=("mlp:1",))],
        "one activation, one placement",
    ),
    "two_widths": (
        "bert",
        [graft.Bottleneck(size=2, targets=("mlp",)), graft.Bottleneck(size=3, targets=("attention",))],
        "one width in a layer",
    ),
    "shifted": ("gpt2", [graft.Prefix(n=2)], "train it with shift=False"),
    "words": ("bert", [graft.Prompt(n=2)], "into='layers'"),
    "prompt": ("llama", [graft.Prompt(n=2)], "into='layers'"),
    "head_alone": ("bert", [graft.Selective("head")], "no form for a head alone"),
}


@pytest.mark.parametrize("which", NOT_THERE)
def test_what_adapterhub_has_no_form_for_is_not_written(which, tmp_path):
    family, methods, said = NOT_THERE[which]
    with pytest.raises(GraftError, match=said):
        graft.adapt(base(family), methods).save(tmp_path / "out", format="adapterhub")
    assert not (tmp_path / "out").exists()


def test_an_unknown_format_is_refused(tmp_path):
    with pytest.raises(GraftError, match="choose one of graft, adapterhub"):
        graft.adapt(base("llama"), graft.LoRA(r=2)).save(tmp_path / "out", format="onnx")


def test_the_name_and_the_fingerprint_travel(tmp_path):
    adapted = graft.load(base("bert"), FIXTURES / "bert-lora")
    adapted.save(tmp_path / "other", format="adapterhub")
    assert json.loads((tmp_path / "other" / "adapter_config.json").read_text())["name"] == THEIRS.NAME
    other = base("bert")
    with torch.no_grad():
        other.bert.embeddings.word_embeddings.weight.add_(1)
    graft.load(base("bert"), tmp_path / "other")
    with pytest.raises(GraftError, match="another base"):
        graft.load(other, tmp_path / "other")


JUNK = ([], {}, "x", -1, 0, 10**400, 1e308, 1e-320, None, True, [[1]], {"default": None}, ["q", []])


@pytest.mark.parametrize("case", ["bert-seq_bn", "gpt2-lora_all", "bert-prefix_mlp", "roberta-prompt"])
def test_whatever_a_config_says_the_answer_is_a_sentence(case, tmp_path):
    model = base(case)
    for number, key in enumerate([*json.loads((FIXTURES / case / "adapter_config.json").read_text())["config"], "new"]):
        for other, junk in enumerate(JUNK):
            (tmp_path / f"{number}.{other}").mkdir()
            with contextlib.suppress(GraftError):
                graft.load(model, changed(case, tmp_path / f"{number}.{other}", {key: junk})).detach()
