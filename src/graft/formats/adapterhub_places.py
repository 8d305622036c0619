"""Where AdapterHub's library hangs its modules, for each family that it shares with Graft, and what both call them.

Keys here and in the other tables have no root (`bert.`, `model.`, `transformer.`): a file has it or not, as the model had that made it.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from graft.errors import AdapterError
from graft.formats.ground import Ground
from graft.formats.keys import Keys
from graft.formats.leaves import Leaf
from graft.method import Method
from graft.methods import LARGEST
from graft.site import Site

LAYER = re.compile(r"^.*?(?:layers|layer|h)\.\d+(?=\.|$)")
Chosen = list[tuple[Method, list[Site]]]


@dataclass(frozen=True)
class House:
    """`attention` and `mlp`: the modules of a layer that hold its bottlenecks; `intermediate` and `output`: our roles at the places
    that LoRA's config calls so (on Llama the two are exchanged); `prefix`: the module that holds a prefix; `encoder`: whether layers
    end with a norm, prompts are possible and positions never move.
    """

    root: str
    attention: str
    mlp: str
    intermediate: str
    output: str
    prefix: str
    encoder: bool = False


def bert(root: str) -> House:
    """BERT's and RoBERTa's."""
    return House(root, "attention.output", "output", "up", "down", "attention.self", encoder=True)


LLAMA = House("model", "attention_adapters", "output_adapters", "down", "up", "self_attn")
GPT2 = House("transformer", "attention_adapters", "output_adapters", "up", "down", "attn")
HOUSES = {"bert": bert("bert"), "roberta": bert("roberta"), "gpt2": GPT2, "llama": LLAMA, "mistral": LLAMA}


def house_of(ground: Ground) -> House:
    """The model's table. Raises AdapterError for a family that one of the two does not have."""
    if ground.kind not in HOUSES:
        raise AdapterError(f"AdapterHub's files are exchanged on {', '.join(HOUSES)}, and this model is {ground.kind!r}")
    return HOUSES[ground.kind]


def bare(key: str, house: House) -> str:
    """A key or path without the root."""
    return key.removeprefix(f"{house.root}.")


def layer_path(site: Site, house: House) -> str:
    """The layer that a site lies in."""
    found = LAYER.match(site.path)
    return bare(found[0] if found else site.path, house)


@dataclass(frozen=True)
class Kind:
    """How one of AdapterHub's architectures and methods of ours are written as each other.

    `chosen` reads the config: methods and their sites; `config` writes it, and raises AdapterError where AdapterHub has no form; `leaves`
    pairs the tensors of one method, under an adapter's name.
    """

    keys: Keys
    chosen: Callable[[dict[str, Any], Ground, House], Chosen]
    config: Callable[[Chosen, Ground, House], dict[str, Any]]
    leaves: Callable[[Method, Sequence[Site], House, str], list[Leaf]]


def layers_in(config: dict[str, Any], ground: Ground) -> list[int]:
    """The layers that an adapter acts in: all but `leave_out`."""
    out = config.get("leave_out") or []
    if not isinstance(out, list) or not all(type(layer) is int for layer in out):
        raise AdapterError(f"its config says leave_out = {str(out)[:80]}, which is no list of layers")
    layers = [layer for layer in range(ground.sites[-1].layers) if layer not in out]
    if not layers:
        raise AdapterError("its config leaves out every layer of this model")
    return layers


def targets(roles: Sequence[str], layers: Sequence[int], ground: Ground) -> tuple[str, ...]:
    """Targets that name these roles in these layers, in one word a role where that is all layers. Raises AdapterError without any."""
    if not roles:
        raise AdapterError("its config names no place for an adapter")
    if len(layers) == ground.sites[-1].layers:
        return tuple(roles)
    return tuple(f"{role}:{layer}" for layer in layers for role in roles)


def left_out(sites: Sequence[Site], ground: Ground) -> list[int]:
    """The layers without any of these sites. Raises AdapterError where the other layers do not all have the same."""
    roles: dict[int, set[str]] = {}
    for site in sites:
        if site.layer is None:
            raise AdapterError(f"AdapterHub has no place for an adapter at {site.path}")
        roles.setdefault(site.layer, set()).add(site.role)
    if len({frozenset(found) for found in roles.values()}) > 1:
        raise AdapterError("AdapterHub's adapters have the same places in every layer, or none in a layer: this one's differ")
    return [layer for layer in range(ground.sites[-1].layers) if layer not in roles]


def flag(config: dict[str, Any], key: str, default: bool) -> bool:
    """A config's yes or no. Raises AdapterError where it is neither."""
    value = config.get(key, default)
    if not isinstance(value, bool):
        raise AdapterError(f"its config says {key} = {str(value)[:80]}, which is neither true nor false")
    return value


def number(config: dict[str, Any], key: str, default: float) -> float:
    """A config's number. Raises AdapterError where it is none that can be used."""
    value: float = config.get(key, default)
    if not is_number(value):
        raise AdapterError(f"its config says {key} = {str(value)[:80]}: Graft has a plain number there")
    return value


def is_number(value: Any) -> bool:
    """Whether a value is a number of a usable size."""
    return not isinstance(value, bool) and isinstance(value, int | float) and abs(value) < LARGEST


def not_in_use(config: dict[str, Any], key: str, why: str) -> None:
    """Refuse a number that is not 0."""
    if number(config, key, 0.0):
        raise AdapterError(f"its config says {key} = {str(config[key])[:80]}, {why}")
