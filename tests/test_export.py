"""Exports: loaded back by the tool that they are for, equal to the adapted model, or refused with the way out."""

import json
import os

import peft
import pytest
import torch
import transformers as T
from tokenizers import Tokenizer, models, pre_tokenizers

import graft
from graft import IA3, BiasOnly, Bottleneck, DoRA, LoRA, Prefix, Prompt, Selective
from graft.errors import AdapterError
from graft.export import export
from graft.export.lora import RANKS
from graft.model.load import Loaded, load
from tiny import tiny

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # read by peft
NAMES = ("llama", "llama_bias", "gpt2", "gemma2", "phi3", "qwen2")
ROWS = [[5, 9, 33, 4, 7, 21], [8, 8, 59, 11]]


def words(count=64):
    """A tokenizer of so many ids: words of one letter and fillers, with a chat template."""
    known = {"<pad>": 0, "<s>": 1, "</s>": 2, **{chr(97 + k): k + 3 for k in range(26)}, **{f"w{k}": k for k in range(29, count)}}
    made = Tokenizer(models.WordLevel(known, unk_token="<pad>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = T.PreTrainedTokenizerFast(tokenizer_object=made, pad_token="<pad>", bos_token="<s>", eos_token="</s>")
    tokenizer.chat_template = "{% for m in messages %}{{ ' ' + m['content'] }}{% endfor %}"
    return tokenizer


@pytest.fixture
def place(tmp_path):
    """Makes a base on disk with an adapter beside it: gives the base as loaded, and the adapted model's logits of the rows."""

    def make(name, *adapters, dtype=torch.float64, known=64, **saving):
        folder = tmp_path / "base"
        if not folder.exists():
            tiny(name, dtype).save_pretrained(folder, **saving)
            words(known).save_pretrained(folder)
        loaded = load(str(folder), dtype=dtype)
        wanted = []
        for number, (called, methods) in enumerate(adapters):
            adapted = graft.adapt(load(str(folder), dtype=dtype).model, methods)
            shake(adapted, number)
            adapted.save(tmp_path / called)
            wanted.append([logits(adapted.model, row) for row in ROWS])
        return Loaded(loaded.model, loaded.tokenizer, str(folder), ""), wanted

    return make


def shake(adapted, seed=3):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in adapted.parameters():
            value.add_(torch.empty_like(value).normal_(std=0.1, generator=generator))


def logits(model, ids):
    with torch.no_grad():
        return model(input_ids=torch.tensor([ids])).logits


def batches():
    return [{"input_ids": torch.tensor([ids]), "attention_mask": torch.ones(1, len(ids), dtype=torch.long)} for ids in ROWS]


def close(a, b, bound=1e-9):
    torch.testing.assert_close(a, b, rtol=bound, atol=bound)


def said(folder):
    return json.loads((folder / "graft_export.json").read_text())


# a LoRA for every engine

LORAS = {
    "lora": [LoRA(r=3, alpha=5.0)],
    "rslora": [LoRA(r=9, alpha=4.0, rslora=True)],
    "two": [LoRA(r=2, targets=("down",)), LoRA(r=4, alpha=1.0, targets=("attention_out",))],
    "joined": [LoRA(r=2, targets=("down",)), LoRA(r=7, alpha=1.0, targets=("down",))],
    "rows": [LoRA(r=2, targets=("query", "value"))],
}


@pytest.mark.parametrize("setting", LORAS)
@pytest.mark.parametrize("name", ["llama", "gpt2", "phi3"])
def test_a_lora_is_loaded_by_peft_and_says_nothing_that_engines_misread(name, setting, place, tmp_path):
    base, (wanted,) = place(name, ("a", LORAS[setting]))
    report = export(base, [tmp_path / "a"], "peft-lora", batches(), tmp_path / "out")
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config["peft_type"] == "LORA"
    assert config["r"] == config["lora_alpha"] == report.facts["rank"]
    assert config["r"] in RANKS
    assert isinstance(config["target_modules"], list)
    assert not any(config.get(key) for key in ("use_dora", "use_rslora", "lora_bias", "modules_to_save", "rank_pattern", "alpha_pattern"))
    assert config["bias"] == "none"
    from safetensors.torch import load_file

    tensors = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert {key.rsplit(".", 2)[-2] for key in tensors} == {"lora_A", "lora_B"}
    assert {min(value.shape) for value in tensors.values()} == {config["r"]}
    theirs = peft.PeftModel.from_pretrained(load(base.name, dtype=torch.float64).model, tmp_path / "out").eval()
    for row, expected in zip(ROWS, wanted, strict=True):
        close(logits(theirs, row), expected, 1e-9 if name == "gpt2" else 2e-6)
    assert said(tmp_path / "out")["measured"]["largest"] < 2e-6
    assert said(tmp_path / "out")["promises"].endswith("exact")


@pytest.mark.parametrize(
    ("methods", "reason"),
    [
        ([DoRA(r=2)], r"scales outputs or inputs.*--to merged"),
        ([IA3()], r"scales outputs or inputs.*--to merged"),
        ([LoRA(r=2), BiasOnly(add=True)], r"trains biases.*--to merged"),
        ([Selective("last", k=1)], r"trains whole modules.*--to shards"),
        ([LoRA(r=2), Selective("head")], r"trains whole modules"),
        ([LoRA(r=2, targets=("embedding",))], r"engines agree only on linear maps"),
        ([Prompt(n=3)], r"export it with `--to vocabulary`"),
        ([Prefix(n=3)], r"a prefix is keys and values.*train a prompt"),
        ([Bottleneck(size=4)], r"no linear map.*train a LoRA"),
    ],
)
def test_what_is_no_plain_lora_is_refused_with_the_way_out(methods, reason, place, tmp_path):
    base, _ = place("llama", ("a", methods))
    with pytest.raises(AdapterError, match=f"cannot be exported as peft-lora: .*{reason}"):
        export(base, [tmp_path / "a"], "peft-lora", batches(), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_rank_over_the_largest_permitted_is_refused(monkeypatch, place, tmp_path):
    monkeypatch.setattr("graft.export.lora.RANKS", (1, 2))
    base, _ = place("llama", ("a", [LoRA(r=3)]))
    with pytest.raises(AdapterError, match="graft combine --rank"):
        export(base, [tmp_path / "a"], "peft-lora", batches(), tmp_path / "out")


# merged

MERGED = {
    "lora": [LoRA(r=3)],
    "dora": [DoRA(r=2)],
    "ia3": [IA3()],
    "bias": [BiasOnly(add=True)],
    "head": [Selective("head")],
    "last": [Selective("last", k=1)],
    "embedding": [LoRA(r=2, targets=("embedding",))],
}


@pytest.mark.parametrize("setting", MERGED)
@pytest.mark.parametrize("name", ["llama", "llama_bias", "gpt2", "gemma2"])
def test_a_merged_checkpoint_is_loaded_by_transformers(name, setting, place, tmp_path):
    base, (wanted,) = place(name, ("a", MERGED[setting]))
    if (name, setting) == ("gemma2", "bias"):
        with pytest.raises(AdapterError, match="has no place for the biases of 6 modules"):
            export(base, [tmp_path / "a"], "merged", batches(), tmp_path / "out")
        return
    export(base, [tmp_path / "a"], "merged", batches(), tmp_path / "out")
    theirs = T.AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float64)
    for row, expected in zip(ROWS, wanted, strict=True):
        close(logits(theirs, row), expected, 1e-9 if name == "gpt2" else 2e-6)
    assert said(tmp_path / "out")["measured"]["loaded_by"] == "transformers"


@pytest.mark.parametrize("target", ["merged", "shards"])
@pytest.mark.parametrize(
    ("methods", "reason"),
    [([Prompt(n=3)], "--to vocabulary"), ([Prefix(n=3)], "a prefix is keys"), ([Bottleneck(size=4)], "no linear map")],
)
def test_what_is_no_change_of_weights_is_refused(methods, reason, target, place, tmp_path):
    base, _ = place("llama", ("a", methods))
    with pytest.raises(AdapterError, match=f"cannot be exported as {target}: .*{reason}"):
        export(base, [tmp_path / "a"], target, batches(), tmp_path / "out")
    assert not (tmp_path / "out").exists()


# a prompt as words


def generated(model, ids, **more):
    return model.generate(
        torch.tensor([ids]), max_new_tokens=8, min_new_tokens=8, do_sample=False, pad_token_id=0, eos_token_id=None, **more
    )


@pytest.mark.parametrize("name", NAMES)
def test_a_prompt_is_words_of_a_plain_checkpoint(name, place, tmp_path):
    base, (wanted,) = place(name, ("poem", [Prompt(n=4, init_embeds="random")]))
    adapted = graft.load(load(base.name, dtype=torch.float64).model, tmp_path / "poem")
    ours = [generated(adapted.model, row)[0, len(row) :] for row in ROWS]
    report = export(base, [tmp_path / "poem"], "vocabulary", batches(), tmp_path / "out")
    theirs = T.AutoModelForCausalLM.from_pretrained(
        tmp_path / "out", dtype=torch.float64, attn_implementation=adapted.model.config._attn_implementation.removeprefix("graft_")
    )
    tokenizer = T.AutoTokenizer.from_pretrained(tmp_path / "out")
    (ids,) = report.facts["ids"].values()
    string = said(tmp_path / "out")["facts"]["prepend"]["poem"]
    assert string == "<|poem_0|><|poem_1|><|poem_2|><|poem_3|>"
    assert tokenizer(string + "a b", add_special_tokens=False)["input_ids"] == [*ids, 3, 4]
    assert tokenizer.apply_chat_template([{"role": "user", "content": "a b"}], return_dict=False) == [*ids, 3, 4]
    for row, expected, spoken in zip(ROWS, wanted, ours, strict=True):
        close(logits(theirs, [*ids, *row])[:, len(ids) :, :64], expected, 1e-11 if name == "gpt2" else 2e-6)
        assert torch.equal(generated(theirs, [*ids, *row])[0, len(ids) + len(row) :], spoken)
    assert theirs.get_output_embeddings().weight is not theirs.get_input_embeddings().weight


def test_words_of_a_prompt_are_never_said_even_where_they_would_be(place, tmp_path):
    base, _ = place("llama", ("a", [Prompt(n=3)]))
    report = export(base, [tmp_path / "a"], "vocabulary", batches(), tmp_path / "out")
    theirs = T.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    with torch.no_grad():
        theirs.lm_head.weight[:64] = 0  # all tokens are alike: the first that is not suppressed is said, and then none of ours
        theirs.lm_head.weight[64:] = 1
    (ids,) = report.facts["ids"].values()
    assert not set(generated(theirs, [*ids, 5, 6])[0, 5:].tolist()) & set(ids)


def test_several_prompts_share_a_checkpoint(place, tmp_path):
    base, wanted = place("gpt2", ("poem", [Prompt(n=2, init_embeds="random")]), ("code", [Prompt(n=5, init_embeds="random")]))
    report = export(base, [tmp_path / "poem", tmp_path / "code"], "vocabulary", batches(), tmp_path / "out")
    theirs = T.AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float64)
    for (name, ids), expected in zip(report.facts["ids"].items(), wanted, strict=True):
        assert len(ids) == {"poem": 2, "code": 5}[name]
        for row, values in zip(ROWS, expected, strict=True):
            close(logits(theirs, [*ids, *row])[:, len(ids) :, :64], values, 1e-11)


def test_a_prompt_beside_changed_weights_is_exported_with_them(place, tmp_path):
    base, (wanted,) = place("gpt2", ("a", [Prompt(n=2, init_embeds="random"), DoRA(r=2)]))
    report = export(base, [tmp_path / "a"], "vocabulary", batches(), tmp_path / "out")
    theirs = T.AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float64)
    (ids,) = report.facts["ids"].values()
    close(logits(theirs, [*ids, *ROWS[0]])[:, 2:, :64], wanted[0], 1e-9)


def test_rows_that_the_embedding_has_to_spare_keep_their_logits(place, tmp_path):
    # the tokenizer has 60 words and the model 64 rows: the first tokens take spare rows, whose head rows stay as they were
    base, _ = place("gpt2", ("a", [Prompt(n=6)]), known=60)
    head = base.model.lm_head.weight.detach().clone()
    report = export(base, [tmp_path / "a"], "vocabulary", batches(), tmp_path / "out")
    (ids,) = report.facts["ids"].values()
    assert ids == [60, 61, 62, 63, 64, 65]
    theirs = T.AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float64)
    assert torch.equal(theirs.lm_head.weight[:64], head)
    assert theirs.lm_head.weight[64:].abs().max() == 0


@pytest.mark.parametrize(("methods", "reason"), [([LoRA(r=2)], "has no prompt"), ([Prefix(n=2)], "a prefix is keys and values")])
def test_what_is_no_prompt_is_refused(methods, reason, place, tmp_path):
    base, _ = place("llama", ("a", methods))
    with pytest.raises(AdapterError, match=reason):
        export(base, [tmp_path / "a"], "vocabulary", batches(), tmp_path / "out")
    assert not (tmp_path / "out").exists()


# shards


@pytest.mark.parametrize("setting", ["last", "head", "lora", "embedding"])
@pytest.mark.parametrize("name", ["llama", "llama_bias", "gpt2"])
def test_shards_without_a_change_are_the_bases_own_files(name, setting, place, tmp_path):
    methods = MERGED[setting] if setting != "lora" else [LoRA(r=2, targets=(r".*\.1\..*",))]
    base, (wanted,) = place(name, ("a", methods), max_shard_size="60KB")
    report = export(base, [tmp_path / "a"], "shards", batches(), tmp_path / "out")
    theirs = T.AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float64)
    for row, expected in zip(ROWS, wanted, strict=True):
        close(logits(theirs, row), expected, 1e-9 if name == "gpt2" else 2e-6)
    own = {path.name for path in (tmp_path / "base").glob("*.safetensors")}
    shared = [file for file in own if os.path.samefile(tmp_path / "base" / file, tmp_path / "out" / file)]
    assert len(shared) > 0
    assert len(shared) < len(own) or setting in ("head", "embedding")
    assert report.facts["shared_bytes"] == sum((tmp_path / "base" / file).stat().st_size for file in shared) > 0
    again = load(base.name, dtype=torch.float64)  # the base's own files are what they were
    assert all(torch.equal(value, tiny(name, torch.float64).state_dict()[key]) for key, value in again.model.state_dict().items())


def test_a_base_of_one_file_is_written_whole_and_says_so(place, tmp_path):
    base, (wanted,) = place("llama_bias", ("a", [Selective("head")]))
    report = export(base, [tmp_path / "a"], "shards", batches(), tmp_path / "out")
    assert report.facts["shared_bytes"] == 0
    assert "max_shard_size" in report.facts["shared"]
    assert not os.path.samefile(tmp_path / "base" / "model.safetensors", tmp_path / "out" / "model.safetensors")
    theirs = T.AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float64)
    close(logits(theirs, ROWS[0]), wanted[0], 2e-6)


def test_shards_keep_the_dtype_of_the_bases_files(place, tmp_path):
    base, _ = place("llama", ("a", [Selective("last", k=1)]), dtype=torch.bfloat16, max_shard_size="30KB")
    wide = Loaded(base.model.float(), base.tokenizer, base.name, "")
    export(wide, [tmp_path / "a"], "shards", batches(), tmp_path / "out", max_gap=5.0)
    theirs = T.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert {value.dtype for value in theirs.parameters()} == {torch.bfloat16}


# the verb


def test_a_gap_over_the_bound_saves_nothing(place, tmp_path):
    base, _ = place("llama", ("a", [LoRA(r=2)]), dtype=torch.float32)
    with pytest.raises(AdapterError, match="over the bound 0, nothing was saved"):
        export(base, [tmp_path / "a"], "merged", batches(), tmp_path / "out", max_gap=0.0)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "base"]


def test_what_cannot_be_asked_is_refused(place, tmp_path):
    base, _ = place("llama", ("a", [LoRA(r=2)]), ("b", [LoRA(r=2)]))
    a, b, out = tmp_path / "a", tmp_path / "b", tmp_path / "out"
    for adapters, target, rows, folder, reason in (
        ([a], "gguf", batches(), out, "choose from peft-lora, merged, vocabulary, shards"),
        ([a, b], "merged", batches(), out, "merged takes one adapter"),
        ([a, a], "vocabulary", batches(), out, "different names"),
        ([a], "merged", [], out, "measured on rows"),
        ([a], "merged", batches(), a, "exists: name a new folder"),
    ):
        with pytest.raises(AdapterError, match=reason):
            export(base, adapters, target, rows, folder)
