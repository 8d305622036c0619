"""AdapterHub's side of the exchange. Runs where its library does, not in Graft's environment:

    pip install "adapters==1.3.*" "transformers==4.57.*" torch safetensors
    python scripts/adapterhub.py convert FOLDER     pickles to safetensors, which Graft reads (and AdapterHub: use_safetensors=True)
    python scripts/adapterhub.py fixtures FOLDER    what tests/test_adapterhub.py reads: random adapters on tiny models, and their logits
    python scripts/adapterhub.py check FOLDER       run adapters that Graft wrote (one a folder, named as fixtures are) and compare logits

The tiny models have no file: every parameter is drawn from its name, here and in the tests alike. Attention is `eager`: with `sdpa` this
library masks a prefix wrongly on rows without padding (transformers' causal mask then starts at the prefix).
"""

import json
import sys
import zlib
from pathlib import Path

import numpy as np
import torch
import transformers as T
from safetensors.torch import load_file, save_file

PICKLES = {"pytorch_adapter.bin": "adapter.safetensors", "pytorch_model_head.bin": "model_head.safetensors"}

SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 64, "max_position_embeddings": 64}
IDS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
DECODER = SMALL | IDS | {"num_key_value_heads": 2, "intermediate_size": 48}
ENCODER = SMALL | {"intermediate_size": 48, "num_labels": 3, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
MODELS = {
    "bert": lambda: T.BertConfig(**ENCODER | IDS),
    "roberta": lambda: T.RobertaConfig(**ENCODER | {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2}),
    "gpt2": lambda: T.GPT2Config(
        n_embd=32, n_layer=2, n_head=4, vocab_size=64, n_positions=64, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, **IDS
    ),
    "llama": lambda: T.LlamaConfig(**DECODER),
    "mistral": lambda: T.MistralConfig(**DECODER, sliding_window=None),
    "mistral_window": lambda: T.MistralConfig(**DECODER, sliding_window=4),
}
ENCODERS = ("bert", "roberta")
NAME = "mine"
HEADS = ("bert-head", "roberta-head")  # GPT-2's is the base's own: it shares the embeddings'


def drawn(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """A tensor from its name: even between -0.3 and 0.3, and 1 more where it scales a norm. The same on every machine."""
    values = np.random.RandomState(zlib.crc32(name.encode())).random_sample(shape) * 0.6 - 0.3
    scales = name.endswith("weight") and len(shape) == 1
    return torch.from_numpy(values + scales).float()


def model_of(family: str):
    """The tiny model of a family, in evaluation mode."""
    auto = T.AutoModelForSequenceClassification if family in ENCODERS else T.AutoModelForCausalLM
    model = auto.from_config(MODELS[family](), attn_implementation="eager").eval()
    with torch.no_grad():
        for name, value in model.named_parameters():
            value.copy_(drawn(name, tuple(value.shape)))
    return model


def batch(family: str) -> dict[str, torch.Tensor]:
    """Two rows; an encoder's second one is padded at its end."""
    ids = torch.from_numpy(np.random.RandomState(5).randint(3, 64, (2, 7)))
    mask = torch.ones_like(ids)
    if family in ENCODERS:
        mask[1, 5:] = 0
        ids[1, 5:] = MODELS[family]().pad_token_id
    return {"input_ids": ids, "attention_mask": mask}


def logits(model, family: str) -> torch.Tensor:
    """[2, 3] of an encoder, [2, 2, 64] (the first and the last position) of a decoder; in float64."""
    with torch.no_grad():
        out = model.double().eval()(**batch(family)).logits
    return out if family in ENCODERS else out[:, [0, -1]]


def cases() -> dict[str, tuple[str, object]]:
    """Every fixture: its name, the family, AdapterHub's config."""
    import adapters as A

    every = {
        "seq_bn": lambda: A.SeqBnConfig(),
        "double_seq_bn": lambda: A.DoubleSeqBnConfig(),
        "par_bn": lambda: A.ParBnConfig(reduction_factor=8),
        "lora": lambda: A.LoRAConfig(r=2, alpha=6),
        "lora_all": lambda: A.LoRAConfig(r=3, alpha=3, attn_matrices=["q", "k", "v"], intermediate_lora=True, output_lora=True),
        "ia3": lambda: A.IA3Config(),
        "prefix": lambda: A.PrefixTuningConfig(flat=True, prefix_length=3),
    }
    made = {f"{family}-{kind}": (family, make()) for kind, make in every.items() for family in MODELS if family != "mistral_window"}
    made |= {
        "bert-prompt": ("bert", A.PromptTuningConfig(prompt_length=3)),
        "roberta-prompt": ("roberta", A.PromptTuningConfig(prompt_length=3)),
        "bert-prefix_mlp": ("bert", A.PrefixTuningConfig(prefix_length=3, bottleneck_size=5)),
        "llama-prefix_mlp": ("llama", A.PrefixTuningConfig(prefix_length=3, bottleneck_size=5, non_linearity="relu")),
        "llama-leave_out": ("llama", A.SeqBnConfig(leave_out=[0], non_linearity="gelu", scaling=2.0)),
        "gpt2-factors": ("gpt2", A.DoubleSeqBnConfig(reduction_factor={"0": 16, "default": 7}, non_linearity="leakyrelu")),
        "bert-attention": ("bert", A.BnConfig(True, False, 11, "gelu_new")),
        "gpt2-after": ("gpt2", A.BnConfig(False, True, 16, "tanh", True, False, residual_before_ln=False)),
        "mistral_window-prefix": ("mistral_window", A.PrefixTuningConfig(flat=True, prefix_length=3)),
        "gpt2-keys": ("gpt2", A.LoRAConfig(r=2, alpha=4, attn_matrices=["k"], leave_out=[1])),
        "bert-head": ("bert", A.LoRAConfig(r=2)),
        "roberta-head": ("roberta", A.SeqBnConfig(non_linearity="gelu")),
        "gpt2-head": ("gpt2", A.IA3Config()),
        "bert-par_both": ("bert", A.ParBnConfig(reduction_factor=16, mh_adapter=True, scaling=0.5)),
    }
    return made


def separate(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Each tensor in memory of its own: a prefix's is listed once a layer, and safetensors refuses shared memory."""
    return {key: value.detach().clone().contiguous() for key, value in tensors.items()}


def convert(folder: Path) -> None:
    """Write a folder's pickles again as safetensors. `weights_only` runs no code."""
    for pickled, safe in PICKLES.items():
        if (folder / pickled).is_file():
            save_file(separate(torch.load(folder / pickled, map_location="cpu", weights_only=True)), folder / safe)
            print(f"{folder / pickled} -> {safe}")


def fixtures(out: Path) -> None:
    """Every case's folder, and `logits.safetensors` with what each gives."""
    import adapters

    expected = {}
    for case, (family, config) in cases().items():
        model = model_of(family)
        expected[f"{family}"] = logits(model_of(family), family)
        adapters.init(model)
        model.add_adapter(NAME, config=config)
        for name, value in model.named_parameters():
            if f".{NAME}." in name and value.is_floating_point():
                value.data.copy_(drawn(name, tuple(value.shape)))
            if case in HEADS and name.startswith("classifier"):
                value.data.copy_(drawn(f"trained.{name}", tuple(value.shape)))
        model.set_active_adapters(NAME)
        model.save_adapter(str(out / case), NAME, with_head=case.endswith("-head"))
        convert(out / case)
        for pickled in PICKLES:
            (out / case / pickled).unlink(missing_ok=True)
        expected[case] = logits(model, family)
        assert not torch.equal(expected[case], expected[family]), case
    save_file(expected, out / "logits.safetensors")
    (out / "versions.json").write_text(json.dumps(versions(), indent=2) + "\n")


def versions() -> dict[str, str]:
    """The libraries that made the fixtures."""
    from importlib.metadata import version

    return {name: version(name) for name in ("adapters", "transformers", "torch")}


def check(folder: Path) -> int:
    """Load each adapter and compare its logits with those beside it in logits.safetensors; the number of those that differ."""
    import adapters

    expected, wrong = load_file(folder / "logits.safetensors"), 0
    for path in sorted(path for path in folder.iterdir() if path.is_dir()):
        family = path.name.partition("-")[0]
        model = model_of(family)
        adapters.init(model)
        said = {}
        name = model.load_adapter(str(path), use_safetensors=True, set_active=True, loading_info=said)
        found = logits(model, family)
        gap = float((found - expected[path.name]).abs().max() / expected[path.name].abs().max())
        missing = [key for key in said.get("missing_keys", []) if f".{name}." in key]
        alone = [key for key in said.get("unexpected_keys", []) if f".{name}." in key]
        good = gap < 1e-6 and not missing and not alone
        wrong += not good
        print(f"{path.name:24} {gap:.1e} {'' if good else 'DIFFERS'} {missing[:2]} {alone[:2]}")
    print(versions(), f"{wrong} differ")
    return wrong


if __name__ == "__main__":
    command, folder = sys.argv[1], Path(sys.argv[2])
    sys.exit({"convert": convert, "fixtures": fixtures, "check": check}[command](folder))
