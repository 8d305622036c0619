"""PEFT's PROMPT_TUNING and PREFIX_TUNING as Prompt and Prefix; P_TUNING, whose file holds what its encoder made, is read as Prompt.

Key: `prompt_embeddings`, [n, d] for a prompt. For a prefix [n, layers*2*width] with width = kv heads * head dim, read as
(n, layer, key or value, kv head, head dim); the config's `token_dim` is that width and `num_attention_heads` the kv heads.
"""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from graft.errors import AdapterError
from graft.formats.codec import ALL, ANY, Chosen, Codec, read_only
from graft.formats.ground import Ground
from graft.formats.keys import keys
from graft.formats.leaves import Leaf
from graft.method import Method, select
from graft.methods import from_config
from graft.methods.prefix import Prefix
from graft.methods.prompt import Prompt
from graft.site import Site

ROOT, KEY = "base_model.", "prompt_embeddings"
STARTS = {"random": "RANDOM", "vocabulary": "SAMPLE_VOCAB", "text": "TEXT"}  # ours: PEFT's
SIZES = ("num_virtual_tokens", "token_dim", "num_transformer_submodules", "num_attention_heads", "num_layers")
PROMPT_KEYS = keys(
    used=(*ALL, *SIZES, "prompt_tuning_init", "prompt_tuning_init_text"), neutral=(*ANY, "tokenizer_name_or_path", "tokenizer_kwargs")
)
ENCODED_KEYS = keys(
    used=(*ALL, *SIZES),
    neutral=(*ANY, "encoder_reparameterization_type", "encoder_hidden_size", "encoder_num_layers", "encoder_dropout"),
)
PREFIX_KEYS = keys(used=(*ALL, *SIZES, "init_weights"), neutral=(*ANY, "encoder_hidden_size", "prefix_projection"))


def cache(ground: Ground) -> Site:
    """The model's site of keys and values."""
    return next(site for site in ground.sites if site.role == "cache")


def sizes(n: int, width: int, ground: Ground) -> dict[str, Any]:
    """PEFT's five numbers."""
    site = cache(ground)
    return dict(zip(SIZES, (n, width, 1, site.heads[0], site.layers), strict=True))


def check_sizes(config: dict[str, Any], wanted: dict[str, Any], *names: str) -> None:
    """Raise AdapterError where the config's sizes, if it has them, are not this model's."""
    for name in names:
        if config.get(name) is not None and config[name] != wanted[name]:
            raise AdapterError(f"its config says {name} = {str(config[name])[:80]}, this model has {wanted[name]}")


def prompt_config(parts: Sequence[Chosen], ground: Ground) -> dict[str, Any] | None:
    """The PROMPT_TUNING config."""
    (method, sites), *more = parts
    if more or not isinstance(method, Prompt) or len(sites) != 1 or method.into != "words":
        return None
    text = {"prompt_tuning_init_text": method.text, "tokenizer_name_or_path": "unknown"} if method.init_embeds == "text" else {}
    return sizes(method.n, sites[0].outputs, ground) | {"prompt_tuning_init": STARTS[method.init_embeds]} | text


def prompt_parts(config: dict[str, Any], ground: Ground, found: Sequence[str]) -> list[Chosen]:
    """Prompt at the input embeddings."""
    names = {foreign: own for own, foreign in STARTS.items()}
    start, text = names.get(str(config.get("prompt_tuning_init", "RANDOM")), "random"), config.get("prompt_tuning_init_text") or ""
    own = {"init_embeds": start, "text": text} if start != "text" or text else {"init_embeds": "random"}
    made = from_config({"kind": "prompt", "n": config.get("num_virtual_tokens")} | own)
    sites = select(made, ground.sites)
    check_sizes(config, sizes(0, sites[0].outputs, ground), "token_dim", "num_transformer_submodules")
    return [(made, sites)]


def prompt_leaves(method: Method, sites: Sequence[Site], ground: Ground) -> list[Leaf]:
    """The one tensor."""
    return [Leaf(KEY, shape, site, name) for site in sites for name, shape in method.shapes(site).items()]


def prefix_config(parts: Sequence[Chosen], ground: Ground) -> dict[str, Any] | None:
    """The PREFIX_TUNING config; None for a prefix that still has its MLP, remembers a text or leaves positions alone."""
    (method, sites), *more = parts
    if more or not isinstance(method, Prefix) or method.mlp or not method.shift or method.init_kv == "text":
        return None
    heads, dim = sites[0].heads
    start = {"init_weights": "zero"} if method.init_kv == "zero" else {}
    return sizes(method.n, heads * dim, ground) | {"prefix_projection": False} | start


def prefix_parts(config: dict[str, Any], ground: Ground, found: Sequence[str]) -> list[Chosen]:
    """A flat Prefix: PEFT's files hold what its MLP made."""
    start = "zero" if config.get("init_weights") == "zero" else "random"
    made = from_config({"kind": "prefix", "n": config.get("num_virtual_tokens"), "init_kv": start})
    heads, dim = cache(ground).heads
    check_sizes(config, sizes(0, heads * dim, ground), *SIZES[1:])
    return [(made, select(made, ground.sites))]


def prefix_leaves(method: Method, sites: Sequence[Site], ground: Ground) -> list[Leaf]:
    """The one tensor, its dimensions in PEFT's order."""
    return [ordered(site, *shape) for site in sites for shape in method.shapes(site).values()]


def ordered(site: Site, layers: int, two: int, n: int, heads: int, dim: int) -> Leaf:
    """kv [layers, 2, n, heads, dim] as [n, layers*2*heads*dim]."""

    def outgoing(kv: Tensor) -> Tensor:
        return kv.permute(2, 0, 1, 3, 4)

    def incoming(flat: Tensor) -> Tensor:
        return flat.reshape(n, layers, two, heads, dim).permute(1, 2, 0, 3, 4)

    return Leaf(KEY, (n, layers * two * heads * dim), site, "kv", outgoing, incoming)


PROMPTS = Codec("PROMPT_TUNING", ROOT, PROMPT_KEYS, prompt_config, prompt_parts, prompt_leaves)
ENCODED = Codec("P_TUNING", ROOT, ENCODED_KEYS, read_only, prompt_parts, prompt_leaves)
PREFIXES = Codec("PREFIX_TUNING", ROOT, PREFIX_KEYS, prefix_config, prefix_parts, prefix_leaves)
