"""AdapterHub's own files (library `adapters`): `adapter_config.json`, `adapter.safetensors`, `model_head.safetensors`.

The adapter's name is part of every key. The library writes pickles unless told otherwise, which Graft never opens: `scripts/adapterhub.py`
converts them, where that library is installed. A head is read as a part that trains it, unless it is the base's own.
"""

from typing import Any

import torch
from packaging.version import InvalidVersion, Version

from graft.adapter import Adapter, Part
from graft.errors import AdapterError
from graft.formats.adapterhub_bottleneck import BOTTLENECKS, LEGACY
from graft.formats.adapterhub_low_rank import LOW_RANK, joined, parted
from graft.formats.adapterhub_places import House, Kind, bare, house_of
from graft.formats.adapterhub_tokens import PREFIXES, PROMPTS, flattened, single, spread
from graft.formats.ground import Ground
from graft.formats.leaves import Branch, Leaf, drain, fill, shown
from graft.method import Tensors
from graft.methods.selective import Selective

WEIGHTS, HEAD = "adapter.safetensors", "model_head.safetensors"
PICKLES = {WEIGHTS: "pytorch_adapter.bin", HEAD: "pytorch_model_head.bin"}
CONVERT = "convert it with scripts/adapterhub.py, where AdapterHub's library is installed"
VERSION = "adapters.1.3.0"  # whose files these are, as written
FAULTY = Version("1.1.0")  # before it, a LoRA was scaled by 1, whatever its alpha
NOTE = "adapterhub"  # the note that keeps the adapter's name
TOP = ("config", "hidden_size", "model_class", "model_name", "model_type", "name", "version", "config_id", "type")
ARCHITECTURES: dict[Any, Kind] = {None: BOTTLENECKS, "lora": LOW_RANK, "prefix_tuning": PREFIXES, "prompt_tuning": PROMPTS}
KINDS = {"bottleneck": BOTTLENECKS, "lora": LOW_RANK, "ia3": LOW_RANK, "prefix": PREFIXES, "prompt": PROMPTS}


def recognised(config: dict[str, Any]) -> bool:
    """Whether a folder's config is one of AdapterHub's."""
    return "peft_type" not in config and isinstance(config.get("config"), dict) and "model_type" in config


def read(config: dict[str, Any], tensors: Tensors, head: Tensors, ground: Ground) -> tuple[Part, ...]:
    """The parts. Raises AdapterError where anything of it would be lost."""
    house, name = house_of(ground), name_in(config, ground)
    own = repaired(config)
    architecture = own.get("architecture")
    kind = ARCHITECTURES.get(architecture) if isinstance(architecture, str | None) else None
    if kind is None:
        raise AdapterError(f"its architecture is {shown([str(architecture)])}: Graft reads bottleneck, lora, prefix and prompt")
    kind.keys.check(own)
    branches: list[Branch] = [(method, kind.leaves(method, sites, house, name)) for method, sites in kind.chosen(own, ground, house)]
    found = {bare(key, house): value for key, value in tensors.items()}
    if kind is PREFIXES:
        found = flattened(single(found, name, ground, house), name, own)
    found = parted(found, [leaf.key for _, leaves in branches for leaf in leaves])
    return fill(branches, found) + head_part(head, ground)


def name_in(config: dict[str, Any], ground: Ground) -> str:
    """The adapter's name. Raises AdapterError where the config is for another model, or has keys that Graft does not know."""
    unknown = [key for key in config if key not in TOP]
    if unknown:
        raise AdapterError(f"its {shown(unknown)} is a key that Graft does not know, so that what it means would be lost")
    for key, own in (("model_type", ground.kind), ("hidden_size", ground.sites[-1].outputs)):
        if config.get(key) not in (own, None):
            raise AdapterError(f"its config says {key} = {str(config[key])[:80]}, this model has {own}")
    name = config.get("name")
    if not isinstance(name, str) or not name or "." in name:
        raise AdapterError("its config has no name, which its tensors' keys hold")
    return name


def repaired(config: dict[str, Any]) -> dict[str, Any]:
    """The inner config as the library itself reads it today: older versions meant other things by two of its words."""
    own, version = dict(config["config"]), config.get("version")
    act = str(own.get("non_linearity"))
    if version is None and "non_linearity" in own:
        own["non_linearity"] = LEGACY.get(act, act)
    if own.get("architecture") == "lora" and str(version).startswith("adapters."):
        try:
            old = Version(str(version).removeprefix("adapters.")) < FAULTY
        except InvalidVersion as error:
            raise AdapterError(f"its version is {str(version)[:80]}, which is none") from error
        own["alpha"] = own.get("r") if old else own.get("alpha", 8)
    return own


def head_part(head: Tensors, ground: Ground) -> tuple[Part, ...]:
    """The head as a trained part; none where there is no head, or it is the base's own."""
    if all(is_own(ground.value(key), value) for key, value in head.items()):
        return ()
    method = Selective("head")
    sites = [site for site in ground.sites if method.at(site)]
    if any(key.startswith("heads.") for key in head):
        raise AdapterError(f"its head ({shown(list(head))}) is one of AdapterHub's own, which a transformers model has not: remove {HEAD}")
    if any(site.tied for site in sites):
        raise AdapterError(f"its {HEAD} holds a head of its own, which this model shares with its embeddings: untie the base first")
    return fill([(method, [leaf for site in sites for leaf in head_leaves(site.path, method.shapes(site), site)])], head)


def head_leaves(path: str, shapes: dict[str, tuple[int, ...]], site: Any) -> list[Leaf]:
    """A head's parameters, by their own names."""
    return [Leaf(f"{path}.{name}", shape, site, name) for name, shape in shapes.items()]


def is_own(base: torch.Tensor | None, value: torch.Tensor) -> bool:
    """Whether a tensor is what the base has."""
    return base is not None and base.shape == value.shape and torch.equal(base.to(torch.bfloat16), value.to(torch.bfloat16))


def write(adapter: Adapter, ground: Ground, name: str) -> tuple[dict[str, Any], dict[str, Tensors]]:
    """The config and the files' tensors. Raises AdapterError, saying what, where AdapterHub has no form for the adapter."""
    house, head = house_of(ground), [part for part in adapter.parts if part[0] == Selective("head")]
    parts = [part for part in adapter.parts if part[0] != Selective("head")]
    kinds = {part[0].kind for part in parts}
    if len(kinds) != 1 or not kinds <= set(KINDS):
        raise AdapterError(
            f"AdapterHub has no form for {' + '.join(sorted(kinds)) or 'a head alone'}: it has {', '.join(KINDS)}, one at a time"
        )
    kind = KINDS[kinds.pop()]
    config = kind.config([(method, list(sites)) for method, sites in parts], ground, house)
    branches: list[Branch] = [(method, kind.leaves(method, list(sites), house, name)) for method, sites in parts]
    tensors = joined(drain(branches, Adapter(tuple(parts))), [leaf.key for _, leaves in branches for leaf in leaves])
    tensors = spread(tensors, name, ground, house) if kind is PREFIXES else tensors
    files = {WEIGHTS: {rooted(key, house, ground): value for key, value in tensors.items()}}
    for method, sites in head:
        leaves = [leaf for site in sites for leaf in head_leaves(site.path, method.shapes(site), site)]
        files[HEAD] = drain([(method, leaves)], Adapter(((method, sites),)))
    return {"config": config} | described(adapter, ground, name), files


def described(adapter: Adapter, ground: Ground, name: str) -> dict[str, Any]:
    """What the library says of the model."""
    model = {"model_class": ground.model_class, "model_name": adapter.base, "model_type": ground.kind}
    return model | {"hidden_size": ground.sites[-1].outputs, "name": name, "version": VERSION}


def rooted(key: str, house: House, ground: Ground) -> str:
    """A key with the root, if this model has it."""
    has = any(site.path.startswith(f"{house.root}.") for site in ground.sites)
    return f"{house.root}.{key}" if has else key
