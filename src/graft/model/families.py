"""A transformers model -> its sites. Works on the meta device: only names, classes and shapes are read.

A family is a table of module-name endings and what they are. What no table knows is inferred where that is safe: modules with the
usual Llama names get Llama's roles; anything else is an error that says how to name the sites.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch.nn as nn

from graft.errors import ModelError
from graft.site import Rows, Site

LAYER = re.compile(r"(?:^|\.)(?:layers|layer|h|blocks)\.(\d+)(?=\.|$)")


@dataclass(frozen=True)
class Family:
    """`linear`: name ending -> role; `sublayers`: role -> (where y leaves, where x enters), under the layer.

    `stream`: what the residual stream may enter on its way to the MLP, the first present one counts; `post_norm`: the norm that ends a
    layer; `entry`: the module whose output enters the first layer.
    """

    linear: dict[str, str]
    sublayers: dict[str, tuple[str, str]]
    embedding: str
    heads: tuple[str, ...] = ("lm_head",)
    interleaved: bool = False
    attention: str = "self_attn"
    stream: tuple[str, ...] = ()
    post_norm: str = ""
    entry: str = ""


LLAMA = Family(
    linear={
        "self_attn.q_proj": "query",
        "self_attn.k_proj": "key",
        "self_attn.v_proj": "value",
        "self_attn.qkv_proj": "qkv",
        "self_attn.o_proj": "attention_out",
        "mlp.gate_proj": "gate",
        "mlp.up_proj": "up",
        "mlp.gate_up_proj": "gate_up",
        "mlp.down_proj": "down",
    },
    sublayers={"attention": ("self_attn", "self_attn"), "mlp": ("mlp", "mlp")},
    embedding="embed_tokens",
    heads=("lm_head", "score"),
    stream=("pre_feedforward_layernorm", "post_attention_layernorm"),
)
GPT2 = Family(
    linear={"attn.c_attn": "qkv", "attn.c_proj": "attention_out", "mlp.c_fc": "up", "mlp.c_proj": "down"},
    sublayers={"attention": ("attn", "attn"), "mlp": ("mlp", "mlp")},
    embedding="wte",
    heads=("lm_head", "score"),
    attention="attn",
    stream=("ln_2",),
)
GPT_NEOX = Family(
    linear={
        "attention.query_key_value": "qkv",
        "attention.dense": "attention_out",
        "mlp.dense_h_to_4h": "up",
        "mlp.dense_4h_to_h": "down",
    },
    sublayers={"attention": ("attention", "attention"), "mlp": ("mlp", "mlp")},
    embedding="embed_in",
    heads=("lm_head", "embed_out", "score"),
    interleaved=True,
    attention="attention",
    stream=("post_attention_layernorm",),
)
OPT = Family(
    linear={
        "self_attn.q_proj": "query",
        "self_attn.k_proj": "key",
        "self_attn.v_proj": "value",
        "self_attn.out_proj": "attention_out",
        "fc1": "up",
        "fc2": "down",
    },
    sublayers={"attention": ("self_attn", "self_attn"), "mlp": ("fc2", "fc1")},
    embedding="embed_tokens",
    heads=("lm_head", "score"),
    stream=("final_layer_norm",),
)
BERT = Family(
    linear={
        "attention.self.query": "query",
        "attention.self.key": "key",
        "attention.self.value": "value",
        "attention.output.dense": "attention_out",
        "intermediate.dense": "up",
        "output.dense": "down",
    },
    sublayers={"attention": ("attention.output.dense", "attention.self"), "mlp": ("output.dense", "intermediate.dense")},
    embedding="word_embeddings",
    heads=("classifier", "classifier.dense", "classifier.out_proj"),
    attention="attention.self",
    stream=("intermediate.dense",),
    post_norm="output.LayerNorm",
    entry="embeddings",
)
FAMILIES = {
    **dict.fromkeys(
        ("llama", "mistral", "qwen2", "qwen3", "smollm3", "gemma", "gemma2", "gemma3", "gemma3_text", "phi3", "granite"), LLAMA
    ),
    "olmo2": replace(LLAMA, stream=("mlp",)),
    "gpt2": GPT2,
    "gpt_neox": GPT_NEOX,
    "opt": OPT,
    "bert": BERT,
    "roberta": BERT,
}


def family_of(model: Any) -> Family:
    """The model's table, or Llama's where its modules bear Llama's names. Raises ModelError otherwise."""
    kind = str(model.config.model_type)
    if getattr(model.config, "is_encoder_decoder", False):
        raise ModelError(f"{kind} is an encoder-decoder, which Graft does not support: name a decoder or an encoder")
    if kind in FAMILIES:
        return FAMILIES[kind]
    endings = {name.split(".", 1)[-1] for name in layer_names(model)}
    if any("experts" in ending for ending in endings):
        raise ModelError(f"{kind} is a mixture of experts, whose experts are no modules of their own: Graft does not support them yet")
    if {"self_attn.q_proj", "self_attn.o_proj", "mlp.up_proj", "mlp.down_proj"} <= endings:
        return replace(LLAMA, stream=())  # where the norms of an unknown architecture stand, nobody knows
    raise ModelError(
        f"architecture {kind!r} is unknown and its modules do not bear Llama's names: add a Family for it to "
        f"graft.model.families.FAMILIES. Known: {', '.join(sorted(FAMILIES))}"
    )


def layer_names(model: Any) -> Iterator[str]:
    """The names of modules inside layers, from the layer's number on: "0.mlp.up_proj"."""
    for name, _ in model.named_modules():
        found = LAYER.search(name)
        if found and found.end() < len(name):
            yield f"{found[1]}.{name[found.end() + 1 :]}"


def sites(model: Any) -> list[Site]:
    """Every site of the model, in its own order; the cache, of which there is one, comes last."""
    family = family_of(model)
    found: list[Site] = []
    numbers = [int(match[1]) for name, _ in model.named_modules() if (match := LAYER.search(name))]
    layers = max(numbers, default=-1) + 1
    gated = any(ending.endswith(("gate_proj", "gate_up_proj")) for ending in layer_names(model))
    owned: set[int] = set()
    for path, module in model.named_modules():
        if "graft" in path.split("."):  # an attached adapter is no part of the model
            continue
        own = {id(value) for value in module.parameters(recurse=False)}
        found += module_sites(path, module, family, layers, gated, tied=bool(own & owned))
        owned |= own
        found += sublayer_sites(path, model, family, layers, gated) or entry_sites(path, model, family, layers)
    return [split for site in found for split in (site, *row_sites(site, model, family))] + cache_sites(model, family, layers)


def module_sites(path: str, module: Any, family: Family, layers: int, gated: bool, *, tied: bool) -> list[Site]:
    """The site of a module with parameters of its own, if it has any."""
    own = tuple((name, logical_shape(value)) for name, value in module.named_parameters(recurse=False))
    if not own:
        return []
    layer, ending = place(path)
    shapes = dict(own)
    weight = shapes.get("weight", own[0][1])
    role = role_of(ending, module, layer, family, weight)
    outputs, inputs = (weight[0], weight[-1]) if len(weight) > 1 else (weight[0], weight[0])
    if type(module).__name__ == "Conv1D" or role == "embedding":
        outputs, inputs = inputs, outputs
    return [Site(path, role, layer, layers, inputs, outputs, gated=gated, parameters=own, tied=tied)]


def place(path: str) -> tuple[int | None, str]:
    """The layer's number and the name below it; None and the whole path outside the layers."""
    found = LAYER.search(path)
    return (int(found[1]), path[found.end() + 1 :]) if found else (None, path)


def role_of(ending: str, module: Any, layer: int | None, family: Family, weight: tuple[int, ...]) -> str:
    """What a module with parameters is."""
    if layer is not None and ending in family.linear:
        return family.linear[ending]
    last = ending.rsplit(".", 1)[-1]
    if layer is None and last == family.embedding:
        return "embedding"
    if layer is None and (ending in family.heads or last in family.heads):
        return "head"
    if "Embedding" in type(module).__name__:  # of positions or token types: what it is indexed by is no token
        return "position"
    return "norm" if len(weight) == 1 and "norm" in f"{type(module).__name__}{last}".lower() else "other"


def logical_shape(value: nn.Parameter) -> tuple[int, ...]:
    """A parameter's shape, that of the dense weight where it is stored in 4 bits."""
    state = getattr(value, "quant_state", None)
    return tuple(value.shape) if state is None else tuple(state.shape)


def sublayer_sites(path: str, model: Any, family: Family, layers: int, gated: bool) -> list[Site]:
    """Attention, MLP and block of a layer, if `path` is one."""
    layer, ending = place(path)
    if layer is None or ending:
        return []
    width = int(model.config.hidden_size)
    end = f"{path}.{family.post_norm}" if family.post_norm else path
    made = [Site(end, "block", layer, layers, width, width, gated=gated, adds="x" if family.post_norm else "y")]
    within = {name for name, _ in model.get_submodule(path).named_modules()}
    stream = next((name for name in family.stream if name in within), None)
    residual = {} if stream is None else {"residual": (family.sublayers["mlp"][0], stream)}
    for role, (leaves, enters) in (family.sublayers | residual).items():
        reads = None if leaves == enters else f"{path}.{enters}"
        made.append(Site(f"{path}.{leaves}", role, layer, layers, width, width, reads=reads, gated=gated))
    return made


def entry_sites(path: str, model: Any, family: Family, layers: int) -> list[Site]:
    """The module whose output enters the first layer, if `path` is it."""
    if not family.entry or path.rsplit(".", 1)[-1] != family.entry or place(path)[0] is not None:
        return []
    return [Site(path, "entry", None, layers, int(model.config.vocab_size), int(model.config.hidden_size))]


def row_sites(site: Site, model: Any, family: Family) -> list[Site]:
    """The projections inside a fused one."""
    if site.role == "gate_up":
        half = site.outputs // 2
        parts = {"gate": Rows(0, half), "up": Rows(half, half)}
    elif site.role == "qkv":
        kv, dim = heads(model)
        kv_size = kv * dim
        query = site.outputs - 2 * kv_size
        parts = {"query": Rows(0, query), "key": Rows(query, kv_size), "value": Rows(query + kv_size, kv_size)}
        if family.interleaved:
            parts = {role: Rows(k * dim, dim, kv, 3 * dim) for k, role in enumerate(("query", "key", "value"))}
    else:
        return []
    return [
        Site(
            site.path,
            role,
            site.layer,
            site.layers,
            site.inputs,
            rows.size * rows.count,
            rows,
            None,
            site.gated,
            site.heads,
            site.parameters,
        )
        for role, rows in parts.items()
    ]


def heads(model: Any) -> tuple[int, int]:
    """(key-value heads, head dimension)."""
    config = model.config
    count = int(getattr(config, "num_key_value_heads", None) or config.num_attention_heads)
    return count, int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def attention_modules(model: Any) -> list[Any]:
    """The attention module of each layer, in order."""
    ending = family_of(model).attention
    return [module for path, module in model.named_modules() if place(path)[0] is not None and place(path)[1] == ending]


def cache_sites(model: Any, family: Family, layers: int) -> list[Site]:
    """The one site of a model's keys and values."""
    width = int(model.config.hidden_size)
    return [Site("", "cache", None, layers, width, width, heads=heads(model))]


def logit_map(model: Any) -> tuple[float, float] | None:
    """(scale, softcap): what the model does to its head's product, cap(scale h W^T); None where that is not known."""
    config = model.config
    if str(config.model_type) not in FAMILIES:
        return None
    return 1 / float(getattr(config, "logits_scaling", None) or 1), float(getattr(config, "final_logit_softcapping", None) or 0)


def is_causal(model: Any) -> bool:
    """Whether it is known that no position reads a later one, so that padding on the right needs no mask."""
    kind = str(model.config.model_type)
    return kind in FAMILIES and (FAMILIES[kind] is not BERT or bool(model.config.is_decoder))
