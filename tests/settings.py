"""The settings that the laws are checked on: every method, and the choices that change its mathematics. A new method adds a line."""

from graft import IA3, BiasOnly, Bottleneck, DoRA, LoRA, Prefix, Prompt, Selective

SETTINGS = {
    "lora": [LoRA(r=3, alpha=5.0)],
    "rslora": [LoRA(r=4, rslora=True, init_A="gaussian")],
    "lora_rows": [LoRA(r=2, targets=("query", "value"))],
    "lora_embedding": [LoRA(r=2, targets=("embedding",))],
    "lora_bias": [LoRA(r=3, alpha=5.0, bias=True)],
    "dora": [DoRA(r=3, alpha=5.0)],
    "dora_rows": [DoRA(r=2, targets=("key",))],
    "dora_embedding": [DoRA(r=2, targets=("embedding", "head"))],
    "ia3": [IA3()],
    "houlsby": [Bottleneck(size=5)],
    "pfeiffer": [Bottleneck(size=4, act="gelu", placement="pfeiffer", scale=2.0)],
    "parallel": [Bottleneck(size=4, act="silu", placement="parallel", scale=4.0)],
    "block": [Bottleneck(size=3, act="gelu", targets=("block",))],
    "block_layer": [Bottleneck(size=3, act="gelu_tanh", targets=("block:1",)), Bottleneck(size=2, act="tanh", targets=("mlp:0",))],
    "residual": [Bottleneck(size=4, act="leaky_relu", placement="parallel", scale=4.0, targets=("residual",))],
    "bias": [BiasOnly(add=True)],
    "bias_targets": [BiasOnly(add=True, targets=("head", "up"))],
    "last": [Selective("last", k=1)],
    "norm": [Selective("norm")],
    "head": [Selective("head")],
    "targets": [Selective(targets=("embedding", "attention_out"))],
    "full": [Selective("full")],
    "prefix": [Prefix(n=4)],
    "prefix_unshifted": [Prefix(n=3, shift=False)],
    "prefix_mlp": [Prefix(n=3, mlp=6)],
    "prompt": [Prompt(n=5, init_embeds="random")],
    "lora+bias": [LoRA(r=3), BiasOnly(add=True)],
    "lora+lora": [LoRA(r=3, targets=("attention_out",), bias=True), LoRA(r=2, alpha=3.0, targets=("down",), bias=True)],
    "lora+head": [LoRA(r=2), Selective("head")],
    "ia3+lora": [IA3(), LoRA(r=2, targets=("value", "down"))],
    "prefix+lora": [Prefix(n=2), LoRA(r=2)],
    "prompt+lora": [Prompt(n=2), LoRA(r=2)],
}
VIRTUAL = tuple(name for name in SETTINGS if name.startswith(("prefix", "prompt")))
"""Settings that act on the context: no fresh adapter of theirs leaves the base as it is, and none merges."""
WEIGHTS = tuple(name for name in SETTINGS if name not in VIRTUAL)
ENCODER_SETTINGS = {"prompt_layers": [Prompt(n=3, init_embeds="random", into="layers")]}
"""Settings that only encoders have a place for."""
MERGEABLE = tuple(name for name in WEIGHTS if not any(isinstance(method, Bottleneck) for method in SETTINGS[name]))
