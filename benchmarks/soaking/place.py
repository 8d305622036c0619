"""A base and adapters in folders: a tiny random Llama whose tokens are words, adapters of all methods that share a batch, and broken ones.

Every token is a word of its own (`t17`), so that equal texts are equal tokens, whatever was streamed in which pieces.
"""

import json
import os
import shutil

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import graft
from graft import IA3, BiasOnly, Bottleneck, DoRA, LoRA, Prefix, Prompt, Selective

WORDS = 500
SPECIAL = ("<end>", "<unknown>", "<system>", "<user>", "<assistant>")
TEMPLATE = (
    "{% for m in messages %}{{ '<' + m['role'] + '> ' + m['content'] + ' ' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<assistant>' }}{% endif %}"
)
METHODS = {
    "lora-2": [LoRA(r=2)], "lora-32": [LoRA(r=32, alpha=64.0)], "lora-64": [LoRA(r=64)], "dora": [DoRA(r=16)], "ia3": [IA3()],
    "bottleneck": [Bottleneck(size=8)], "parallel": [Bottleneck(size=6, act="silu", placement="parallel", scale=4.0)],
    "bias": [BiasOnly(add=True)], "prefix-4": [Prefix(n=4)], "prefix-21": [Prefix(n=21)], "prompt": [Prompt(n=5, init_embeds="random")],
    "lora-bias": [LoRA(r=3), BiasOnly(add=True)], "prefix-lora": [Prefix(n=3), LoRA(r=2)],
}  # fmt: skip
GUESTS = {"guest-lora": [LoRA(r=4)], "guest-prefix": [Prefix(n=6)], "guest-ia3": [IA3()], "guest-bottleneck": [Bottleneck(size=4)]}
SWAPS = {"swap-a": [LoRA(r=4)], "swap-b": [Prefix(n=5)]}


def word_tokenizer():
    """t0, t1, ... and the special tokens, each one word."""
    vocabulary = {word: number for number, word in enumerate((*SPECIAL, *(f"t{number}" for number in range(WORDS))))}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unknown>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<end>", pad_token="<end>", unk_token="<unknown>", chat_template=TEMPLATE,
        clean_up_tokenization_spaces=False,
    )  # fmt: skip


def base_model(seed=0, width=64):
    """A random Llama, every parameter shaken."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=WORDS + len(SPECIAL), hidden_size=width, intermediate_size=2 * width, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=512, bos_token_id=None, eos_token_id=0, pad_token_id=0, initializer_range=0.15,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def write_adapter(folder, methods, seed, model=None):
    """Save an adapter, shaken so that it answers in its own way."""
    host = graft.adapt(model or base_model(), methods)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in host.parameters():
            value.add_(torch.empty_like(value).normal_(std=0.15, generator=generator))
    host.save(folder)


def write_place(folder):
    """Write base/, adapters/ and versions/ (two adapters that take turns under the name "swap") into a folder."""
    base_model().save_pretrained(folder / "base")
    word_tokenizer().save_pretrained(folder / "base")
    for seed, (name, methods) in enumerate({**METHODS, **GUESTS}.items()):
        write_adapter(folder / "adapters" / name, methods, seed)
    for seed, (name, methods) in enumerate(SWAPS.items(), 100):
        write_adapter(folder / "versions" / name, methods, seed)
    shutil.copytree(folder / "versions" / "swap-a", folder / "adapters" / "swap")
    write_broken(folder / "adapters", folder)


def write_broken(root, place):
    """Adapters that no server may serve, each for a reason of its own, in the root."""
    whole = root / "lora-2"
    for name in ("nan", "short", "json", "pickle", "empty"):
        shutil.copytree(whole, root / f"broken-{name}")
    weights = "adapter_model.safetensors"
    tensors = load_file(whole / weights)
    first = next(iter(tensors))
    save_file(tensors | {first: torch.full_like(tensors[first], float("nan"))}, root / "broken-nan" / weights)
    (root / "broken-short" / weights).write_bytes((whole / weights).read_bytes()[:-100])
    (root / "broken-json" / "adapter_config.json").write_text("{")
    (root / "broken-pickle" / weights).rename(root / "broken-pickle" / "adapter_model.bin")
    (root / "broken-empty" / "adapter_config.json").write_text(json.dumps({}))
    graft.adapt(base_model(), [LoRA(r=2)]).save(root / "broken-fresh")  # changes nothing
    write_adapter(root / "broken-whole", [Selective("last", k=1)], 1)  # whole modules
    write_adapter(root / "broken-other", [LoRA(r=2)], 1, base_model(seed=1))  # another base's
    write_adapter(root / "broken-wide", [LoRA(r=2)], 1, base_model(width=96))  # other shapes
    write_adapter(place / "outside", [LoRA(r=2)], 1)
    os.symlink(place / "outside", root / "broken-link")


BROKEN = tuple(f"broken-{name}" for name in ("nan", "short", "json", "pickle", "empty", "fresh", "whole", "other", "wide", "link"))
