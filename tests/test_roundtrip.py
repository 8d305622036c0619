"""Two hundred and ten random adapters through HF PEFT's files, half made by PEFT and half by us: equal logits in float64.

Every tensor is shaken. Families that compute in float64 throughout agree to a few parts in 1e15; in the others (Llama, Phi-3) a norm
casts to float32 inside, where a difference in the last place can become one of 1e-8, and PEFT itself loads prompts in float32.
"""

import json
import re
import tempfile
from pathlib import Path

import peft
import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

import graft
from graft import IA3, BiasOnly, DoRA, LoRA, Prefix, Prompt, Selective
from tiny import inputs, tiny

pytestmark = pytest.mark.filterwarnings("ignore")  # what peft says of its own configs
RELATIVE, EXACT = 1e-6, 1e-12
ROUNDING = ("llama", "llama_bias", "phi3")
LLAMA = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
MAPS = {
    "llama": LLAMA,
    "llama_bias": LLAMA,
    "gpt2": ("c_attn", "attn.c_proj", "c_fc", "mlp.c_proj"),
    "bert": ("query", "key", "value", "attention.output.dense", "intermediate.dense"),
    "phi3": ("qkv_proj", "o_proj", "gate_up_proj", "down_proj"),
    "gpt_neox": ("query_key_value", "attention.dense", "dense_h_to_4h", "dense_4h_to_h"),
    "opt": ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"),
}
FAMILIES = tuple(MAPS)
EMBEDDINGS = {"gpt2": "wte", "bert": "word_embeddings", "gpt_neox": "embed_in", "llama": "embed_tokens", "phi3": "embed_tokens"}
HEADS = dict.fromkeys(FAMILIES, "lm_head") | {"bert": "classifier"}
NORMS = dict.fromkeys(FAMILIES, "post_attention_layernorm") | {"gpt2": "ln_2", "bert": "LayerNorm", "opt": "final_layer_norm"}
EXAMPLES = settings(derandomize=True, deadline=None, database=None, max_examples=15, suppress_health_check=list(HealthCheck))


def shake(values):
    """Move every tensor off its start."""
    generator = torch.Generator().manual_seed(11)
    with torch.no_grad():
        for value in values:
            value.add_(torch.empty_like(value).normal_(std=0.1, generator=generator))


@torch.no_grad()
def logits(model, name):
    """Logits of the text, without virtual positions."""
    x = inputs(name)
    out = model.eval()(**x).logits
    return out[:, -x["input_ids"].shape[1] :] if out.dim() == 3 else out


def agree(ours, theirs, bound):
    """Both logits, relative to the largest."""
    assert ours.dtype == theirs.dtype == torch.float64
    assert (ours - theirs).abs().max() < bound * theirs.abs().max()


def some(names):
    """One or more of these names."""
    return st.lists(st.sampled_from(names), min_size=1, unique=True)


# made by PEFT


def pattern(draw, maps, values):
    """A rank or alpha pattern whose names do not contradict each other."""
    chosen = draw(st.lists(st.sampled_from(maps), max_size=2, unique=True))
    spelled = (lambda one: one, lambda one: rf".*\.1\..*{re.escape(one)}", lambda one: rf"\w+\.\w+\.{re.escape(one)}")
    return {draw(st.sampled_from(spelled))(one): draw(values) for one in chosen}


def saved(draw, name):
    """Modules to save, or none."""
    return draw(st.sampled_from([None, None, [NORMS[name]], [HEADS[name]], ["layers.1.mlp"] if "llama" in name else None]))


def places(draw, name, maps):
    """The ways to say where: a list, a regular expression, layers, what is left out."""
    way = draw(st.sampled_from(["list", "regex", "layers", "list excluded", "pattern excluded"]))
    if way == "regex":
        return {"target_modules": r".*\.(" + "|".join(re.escape(one) for one in maps) + ")"}
    if way == "layers":
        layers = draw(st.sampled_from([0, [1], [0, 1]]))
        return {"target_modules": maps, "layers_to_transform": layers, "layers_pattern": draw(st.sampled_from([None, ["h", "layers?"]]))}
    embedding = [EMBEDDINGS[name]] if name in EMBEDDINGS and draw(st.booleans()) else []
    without = {"list excluded": [maps[0]], "pattern excluded": r".*\.0\..*"}.get(way)
    return {"target_modules": [*maps, *embedding], "exclude_modules": without}


def lora(draw, name):
    """A LORA config."""
    maps, dora = draw(some(MAPS[name])), draw(st.booleans())
    where = places(draw, name, maps)
    plain = dora or EMBEDDINGS.get(name, "-") in where["target_modules"]
    return peft.LoraConfig(
        r=draw(st.integers(1, 6)),
        lora_alpha=draw(st.sampled_from([1, 3, 8, 2.5])),
        use_rslora=draw(st.booleans()),
        use_dora=dora,
        lora_bias=not plain and draw(st.booleans()),
        bias=draw(st.sampled_from(["none", "lora_only", "all"])),
        rank_pattern=pattern(draw, maps, st.integers(1, 6)),
        alpha_pattern=pattern(draw, maps, st.sampled_from([1, 4.5, 7])),
        fan_in_fan_out=name == "gpt2",
        modules_to_save=saved(draw, name),
        task_type=draw(st.sampled_from([None, "SEQ_CLS"])) if name == "bert" else draw(st.sampled_from([None, "CAUSAL_LM"])),
        **where,
    )


def adalora(draw, name):
    """An ADALORA config."""
    return peft.AdaLoraConfig(
        init_r=draw(st.integers(1, 6)),
        lora_alpha=draw(st.sampled_from([0, 3, 2.5])),
        total_step=9,
        bias=draw(st.sampled_from(["none", "lora_only", "all"])),
        target_modules=draw(some(MAPS[name])),
        fan_in_fan_out=name == "gpt2",
        modules_to_save=saved(draw, name),
    )


def ia3(draw, name):
    """An IA3 config, PEFT's own where it has one, or any."""
    if name != "phi3" and draw(st.booleans()):
        return peft.IA3Config(fan_in_fan_out=name == "gpt2", modules_to_save=saved(draw, name))
    maps = draw(some(MAPS[name]))
    ahead = [one for one in maps if draw(st.booleans())]
    return peft.IA3Config(target_modules=maps, feedforward_modules=ahead, fan_in_fan_out=name == "gpt2", modules_to_save=saved(draw, name))


def norms(draw, name):
    """An LN_TUNING config."""
    target = draw(st.sampled_from([[NORMS[name]], rf".*\.1\..*{NORMS[name]}"]))
    return peft.LNTuningConfig(target_modules=target, modules_to_save=draw(st.sampled_from([None, [HEADS[name]]])))


def tokens(draw, name):
    """A PROMPT_TUNING, P_TUNING or PREFIX_TUNING config."""
    n, task = draw(st.integers(1, 6)), "SEQ_CLS" if name == "bert" else "CAUSAL_LM"
    kind = draw(st.sampled_from(["prompt", "p", "prefix"] if name != "bert" else ["prompt", "p"]))
    if kind == "prompt":
        start = draw(st.sampled_from(["RANDOM", "SAMPLE_VOCAB"]))
        return peft.PromptTuningConfig(num_virtual_tokens=n, task_type=task, prompt_tuning_init=start)
    if kind == "p":
        encoder = draw(st.sampled_from(["MLP", "LSTM"]))
        return peft.PromptEncoderConfig(
            num_virtual_tokens=n, task_type=task, encoder_hidden_size=draw(st.integers(1, 9)), encoder_reparameterization_type=encoder
        )
    own = {"prefix_projection": True, "encoder_hidden_size": draw(st.integers(1, 9))} if draw(st.booleans()) else {}
    return peft.PrefixTuningConfig(num_virtual_tokens=n, task_type=task, **own)


@pytest.mark.parametrize("name", FAMILIES)
@EXAMPLES
@given(data=st.data())
def test_what_peft_made_is_read(name, data):
    config = data.draw(st.sampled_from([lora, lora, lora, adalora, ia3, norms, tokens]))(data.draw, name)
    try:
        model = peft.get_peft_model(tiny(name, torch.float64), config, autocast_adapter_dtype=False)
    except ValueError as error:
        assume(not re.search("excluded|No modules were targeted|not found in the base model", str(error)))  # nothing is left to adapt
        raise
    if config.is_prompt_learning:
        model.prompt_encoder["default"].double()
    shake(value for key, value in model.named_parameters() if value.requires_grad and ".ranknum." not in key)
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        adapted = graft.load(tiny(name, torch.float64), folder)
    agree(logits(adapted.model, name), logits(model, name), RELATIVE if name in ROUNDING else EXACT)


# made by us


def low_rank(draw, name):
    """One to three parts of LoRA or DoRA with different ranks and scales, and what may stand beside them."""
    kind = draw(st.sampled_from([LoRA, LoRA, DoRA]))
    maps = draw(st.permutations(MAPS[name]))
    cuts = sorted(draw(st.lists(st.integers(1, len(maps)), min_size=1, max_size=3, unique=True)))
    groups = [tuple(maps[a:b]) for a, b in zip([0, *cuts], cuts, strict=False)]
    shared = {"rslora": draw(st.booleans()), "dropout": draw(st.sampled_from([0.0, 0.1]))}
    if kind is LoRA:
        shared["bias"] = draw(st.booleans())
    if name in EMBEDDINGS and not shared.get("bias") and draw(st.booleans()):
        groups[0] = (*groups[0], EMBEDDINGS[name])
    parts = [kind(r=draw(st.integers(1, 6)), alpha=draw(st.sampled_from([1.0, 4.0, 2.5])), targets=group, **shared) for group in groups]
    biases = st.sampled_from([[], [], [BiasOnly(targets=tuple(maps[: cuts[-1]]))], [BiasOnly()]])
    return [*parts, *(draw(biases) if name not in ("llama", "phi3") else []), *draw(st.sampled_from(beside(name)))]


def beside(name):
    """Modules trained as a whole beside a method."""
    return [[], [], [Selective("norm")], [Selective("head")], [Selective(targets=(NORMS[name],))], [Selective(targets=(HEADS[name],))]]


def scales(draw, name):
    """IA3 at its own places, or any."""
    if name in ("llama", "llama_bias", "opt", "bert") and draw(st.booleans()):
        return [IA3(), *draw(st.sampled_from(beside(name)))]
    maps = draw(some(MAPS[name]))
    return [IA3(tuple(maps), tuple(one for one in maps if draw(st.booleans()))), *draw(st.sampled_from(beside(name)))]


def whole(draw, name):
    """Norms, some or all, and a head."""
    return [
        draw(st.sampled_from([Selective("norm"), Selective(targets=(NORMS[name],))])),
        *draw(st.sampled_from([[], [Selective("head")]])),
    ]


def virtual(draw, name):
    """A prompt or a prefix."""
    n = draw(st.integers(1, 6))
    if name == "bert":
        return [Prompt(n=n), *draw(st.sampled_from([[], [Selective("head")]]))]
    return [
        draw(
            st.sampled_from([Prompt(n=n), Prompt(n=n, init_embeds="random"), Prefix(n=n), Prefix(n=n, init_kv="zero"), Prefix(n=n, mlp=3)])
        )
    ]


@pytest.mark.parametrize("name", FAMILIES)
@EXAMPLES
@given(data=st.data())
def test_what_we_made_is_read_by_peft(name, data):
    methods = data.draw(st.sampled_from([low_rank, low_rank, low_rank, scales, whole, virtual]))(data.draw, name)
    adapted = graft.adapt(tiny(name, torch.float64), methods)
    shake(adapted.parameters())
    with tempfile.TemporaryDirectory() as folder:
        adapted.save(folder)
        assume(json.loads((Path(folder) / "adapter_config.json").read_text())["peft_type"] != "GRAFT")
        theirs = peft.PeftModel.from_pretrained(tiny(name, torch.float64), folder, autocast_adapter_dtype=False)
        again = graft.load(tiny(name, torch.float64), folder)
    ours = logits(adapted.model, name)
    rounds = name in ROUNDING or theirs.active_peft_config.is_prompt_learning
    agree(ours, logits(theirs, name), RELATIVE if rounds else EXACT)
    agree(logits(again.model, name), ours, RELATIVE if name in ROUNDING else EXACT)
