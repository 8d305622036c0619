"""Folders that are wrong, damaged or malicious: each one clear error, the model untouched, nothing half-written."""

import json
import pickle
import re
import shutil
import struct

import pytest
import torch
from safetensors.torch import load_file, save_file

import graft
from graft import IA3, LoRA, Prefix, Prompt, Selective
from graft.errors import AdapterError
from tiny import tiny

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Good folders to be spoilt: a LoRA in PEFT's files, and one of our own type."""
    root = tmp_path_factory.mktemp("saved")
    graft.adapt(tiny("llama"), LoRA(r=2)).save(root / "lora")
    graft.adapt(tiny("llama"), [LoRA(r=2), Selective("norm"), IA3()]).save(root / "own")
    graft.adapt(tiny("llama"), Prefix(n=2)).save(root / "prefix")
    graft.adapt(tiny("llama"), Prompt(n=2)).save(root / "prompt")
    graft.adapt(tiny("llama"), IA3()).save(root / "ia3")
    graft.adapt(tiny("llama"), Selective("norm")).save(root / "norms")
    graft.adapt(tiny("llama"), LoRA(r=2, bias=True)).save(root / "bias")
    adalora(graft.adapt(tiny("llama"), LoRA(r=2, targets=("q_proj",))), root / "adalora")
    return root


def adalora(adapted, folder):
    """A LoRA in the files of an ADALORA: A, E and B without ".weight"."""
    adapted.save(folder)
    tensors = {key.removesuffix(".weight"): value for key, value in load_file(folder / WEIGHTS).items()}
    tensors |= {key.replace("lora_A", "lora_E"): torch.ones(len(value), 1) for key, value in tensors.items() if "lora_A" in key}
    save_file(tensors, folder / WEIGHTS)
    config = {"peft_type": "ADALORA", "target_modules": ["q_proj"], "init_r": 2, "lora_alpha": 4, "total_step": 9}
    (folder / CONFIG).write_text(json.dumps(config))


@pytest.fixture
def copied(saved, tmp_path):
    """A function that gives a fresh copy of one of them."""

    def copy(name="lora"):
        return shutil.copytree(saved / name, tmp_path / name)

    return copy


def refused(folder, match):
    """Loading raises one sentence that names the folder, and leaves the model as it was."""
    model = tiny("llama")
    before = dict(model.named_modules()).keys()
    with pytest.raises(AdapterError, match=match) as caught:
        graft.load(model, folder)
    text = str(caught.value)
    assert str(folder) in text
    assert "\n" not in text
    assert len(text) < 1500
    assert text.isprintable()
    assert dict(model.named_modules()).keys() == before
    assert model(torch.tensor([[3]])).logits.isfinite().all()


def set_config(folder, **values):
    """Change the config's keys."""
    config = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps(config | values))
    return folder


def set_tensors(folder, change):
    """Change the tensors by a function of the dict of them; metadata is dropped, so that the fingerprint is not what is found."""
    save_file(change(load_file(folder / WEIGHTS)), folder / WEIGHTS)
    return folder


def first(tensors):
    """The first key."""
    return min(tensors)


TENSORS = {
    "renamed": (lambda t: {("x" + k if k == first(t) else k): v for k, v in t.items()}, r"1 missing \(.*lora_A.*\), 1 not known \(x"),
    "missing": (lambda t: {k: v for k, v in t.items() if "layers.0" not in k}, r"14 missing \(.*, …\)"),
    "extra": (lambda t: t | {"base_model.model.model.layers.7.mlp.up_proj.lora_A.weight": torch.ones(2, 2)}, "1 not known"),
    "traversal": (lambda t: t | {"../../../etc/passwd": torch.ones(2)}, "1 not known .*passwd"),
    "control": (lambda t: t | {"a\x1b[2J\n\u202eb": torch.ones(2)}, "1 not known"),
    "rank": (lambda t: {k: (v[:1] if "lora_A" in k else v) for k, v in t.items()}, r"another shape .*\(1, 32\) and should be \(2, 32\)"),
    "transposed": (lambda t: {k: v.t().contiguous() for k, v in t.items()}, "another shape"),
    "flat": (lambda t: {k: v.flatten() for k, v in t.items()}, "another shape"),
    "nan": (lambda t: t | {first(t): t[first(t)] * float("nan")}, "not finite"),
    "infinite": (lambda t: t | {first(t): t[first(t)] / 0}, "not finite"),
    "integers": (lambda t: {k: v.to(torch.int32) for k, v in t.items()}, "torch.int32"),
    "bytes": (lambda t: {k: v.to(torch.float8_e4m3fn) for k, v in t.items()}, "float8"),
    "empty": (lambda t: {}, "holds no tensor"),
    "changed_embedding": (lambda t: t | {"base_model.model.model.embed_tokens.weight": torch.ones(64, 32)}, "which is not the base's"),
    "resized_embedding": (lambda t: t | {"base_model.model.model.embed_tokens.weight": torch.ones(66, 32)}, "which is not the base's"),
    "of_another_adapter": (lambda t: {k.replace("lora_A", "lora_A.default"): v for k, v in t.items()}, "not those that its config asks"),
}


@pytest.mark.parametrize("case", TENSORS)
def test_wrong_tensors(case, copied):
    change, match = TENSORS[case]
    refused(set_tensors(copied(), change), match)


OFF = {
    "trainable_token_indices": [1],
    "target_parameters": ["mlp.up_proj.weight"],
    "layer_replication": [[0, 1], [1, 2]],
    "alora_invocation_tokens": [1],
    "use_qalora": True,
    "use_bdlora": {"nblocks": 2},
    "arrow_config": {"top_k": 1},
    "kasa_config": {"a": 1},
    "megatron_config": {"a": 1},
    "of_tomorrow": True,
    "rslora": True,
    "../key": 1,
    "bad\nkey": 1,
}
CONFIGS = {
    "rank": ({"r": 3}, "another shape"),
    "no_rank": ({"r": 0}, "rank must be at least 1"),
    "huge_rank": ({"r": 10**15}, "another shape"),
    "beyond": ({"r": 10**400}, "usable size"),
    "rank_type": ({"r": "8"}, "lora.r = '8'"),
    "alpha_type": ({"lora_alpha": None}, "alpha"),
    "type": (
        {"peft_type": "LOHA"},
        "its peft_type is LOHA: Graft reads GRAFT, LORA, IA3, PROMPT_TUNING, PREFIX_TUNING, LN_TUNING, ADALORA, P_TUNING",
    ),
    "task": ({"task_type": "SEQ_2_SEQ_LM"}, "SEQ_2_SEQ_LM"),
    "dora": ({"use_dora": True}, "14 missing .*lora_magnitude_vector"),
    "start": ({"init_lora_weights": "pissa"}, "init_lora_weights = pissa"),
    "fewer": ({"target_modules": ["q_proj"]}, "24 not known"),
    "no_targets": ({"target_modules": None}, "match no module"),
    "other_targets": ({"target_modules": ["c_attn"]}, r"target_modules \(c_attn\) match no module"),
    "pattern": ({"target_modules": "(q_proj"}, "no regular expression"),
    "endless_pattern": ({"target_modules": "(.*a|.*b)+q_proj!"}, "take forever"),
    "traversal": ({"target_modules": ["../../q_proj"]}, "match no module"),
    "saved": ({"modules_to_save": ["nothing"]}, "modules_to_save name nothing"),
    "saved_not_there": ({"modules_to_save": ["embed_tokens"]}, r"1 missing \(base_model.model.model.embed_tokens.weight\)"),
    "saved_empty_name": ({"modules_to_save": [""]}, "twice, by itself and by a module that holds it"),
    "saved_nested": ({"modules_to_save": ["mlp", "up_proj"]}, "twice, by itself and by a module that holds it"),
    "saved_all_targets": ({"modules_to_save": ["model"]}, "match no module"),
    "tying_type": ({"ensure_weight_tying": "yes"}, "ensure_weight_tying = yes, which is neither true nor false"),
    "bias_word": ({"bias": "ia3_only"}, "bias = ia3_only: Graft knows none, lora_only, all"),
    "bias_type": ({"bias": ["all"]}, "bias = "),
    "lora_bias": ({"lora_bias": True}, r"14 missing \(.*lora_B.bias"),
    "lora_bias_type": ({"lora_bias": "yes"}, "lora.bias = 'yes': expected bool"),
    "lora_bias_dora": ({"lora_bias": True, "use_dora": True}, "both use_dora and lora_bias"),
    "rank_pattern": ({"rank_pattern": {"q_proj": 4}}, r"4 of its tensors have another shape .* should be \(4, 32\)"),
    "rank_pattern_zero": ({"rank_pattern": {"q_proj": 0}}, "rank must be at least 1"),
    "rank_pattern_negative": ({"rank_pattern": {"q_proj": -2}}, "rank must be at least 1"),
    "rank_pattern_fraction": ({"rank_pattern": {"q_proj": 2.5}}, "lora.r = 2.5: expected int"),
    "rank_pattern_huge": ({"rank_pattern": {"q_proj": 10**400}}, "usable size"),
    "rank_pattern_word": ({"rank_pattern": {"q_proj": "2"}}, "q_proj = 2, which is no number"),
    "rank_pattern_list": ({"rank_pattern": ["q_proj"]}, "rank_pattern is no object"),
    "rank_pattern_conflict": ({"rank_pattern": {"q_proj": 2, "self_attn.q_proj": 4}}, "says two things of model.layers.0.self_attn.q_proj"),
    "rank_pattern_many": ({"rank_pattern": {f"layer{number}": 2 for number in range(20_000)}}, "at most 10,000 names"),
    "alpha_pattern_conflict": ({"alpha_pattern": {".*proj": 2, "q_proj": 4}}, "says two things of .*an order that the file does not keep"),
    "alpha_pattern_true": ({"alpha_pattern": {"q_proj": True}}, "which is no number"),
    "pattern_broken": ({"alpha_pattern": {"(q_proj": 4}}, "alpha_pattern is no regular expression"),
    "pattern_endless": ({"rank_pattern": {"(.*a|.*b)+q_proj!": 4}}, "rank_pattern repeats a group"),
    "pattern_many_stars": ({"rank_pattern": {".*" * 30 + "!": 4}}, "take forever"),
    "pattern_many_choices": ({"target_modules": ".?" * 40 + "!"}, "take forever"),
    "pattern_long": ({"target_modules": "a" * 5000}, "take forever"),
    "layers_out_of_range": ({"layers_to_transform": [7]}, r"match no module of this model in layers_to_transform \[7\]"),
    "layers_fewer": ({"layers_to_transform": [0]}, "14 not known"),
    "layers_type": ({"layers_to_transform": ["0"]}, "neither a number nor a list of numbers"),
    "layers_of_a_pattern": ({"target_modules": ".*q_proj", "layers_to_transform": 0}, "which peft refuses"),
    "layers_pattern_alone": ({"layers_pattern": "layers"}, "layers_pattern without layers_to_transform"),
    "layers_pattern_endless": ({"layers_to_transform": 0, "layers_pattern": "(a|a)*b"}, "layers_pattern repeats a group"),
    "many_names": ({"target_modules": [f"name{number}" for number in range(200_000)]}, "more than any model has modules"),
    **{f"off_{key}": ({key: value}, re.escape(key.encode("unicode_escape").decode())) for key, value in OFF.items()},
}


@pytest.mark.parametrize("case", CONFIGS)
def test_wrong_configs(case, copied):
    values, match = CONFIGS[case]
    refused(set_config(copied(), **values), match)


def test_an_unknown_key_that_is_off_passes(copied):
    graft.load(tiny("llama"), set_config(copied(), of_tomorrow=None, also_off=False, empty_pattern={}))


OWN = {
    "version": ({"version": 2, "parts": []}, "GRAFT|parts"),
    "newer": ({"version": 2, "parts": [{"kind": "lora"}]}, "version 2"),
    "no_parts": ({"version": 1, "parts": []}, "graft"),
    "not_an_object": ([1], "graft"),
    "unknown_entry": ({"version": 1, "parts": [{"kind": "lora"}], "code": "x"}, "graft"),
    "unknown_method": ({"version": 1, "parts": [{"kind": "../lora"}]}, "unknown method"),
    "unknown_field": ({"version": 1, "parts": [{"kind": "lora", "__class__": "x"}]}, "unknown key '__class__'"),
    "kind_of_class": ({"version": 1, "parts": [{"kind": "bias", "hint": "x"}]}, "unknown key 'hint'"),
    "field_type": ({"version": 1, "parts": [{"kind": "lora", "r": 2.5}]}, "expected int"),
    "meaningless": ({"version": 1, "parts": [{"kind": "selective", "train": "everything"}]}, "choose 'last'"),
    "endless_pattern": ({"version": 1, "parts": [{"kind": "lora", "targets": ["(.*a|.*b)+q_proj!"]}]}, "take forever"),
    "no_place": ({"version": 1, "parts": [{"kind": "lora", "targets": ["c_attn"]}]}, "matches nothing"),
    "other_parts": ({"version": 1, "parts": [{"kind": "lora", "r": 2}]}, "not known"),
    "huge": ({"version": 1, "parts": [{"kind": "prefix", "n": 10**15}]}, "not those that its config asks"),
}


@pytest.mark.parametrize("case", OWN)
def test_wrong_configs_of_our_own_type(case, copied):
    own, match = OWN[case]
    refused(set_config(copied("own"), graft=own), match)


OTHERS = {
    "prefix_heads": ("prefix", {"num_attention_heads": 4}, "num_attention_heads = 4, this model has 2"),
    "prefix_width": ("prefix", {"token_dim": 32}, "token_dim = 32, this model has 16"),
    "prefix_layers": ("prefix", {"num_layers": 3}, "num_layers = 3"),
    "prefix_length": ("prefix", {"num_virtual_tokens": 3}, "another shape"),
    "prefix_no_length": ("prefix", {"num_virtual_tokens": None}, "prefix.n = None"),
    "prompt_width": ("prompt", {"token_dim": 16}, "token_dim = 16, this model has 32"),
    "prompt_both_sides": ("prompt", {"num_transformer_submodules": 2}, "num_transformer_submodules = 2"),
    "prompt_negative": ("prompt", {"num_virtual_tokens": -1}, "at least one position"),
    "prompt_unknown": ("prompt", {"virtual_dropout": 0.5}, "virtual_dropout"),
    "ia3_no_feedforward": ("ia3", {"feedforward_modules": None}, "no feedforward_modules"),
    "ia3_all_outputs": ("ia3", {"feedforward_modules": []}, "another shape"),
    "norms_of_nothing": ("norms", {"target_modules": ["c_attn"]}, "match no module"),
    "norms_of_a_holder": ("norms", {"target_modules": ["mlp", "norm"]}, "which holds other modules"),
    "norms_unknown": ("norms", {"layers_to_transform": [0]}, "layers_to_transform"),
    "bias_gone": ("bias", {"lora_bias": False}, "14 not known .*lora_B.bias"),
    "adalora_rank": ("adalora", {"init_r": 3}, "another shape"),
    "adalora_no_rank": ("adalora", {"init_r": 0}, "init_r = 0, which is no rank"),
    "adalora_alpha": ("adalora", {"lora_alpha": 10**400}, "no number of a usable size"),
    "adalora_ranks": ("adalora", {"rank_pattern": {"q_proj": [True]}}, "which of 2 directions were kept"),
    "adalora_other": ("adalora", {"rank_pattern": {"x.lora_E": [True, True]}}, "rank_pattern names x, no module of this model"),
    "adalora_dora": ("adalora", {"use_dora": True}, "use_dora"),
    "adalora_alphas": ("adalora", {"alpha_pattern": {"q_proj": 3}}, "alpha_pattern"),
    "p_tuning_unknown": ("prompt", {"peft_type": "P_TUNING", "prompt_tuning_init": "TEXT"}, "prompt_tuning_init"),
    "ia3_type": ("ia3", {"feedforward_modules": 5}, "neither a string nor a list"),
}


@pytest.mark.parametrize("case", OTHERS)
def test_wrong_configs_of_other_types(case, copied):
    name, values, match = OTHERS[case]
    refused(set_config(copied(name), **values), match)


TIES = {
    "embeddings_alone": ({"modules_to_save": ["embed_tokens"]}, "share one weight in this model, and lets go of that tie"),
    "adapted_together": ({"target_modules": ["embed_tokens"], "ensure_weight_tying": True}, "ensure_weight_tying for adapted embeddings"),
}


@pytest.mark.parametrize("case", TIES)
def test_ties_that_peft_breaks(case, tmp_path):
    graft.adapt(tiny("llama_bias"), LoRA(r=2)).save(tmp_path / "a")
    values, match = TIES[case]
    with pytest.raises(AdapterError, match=match):
        graft.load(tiny("llama_bias"), set_config(tmp_path / "a", **values))


JUNK = (None, True, 0, -1, 2.5, 10**400, "", "x", "\x00", "*", [], ["x"], [None], [[]], {}, {"a": None}, ["q_proj", 3])


def test_two_values_of_one_tied_tensor_are_refused(tmp_path):
    graft.adapt(tiny("llama_bias"), [LoRA(r=2), Selective(targets=("embedding",))]).save(tmp_path / "a")
    graft.load(tiny("llama_bias"), tmp_path / "a")
    set_tensors(tmp_path / "a", lambda t: t | {"base_model.model.lm_head.weight": t["base_model.model.lm_head.weight"] + 1})
    with pytest.raises(AdapterError, match=r"two values of one tensor: base_model.model.lm_head.weight"):
        graft.load(tiny("llama_bias"), tmp_path / "a")


def test_an_adalora_without_its_singular_values_is_refused(copied):
    folder = set_tensors(copied("adalora"), lambda t: {key: value for key, value in t.items() if "lora_B" not in key})
    refused(folder, "does not fit the lora_A and lora_B of its module")


@pytest.mark.parametrize("name", ["lora", "own", "prefix", "prompt", "ia3", "norms", "bias", "adalora"])
def test_junk_under_any_key_is_refused_or_means_nothing(name, copied):
    folder, model = copied(name), tiny("llama")
    good, said = json.loads((folder / CONFIG).read_text()), []
    for key in [*good, "exclude_modules", "prompt_tuning_init_text", "layers_pattern"]:
        for junk in JUNK:
            (folder / CONFIG).write_text(json.dumps(good | {key: junk}))
            try:
                graft.load(model, folder).detach()
            except AdapterError as error:
                said.append(str(error))
    assert len(said) > len(good)
    assert all(str(folder) in text and len(text) < 1500 for text in said)


BYTES = {
    "empty": b"",
    "not_json": b"peft_type: LORA",
    "cut": b'{"peft_type": "LORA", "r"',
    "list": b"[1, 2]",
    "not_utf8": b'{"peft_type": "\xff\xfe"}',
    "nan": b'{"peft_type": "LORA", "lora_alpha": NaN}',
    "deep": b'{"a":' * 100_000,
    "digits": b'{"r": ' + b"9" * 10_000 + b"}",
}


@pytest.mark.parametrize("case", BYTES)
def test_configs_that_are_not_json(case, copied):
    folder = copied()
    (folder / CONFIG).write_bytes(BYTES[case])
    refused(folder, CONFIG)


GARBLED = {
    "empty": lambda data: b"",
    "short": lambda data: data[:5],
    "header_only": lambda data: data[: 8 + struct.unpack("<Q", data[:8])[0]],
    "truncated": lambda data: data[: len(data) // 2],
    "one_byte_less": lambda data: data[:-1],
    "one_byte_more": lambda data: data + b"x",
    "huge_header": lambda data: struct.pack("<Q", 2**62) + data[8:],
    "long_header": lambda data: struct.pack("<Q", len(data)) + data[8:],
    "zeros": lambda data: bytes(len(data)),
    "text": lambda data: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
    "zip": lambda data: b"PK\x03\x04" + data[4:],
    "overlapping": lambda data: re.sub(rb'"data_offsets":\[\d+,', b'"data_offsets":[0,', data, count=2),
}


@pytest.mark.parametrize("case", GARBLED)
def test_weights_that_are_damaged(case, copied):
    folder = copied()
    (folder / WEIGHTS).write_bytes(GARBLED[case]((folder / WEIGHTS).read_bytes()))
    refused(folder, WEIGHTS)


@pytest.mark.parametrize("facts", ["no json", "[1]", '{"fingerprint": 5}', '{"notes": {"a": 1}}', '{"fingerprint": "a:b"}', "[" * 100_000])
def test_metadata_that_is_damaged(facts, copied):
    folder = copied()
    save_file(load_file(folder / WEIGHTS), folder / WEIGHTS, metadata={"graft": facts})
    refused(folder, "damaged")


class Bomb:
    """Opens a file when unpickled."""

    def __reduce__(self):
        return (open, ("exploded", "w"))


def test_a_pickle_is_never_opened(copied, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    folder = copied()
    (folder / WEIGHTS).unlink()
    (folder / "adapter_model.bin").write_bytes(pickle.dumps(Bomb()))
    refused(folder, "a pickle, which can run any code")
    assert not (tmp_path / "exploded").exists()


def test_files_that_are_not_there(copied, tmp_path):
    refused(tmp_path / "nowhere", "no such folder")
    folder = copied()
    (folder / WEIGHTS).unlink()
    refused(folder, f"no {WEIGHTS}")
    (folder / CONFIG).unlink()
    refused(folder, f"no {CONFIG}")
    refused(saved_file(tmp_path), "no such folder")


def saved_file(root):
    """A file where a folder should be."""
    (root / "file").write_text("x")
    return root / "file"
