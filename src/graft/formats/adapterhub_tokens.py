"""AdapterHub's prefix and prompt tuning as Prefix and Prompt.

A prefix's keys and values [n, layers, 2, kv heads, head dim] stand in one row, or come out of an MLP: W2 act(W1 e + b1) + b2 (which is
read as what it makes). The text's positions stay as they are: Prefix(shift=False). A file holds the tensors once for the model and once
more a layer. A prompt stands before what enters the layers, which the library has on encoders only: Prompt(into="layers").
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from graft.errors import AdapterError
from graft.formats.adapterhub_places import Chosen, House, Kind, flag, layers_in, not_in_use
from graft.formats.ground import Ground
from graft.formats.keys import keys
from graft.formats.leaves import Leaf, shown
from graft.forms import ACTIVATIONS
from graft.method import Method, Tensors, select
from graft.methods import from_config
from graft.methods.prefix import Prefix
from graft.methods.prompt import Prompt
from graft.site import Site

POOL = "prefix_tuning.prefix_tunings"
MLP = ("wte.weight", "control_trans.0.weight", "control_trans.0.bias", "control_trans.2.weight", "control_trans.2.bias")
ACTS = {"tanh": "tanh", "relu": "relu", "gelu": "gelu", "silu": "silu", "swish": "silu", "leakyrelu": "leaky_relu"}  # theirs: ours
PREFIX_KEYS = keys(
    used=("flat", "prefix_length", "non_linearity", "leave_out", "dropout"),
    neutral=("architecture", "bottleneck_size", "encoder_prefix", "cross_prefix", "shared_gating", "init_weights_seed"),
    off=("use_gating",),
)
PROMPT_KEYS = keys(
    used=("prompt_length", "combine"),
    neutral=("architecture", "prompt_init", "prompt_init_text", "init_weights_seed", "random_uniform_scale"),
)


def prefix_chosen(config: dict[str, Any], ground: Ground, house: House) -> Chosen:
    """A flat Prefix in all layers."""
    not_in_use(config, "dropout", "which acts in training alone, on keys and values: set it to 0 to load the adapter")
    if len(layers_in(config, ground)) != ground.sites[-1].layers:
        raise AdapterError(f"its config says leave_out = {config['leave_out']}: Graft's prefix is in every layer")
    method = from_config({"kind": "prefix", "n": config.get("prefix_length"), "shift": house.encoder})
    return [(method, select(method, ground.sites))]


def prefix_config(parts: Chosen, ground: Ground, house: House) -> dict[str, Any]:
    """The config of a flat prefix."""
    ((method, _), *more) = parts
    if more or not isinstance(method, Prefix) or method.mlp:
        raise AdapterError("AdapterHub's files hold one prefix, made already")
    if method.shift and not house.encoder:
        raise AdapterError("AdapterHub's prefix leaves the text's positions alone, and this one moves them: train it with shift=False")
    plain = {"bottleneck_size": 512, "cross_prefix": True, "dropout": 0.0, "encoder_prefix": True, "init_weights_seed": None}
    made = {"architecture": "prefix_tuning", "flat": True, "leave_out": [], "non_linearity": "tanh", "prefix_length": method.n}
    return plain | made | {"shared_gating": True, "use_gating": False}


def prefix_leaves(method: Method, sites: Sequence[Site], house: House, name: str) -> list[Leaf]:
    """The one tensor, in AdapterHub's order."""
    return [ordered(site, f"{POOL}.{name}.self_prefix.control_trans", *shape) for site in sites for shape in method.shapes(site).values()]


def ordered(site: Site, key: str, layers: int, two: int, n: int, heads: int, dim: int) -> Leaf:
    """kv [layers, 2, n, heads, dim] as [n * layers * 2 * heads * dim]."""

    def outgoing(kv: Tensor) -> Tensor:
        return kv.permute(2, 0, 1, 3, 4)

    def incoming(flat: Tensor) -> Tensor:
        return flat.reshape(n, layers, two, heads, dim).permute(1, 2, 0, 3, 4)

    return Leaf(key, (n * layers * two * heads * dim,), site, "kv", outgoing, incoming)


def copies(name: str, ground: Ground, house: House) -> list[str]:
    """What the file's keys of a prefix begin with in each layer, beside the model's own."""
    layer = {"bert": "encoder.layer", "roberta": "encoder.layer", "gpt2": "h"}.get(ground.kind, "layers")
    return [f"{layer}.{number}.{house.prefix}.prefix_tuning.pool.prefix_tunings.{name}." for number in range(ground.sites[-1].layers)]


def single(tensors: Tensors, name: str, ground: Ground, house: House) -> Tensors:
    """A prefix's tensors once. Raises AdapterError where a layer has others than the model."""
    roots, own = copies(name, ground, house), f"{POOL}.{name}."
    made = {key: value for key, value in tensors.items() if not key.startswith(tuple(roots))}
    for key, value in tensors.items():
        root = next((root for root in roots if key.startswith(root)), None)
        if root is not None and not torch.equal(value, made.get(own + key[len(root) :], value.new_empty(0))):
            raise AdapterError(f"its tensor {shown([key])} differs from the model's own copy")
    return made


def spread(tensors: Tensors, name: str, ground: Ground, house: House) -> Tensors:
    """The other way round: each tensor for the model and for each layer, in memory of its own."""
    own = f"{POOL}.{name}."
    more = {root + key.removeprefix(own): value.clone() for key, value in tensors.items() for root in copies(name, ground, house)}
    return tensors | more


def flattened(tensors: Tensors, name: str, config: dict[str, Any]) -> Tensors:
    """What a prefix's MLP makes, in place of it: `control_trans` [n * layers * 2 * width]."""
    if flag(config, "flat", False):
        return tensors
    root, act = f"{POOL}.{name}.self_prefix.", ACTS.get(str(config.get("non_linearity", "tanh")).lower())
    missing = [root + key for key in MLP if root + key not in tensors]
    if act is None or missing:
        raise AdapterError(
            f"its prefix is made by an MLP without {shown(missing)}" if missing else "its prefix's MLP has an unknown activation"
        )
    e, W1, b1, W2, b2 = (tensors[root + key].double() for key in MLP)
    if not (e.dim() == W1.dim() == W2.dim() == 2 and b1.shape == W1.shape[:1] and b2.shape == W2.shape[:1]) or (
        (e.shape[1], W1.shape[0]) != (W1.shape[1], W2.shape[1])
    ):
        raise AdapterError("its prefix's MLP has shapes that do not fit each other")
    made = F.linear(ACTIVATIONS[act](F.linear(e, W1, b1)), W2, b2).reshape(-1)
    return {key: value for key, value in tensors.items() if key not in [root + key for key in MLP]} | {root + "control_trans": made}


def prompt_chosen(config: dict[str, Any], ground: Ground, house: House) -> Chosen:
    """A Prompt before an encoder's layers."""
    if config.get("combine", "prefix") != "prefix":
        raise AdapterError(f"its config says combine = {str(config['combine'])[:80]}: Graft's prompts stand before the first token")
    if not house.encoder:
        raise AdapterError("AdapterHub has prompts on encoders only")
    method = from_config({"kind": "prompt", "n": config.get("prompt_length"), "init_embeds": "random", "into": "layers"})
    return [(method, select(method, ground.sites))]


def prompt_config(parts: Chosen, ground: Ground, house: House) -> dict[str, Any]:
    """The config of a prompt."""
    ((method, _), *more) = parts
    if more or not isinstance(method, Prompt) or method.into != "layers":
        raise AdapterError("AdapterHub's prompt goes straight into an encoder's layers, and has no other form: train it with into='layers'")
    plain = {"combine": "prefix", "init_weights_seed": None, "prompt_init": "random_uniform", "prompt_init_text": None}
    return plain | {"architecture": "prompt_tuning", "prompt_length": method.n}


def prompt_leaves(method: Method, sites: Sequence[Site], house: House, name: str) -> list[Leaf]:
    """The one tensor [n, d]."""
    key = f"prompt_tuning.prompt_tunings.{name}.prompt_embedding.weight"
    return [Leaf(key, shape, site, tensor) for site in sites for tensor, shape in method.shapes(site).items()]


PREFIXES = Kind(PREFIX_KEYS, prefix_chosen, prefix_config, prefix_leaves)
PROMPTS = Kind(PROMPT_KEYS, prompt_chosen, prompt_config, prompt_leaves)
