"""Our adapters against HF PEFT's, on the same tensors, both ways through files: logits, and the gradient of every adapter tensor.

Oracles are plain forwards, never PEFT's generate. PEFT refuses prefix tuning on BERT, and has no form for rows of a fused projection.
"""

import copy
import json

import peft
import pytest
import torch
from safetensors.torch import load_file

import graft
from graft import IA3, BiasOnly, DoRA, LoRA, Prefix, Prompt, Selective
from graft.adapter import Adapter
from graft.errors import AdapterError
from graft.formats import peft as files
from graft.model.ground import ground
from tiny import inputs, tiny

pytestmark = [
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),  # read by peft
    pytest.mark.filterwarnings("ignore:`past_key_values` is deprecated:FutureWarning"),  # passed by peft
    pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True` and a tied layer is part:UserWarning"),
    pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers` to `True` as embedding layers found:UserWarning"),
    pytest.mark.filterwarnings("ignore:You have requested `ensure_weight_tying`, but no tied modules:UserWarning"),
    pytest.mark.filterwarnings("ignore:The following .*_pattern keys did not match:RuntimeWarning"),  # AdaLoRA's never do
    pytest.mark.filterwarnings("ignore:Unsupported layer type:UserWarning"),  # what LN_TUNING says of every norm
    pytest.mark.filterwarnings("ignore:`lora_bias=True` was passed but the targeted layer"),  # that has no bias, so peft cannot merge
    pytest.mark.filterwarnings("ignore:Adapter 'default'. .* LoRA tensor.s. have invalid shape"),  # of the bias of lora_B
]
EXACT, ROUNDED = 1e-12, 1e-8
TOLERANCE = {"llama": ROUNDED, "llama_bias": ROUNDED, "phi3": ROUNDED}
CAUSAL = ("llama", "llama_bias", "gpt2", "phi3", "opt", "gpt_neox")
METHODS = {
    "lora": [LoRA(r=3, alpha=5.0)],
    "rslora": [LoRA(r=4, alpha=3.0, rslora=True, init_A="gaussian")],
    "dora": [DoRA(r=3, alpha=5.0)],
    "ia3": [IA3()],
    "lora_embedding": [LoRA(r=2, targets=("embedding",))],
    "prompt": [Prompt(n=4, init_embeds="random")],
    "prefix": [Prefix(n=3)],
}
MORE = {
    "lora_bias": [LoRA(r=3, alpha=5.0, bias=True)],
    "patterns": [LoRA(r=3, alpha=5.0, targets=("attention_out",)), LoRA(r=2, alpha=1.5, targets=("down",)), LoRA(r=3, targets=("up:1",))],
    "dora_patterns": [DoRA(r=3, alpha=5.0, targets=("attention_out",)), DoRA(r=1, alpha=2.5, targets=("down",))],
    "lora+bias": [LoRA(r=3), BiasOnly()],
    "lora+own_bias": [LoRA(r=3, targets=("query", "down")), BiasOnly(targets=("query", "down"))],
    "lora+embedding": [LoRA(r=3), Selective(targets=("embedding",))],
    "dora+modules": [DoRA(r=3, targets=("down",)), Selective(targets=("attention_out", "norm"))],
    "norm": [Selective("norm")],
    "norm:0": [Selective(targets=("norm:0",))],
}
FUSED = ("gpt2", "phi3", "gpt_neox")  # key and value are rows there: IA3's own places have no form in PEFT
OURS = [
    *((name, method) for name in CAUSAL for method in METHODS if not (method == "ia3" and name in FUSED)),
    *(
        ("bert", method)
        for method in ("lora", "rslora", "dora", "ia3", "lora_embedding", "prompt", "lora+head", "dora+head", "prompt+head")
    ),
    *(("roberta", method) for method in ("lora+head", "ia3+head")),
    *(("llama", case) for case in ("lora+head", "patterns", "norm", "dora+modules")),
    *(("gpt2", case) for case in ("lora_bias", "dora_patterns", "norm", "norm:0", "lora+bias")),
    *(("opt", case) for case in ("lora+bias", "lora+own_bias", "dora+modules", "norm")),
    *(("llama_bias", case) for case in ("lora+embedding", "lora+head", "lora+own_bias")),
    *(("bert", case) for case in ("patterns", "dora+modules", "norm", "lora+own_bias")),
    ("gpt_neox", "patterns"),
    ("phi3", "dora_patterns"),
]


def methods(name):
    """A case's methods: one of the table, and a head after "+"."""
    if name in MORE:
        return MORE[name]
    first, *rest = name.split("+")
    return METHODS[first] + [Selective("head") for _ in rest]


def shake(parameters):
    """Move every tensor away from its start, B and magnitudes included."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for value in parameters:
            value.add_(torch.empty_like(value).normal_(std=0.1, generator=generator))


def weighted(logits):
    """A loss with a different weight for each logit."""
    generator = torch.Generator().manual_seed(3)
    return (logits * torch.randn(logits.shape, generator=generator, dtype=logits.dtype)).sum()


def run_ours(adapted, x):
    """Logits without gradients, and the gradients by the keys of PEFT's files."""
    with torch.no_grad():
        logits = adapted.model(**x).logits
    weighted(adapted.model(**x).logits).backward()
    parts = []
    for part in adapted.held:
        live = {station.site: station.tensors(holder) for station, holder in part}
        parts.append((part[0][0].method, {site: {k: v.grad for k, v in tensors.items()} for site, tensors in live.items()}))
    return logits, files.write(Adapter(tuple(parts)), ground(adapted.model))[1]


def run_theirs(model, x):
    """The same of a PeftModel; logits of virtual positions are cut off."""
    model.eval()
    with torch.no_grad():
        logits = model(**x).logits
    weighted(text_only(model(**x).logits, x)).backward()
    if model.active_peft_config.is_prompt_learning:
        own = {"prompt_embeddings": model.prompt_encoder["default"].embedding.weight.grad}
        heads = {n: p.grad for n, p in model.named_parameters() if ".modules_to_save." in n}
        return text_only(logits, x), own | {n.replace("modules_to_save.default.", ""): g for n, g in heads.items()}
    grads = {name: value.grad for name, value in model.named_parameters() if value.grad is not None}
    return text_only(logits, x), peft.get_peft_model_state_dict(model, state_dict=grads, save_embedding_layers=False)


def text_only(logits, x):
    """[B, n + T, V] without the n virtual positions; a classifier's logits as they are."""
    return logits[:, -x["input_ids"].shape[1] :] if logits.dim() == 3 else logits


def trainable(base, folder):
    """PEFT's model of a folder that can be trained: prompt methods are built anew, since PEFT refuses to go on training them."""
    config = json.loads((folder / "adapter_config.json").read_text())
    if config["peft_type"] in ("LORA", "IA3", "LN_TUNING"):
        return peft.PeftModel.from_pretrained(base, folder, is_trainable=True, autocast_adapter_dtype=False)
    fresh = peft.PeftConfig.from_pretrained(folder)
    fresh.inference_mode = False
    model = peft.get_peft_model(base, fresh, autocast_adapter_dtype=False)
    copy_in(model, load_file(folder / "adapter_model.safetensors"))
    return model


def copy_in(model, tensors):
    """Put a file's tensors into a prompt method's model, in float64 (PEFT makes its embedding in float32)."""
    model.prompt_encoder["default"].double().embedding.weight.data.copy_(tensors["prompt_embeddings"])
    for name, value in model.named_parameters():
        key = name.replace("modules_to_save.default.", "")
        if ".modules_to_save." in name:
            value.data.copy_(tensors[key])


def agree(ours, theirs, tolerance):
    """Logits and gradients, each gradient relative to the largest."""
    assert (ours[0] - theirs[0]).abs().max() < tolerance
    assert set(ours[1]) == set(theirs[1])
    largest = max(float(value.abs().max()) for value in theirs[1].values())
    for key, value in theirs[1].items():
        assert (ours[1][key] - value).abs().max() < tolerance * max(1.0, largest), key


@pytest.mark.parametrize(("name", "method"), OURS)
def test_peft_runs_ours(name, method, tmp_path):
    x = inputs(name)
    adapted = graft.adapt(tiny(name, torch.float64), methods(method))
    shake(adapted.parameters())
    adapted.save(tmp_path / "a")
    inference = peft.PeftModel.from_pretrained(tiny(name, torch.float64), tmp_path / "a", autocast_adapter_dtype=False).eval()
    ours, tolerance = run_ours(adapted, x), TOLERANCE.get(name, EXACT)
    with torch.no_grad():
        loaded = text_only(inference(**x).logits, x)
    assert (loaded - ours[0]).abs().max() < (tolerance if method[:2] != "pr" else 1e-4)  # PEFT loads prompts in float32
    if method not in ("lora+bias", "lora+own_bias", "lora+embedding"):  # whose files hold the base's bias too, or one tensor twice
        agree(ours, run_theirs(trainable(tiny(name, torch.float64), tmp_path / "a"), x), tolerance)


LORA = {"r": 3, "lora_alpha": 5}
LSTM = {"encoder_hidden_size": 5, "encoder_reparameterization_type": "LSTM"}
THEIRS = {
    "list": ("llama", peft.LoraConfig(**LORA, target_modules=["q_proj", "v_proj", "mlp.down_proj"])),
    "regex": ("llama", peft.LoraConfig(**LORA, target_modules=r".*layers\.1\.(self_attn|mlp)\.(q|up)_proj", use_rslora=True)),
    "all-linear": ("llama_bias", peft.LoraConfig(**LORA, target_modules="all-linear", init_lora_weights="gaussian")),
    "pooler": ("bert", peft.LoraConfig(**LORA, target_modules="all-linear", task_type="SEQ_CLS")),
    "exclude": ("opt", peft.LoraConfig(**LORA, target_modules="all-linear", exclude_modules=["fc1", "layers.0.fc2"])),
    "conv1d": ("gpt2", peft.LoraConfig(**LORA, target_modules=["c_attn", "c_proj"], fan_in_fan_out=True)),
    "head": ("llama", peft.LoraConfig(**LORA, target_modules=["lm_head", "k_proj"])),
    "embedding": ("llama", peft.LoraConfig(**LORA, target_modules=["embed_tokens", "o_proj"])),
    "tied": ("gpt2", peft.LoraConfig(**LORA, target_modules=["wte", "mlp.c_fc"], fan_in_fan_out=True)),
    "fused": ("phi3", peft.LoraConfig(**LORA, target_modules=["qkv_proj", "gate_up_proj"], use_dora=True)),
    "dora": ("bert", peft.LoraConfig(**LORA, target_modules=["query", "dense"], exclude_modules=["pooler.dense"], use_dora=True)),
    "dora_conv1d": ("gpt2", peft.LoraConfig(**LORA, target_modules=["c_attn", "mlp.c_proj"], use_dora=True, fan_in_fan_out=True)),
    "interleaved": ("gpt_neox", peft.LoraConfig(**LORA, target_modules=["query_key_value", "dense"])),
    "saved": ("llama", peft.LoraConfig(**LORA, target_modules=["q_proj"], modules_to_save=["lm_head"])),
    "classifier": ("roberta", peft.LoraConfig(**LORA, target_modules=["query", "value"], task_type="SEQ_CLS")),
    "norms": ("opt", peft.LoraConfig(**LORA, target_modules=["fc1"], modules_to_save=["self_attn_layer_norm", "final_layer_norm"])),
    "patterns": (
        "llama",
        peft.LoraConfig(
            **LORA,
            target_modules=["q_proj", "v_proj", "down_proj"],
            rank_pattern={"q_proj": 5, "layers.1.mlp.down_proj": 2},
            alpha_pattern={"q": 9, "v_proj": 7, r".*layers\.0\.[a-z_]+\.q_proj": 2},
        ),
    ),
    "rslora_patterns": (
        "bert",
        peft.LoraConfig(**LORA, target_modules=["query", "output.dense"], use_rslora=True, rank_pattern={"^bert.*query": 2, "dense": 4}),
    ),
    "dora_patterns": (
        "opt",
        peft.LoraConfig(**LORA, target_modules=["fc1", "fc2"], use_dora=True, rank_pattern={"fc1": 1}, alpha_pattern={"0.fc2": 2.5}),
    ),
    "dora_embedding": ("llama_bias", peft.LoraConfig(**LORA, target_modules=["embed_tokens", "q_proj"], use_dora=True)),
    "dora_head": ("llama", peft.LoraConfig(**LORA, target_modules=["lm_head"], use_dora=True)),
    "dora_pooler": ("bert", peft.LoraConfig(**LORA, target_modules="all-linear", use_dora=True, task_type="SEQ_CLS")),
    "lora_bias": ("llama", peft.LoraConfig(**LORA, target_modules=["q_proj", "up_proj"], lora_bias=True, rank_pattern={"q_proj": 2})),
    "lora_bias_conv1d": ("gpt2", peft.LoraConfig(**LORA, target_modules=["c_attn"], lora_bias=True, fan_in_fan_out=True)),
    "bias_lora_only": ("gpt2", peft.LoraConfig(**LORA, target_modules=["c_attn"], bias="lora_only", fan_in_fan_out=True)),
    "bias_all": ("opt", peft.LoraConfig(**LORA, target_modules=["q_proj", "fc2"], bias="all", lora_bias=True)),
    "bias_dora": ("llama_bias", peft.LoraConfig(**LORA, target_modules=["q_proj", "down_proj"], bias="all", use_dora=True)),
    "bias_classifier": ("roberta", peft.LoraConfig(**LORA, target_modules=["query"], bias="all", task_type="SEQ_CLS")),
    "bias_of_none": ("llama", peft.LoraConfig(**LORA, target_modules=["q_proj"], bias="all")),
    "layers": ("llama", peft.LoraConfig(**LORA, target_modules=["q_proj"], layers_to_transform=[1], layers_pattern="layers")),
    "layer": (
        "gpt2",
        peft.LoraConfig(**LORA, target_modules=["c_fc", "transformer.h.1.mlp.c_proj"], layers_to_transform=0, fan_in_fan_out=True),
    ),
    "layers_patterns": (
        "bert",
        peft.LoraConfig(**LORA, target_modules=["query", "dense"], layers_to_transform=[0, 5], layers_pattern=["h", "lay.r"]),
    ),
    "saved_container": ("llama", peft.LoraConfig(**LORA, target_modules=["q_proj", "up_proj"], modules_to_save=["layers.1.mlp"])),
    "saved_embedding": ("llama", peft.LoraConfig(**LORA, target_modules=["q_proj"], modules_to_save=["embed_tokens", "model.norm"])),
    "saved_pooler": ("bert", peft.LoraConfig(**LORA, target_modules=["query"], modules_to_save=["pooler"], task_type="SEQ_CLS")),
    "saved_positions": ("gpt2", peft.LoraConfig(**LORA, target_modules=["c_fc"], modules_to_save=["wpe"], fan_in_fan_out=True)),
    "saved_ia3": ("opt", peft.IA3Config(modules_to_save=["out_proj"])),
    "tied_head": ("llama_bias", peft.LoraConfig(**LORA, target_modules=["q_proj"], modules_to_save=["lm_head"])),
    "tied_both": ("llama_bias", peft.LoraConfig(**LORA, target_modules=["q_proj"], modules_to_save=["lm_head", "embed_tokens"])),
    "tied_together": (
        "llama_bias",
        peft.LoraConfig(**LORA, target_modules=["q_proj"], modules_to_save=["embed_tokens"], ensure_weight_tying=True),
    ),
    "tied_by_the_head": (
        "llama_bias",
        peft.LoraConfig(**LORA, target_modules=["q_proj"], modules_to_save=["lm_head"], ensure_weight_tying=True),
    ),
    "tied_to_nothing": (
        "llama",
        peft.LoraConfig(**LORA, target_modules=["q_proj"], modules_to_save=["lm_head"], ensure_weight_tying=True),
    ),
    "ln_tuning": ("llama", peft.LNTuningConfig(task_type="CAUSAL_LM")),
    "ln_tuning_head": ("bert", peft.LNTuningConfig(target_modules=["LayerNorm"], task_type="SEQ_CLS")),
    "ln_tuning_regex": ("gpt2", peft.LNTuningConfig(target_modules=r".*\.1\.ln_\d", modules_to_save=["ln_f"])),
    "adalora": ("llama", peft.AdaLoraConfig(init_r=4, lora_alpha=5, total_step=9, target_modules=["q_proj", "down_proj"])),
    "adalora_bias": (
        "gpt2",
        peft.AdaLoraConfig(init_r=3, lora_alpha=0, total_step=9, target_modules=["c_attn"], bias="all", fan_in_fan_out=True),
    ),
    "p_tuning": ("llama", peft.PromptEncoderConfig(task_type="CAUSAL_LM", num_virtual_tokens=4, encoder_hidden_size=6)),
    "p_tuning_lstm": (
        "gpt2",
        peft.PromptEncoderConfig(
            task_type="CAUSAL_LM", num_virtual_tokens=3, encoder_hidden_size=5, encoder_reparameterization_type="LSTM"
        ),
    ),
    "p_tuning_bert": ("bert", peft.PromptEncoderConfig(task_type="SEQ_CLS", num_virtual_tokens=4, encoder_hidden_size=6)),
    "ia3": ("llama", peft.IA3Config(task_type="CAUSAL_LM")),
    "ia3_conv1d": ("gpt2", peft.IA3Config(fan_in_fan_out=True)),
    "ia3_bert": ("bert", peft.IA3Config(task_type="SEQ_CLS")),
    "ia3_plain": ("opt", peft.IA3Config(target_modules=["k_proj", "v_proj", "fc2"], feedforward_modules=["fc2"])),
    "ia3_other": ("llama_bias", peft.IA3Config(target_modules=["o_proj", "up_proj"], feedforward_modules=["o_proj"])),
    "prompt": ("llama", peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)),
    "prompt_vocabulary": ("gpt2", peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3, prompt_tuning_init="SAMPLE_VOCAB")),
    "prompt_bert": ("bert", peft.PromptTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=4)),
    "prefix": ("llama", peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)),
    "prefix_plain": ("gpt2", peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)),
    "prefix_zero": ("phi3", peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4, init_weights="zero")),
    "prefix_mlp": (
        "opt",
        peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4, prefix_projection=True, encoder_hidden_size=6),
    ),
}


FOLDED = ("prefix_mlp", "adalora", "p_tuning", "bias_", "tied_together", "tied_by")
"""Cases whose file holds something else than what was trained (what that made, or a bias with the base's in it), so that there are
no gradients by its keys to compare."""


@pytest.mark.parametrize("case", THEIRS)
def test_we_run_pefts(case, tmp_path):
    name, config = THEIRS[case]
    x, tolerance = inputs(name), TOLERANCE.get(name, EXACT)
    model = peft.get_peft_model(tiny(name, torch.float64), copy.deepcopy(config), autocast_adapter_dtype=False)
    if config.is_prompt_learning:
        model.prompt_encoder["default"].double()
    shake(value for name, value in model.named_parameters() if value.requires_grad and ".ranknum." not in name)
    model.save_pretrained(tmp_path / "a")
    adapted = graft.load(tiny(name, torch.float64), tmp_path / "a")
    ours = run_ours(adapted, x)
    if not case.startswith(FOLDED):
        agree(ours, run_theirs(model, x), tolerance)
    else:
        with torch.no_grad():
            assert (text_only(model.eval()(**x).logits, x) - ours[0]).abs().max() < tolerance
    adapted.save(tmp_path / "b")  # and what we save of it is what we read
    again = graft.load(tiny(name, torch.float64), tmp_path / "b")
    with torch.no_grad():
        assert torch.equal(again.model(**x).logits, ours[0])


def test_adalora_with_ranks_of_its_own(tmp_path):
    x, kept = inputs("llama"), {"q_proj": [True, False, True, False], "down_proj": [True] * 4, "v_proj": [False] * 4}
    config = peft.AdaLoraConfig(init_r=4, lora_alpha=5, total_step=9, target_modules=list(kept))
    model = peft.get_peft_model(tiny("llama", torch.float64), config, autocast_adapter_dtype=False)
    shake(value for name, value in model.named_parameters() if value.requires_grad and ".ranknum." not in name)
    names = [name.removeprefix("base_model.model.") for name, _ in model.named_parameters() if ".lora_E." in name]
    config.rank_pattern = {name: kept[name.split(".lora_E")[0].rsplit(".", 1)[-1]] for name in names}
    with torch.no_grad():
        for name, value in model.named_parameters():
            if ".lora_E." in name:
                value *= torch.tensor(config.rank_pattern[name.removeprefix("base_model.model.")])[:, None]
    model.save_pretrained(tmp_path / "a")
    theirs = peft.PeftModel.from_pretrained(tiny("llama", torch.float64), tmp_path / "a", autocast_adapter_dtype=False).eval()
    adapted = graft.load(tiny("llama", torch.float64), tmp_path / "a")
    assert sorted(method.r for method, _ in adapted.adapter().parts) == [2, 4]
    with torch.no_grad():
        assert (theirs(**x).logits - adapted.model(**x).logits).abs().max() < ROUNDED
        assert (model.eval()(**x).logits - adapted.model(**x).logits).abs().max() < ROUNDED


@pytest.mark.filterwarnings("ignore:.*changes the base weights of the model and should thus:UserWarning")
@pytest.mark.parametrize("start", ["pissa", "olora"])
def test_what_peft_converted_to_lora(start, tmp_path):
    x, config = inputs("llama"), peft.LoraConfig(**LORA, target_modules=["q_proj", "down_proj"], init_lora_weights=start)
    model = peft.get_peft_model(tiny("llama"), config)
    config.init_lora_weights = True  # as PEFT's documentation has it: the start is saved as a plain LoRA
    model.save_pretrained(tmp_path / "start")
    shake(value for value in model.parameters() if value.requires_grad)
    config.init_lora_weights = start
    model.save_pretrained(tmp_path / "raw")
    model.save_pretrained(tmp_path / "a", path_initial_model_for_weight_conversion=tmp_path / "start")
    with pytest.raises(AdapterError, match=f"init_lora_weights = {start}, which changes the base's own weights"):
        graft.load(tiny("llama"), tmp_path / "raw")
    adapted = graft.load(tiny("llama"), tmp_path / "a")
    assert adapted.adapter().parts[0][0].r == 6
    with torch.no_grad():
        assert (model.eval()(**x).logits - adapted.model(**x).logits).abs().max() < 1e-5  # the factors are float32
