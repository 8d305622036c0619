"""The list of methods. Adding one is its file and one line in `KINDS` (and one in `METHODS` if it has a name of its own)."""

from dataclasses import fields
from typing import Any

from graft.errors import AdapterError
from graft.method import LARGEST, Method, checked
from graft.methods.bottleneck import Bottleneck
from graft.methods.dora import DoRA
from graft.methods.ia3 import IA3
from graft.methods.lora import LoRA
from graft.methods.prefix import Prefix
from graft.methods.prompt import Prompt
from graft.methods.selective import BiasOnly, Selective

__all__ = [
    "IA3",
    "KINDS",
    "LARGEST",
    "METHODS",
    "BiasOnly",
    "Bottleneck",
    "DoRA",
    "LoRA",
    "Prefix",
    "Prompt",
    "Selective",
    "checked",
    "from_config",
]

KINDS: dict[str, type] = {cls.kind: cls for cls in (LoRA, DoRA, Bottleneck, Prefix, Prompt, IA3, BiasOnly, Selective)}

METHODS: dict[str, Method] = {
    "lora": LoRA(),
    "dora": DoRA(),
    "bottleneck": Bottleneck(),
    "prefix": Prefix(),
    "prompt": Prompt(),
    "ia3": IA3(),
    "bias": BiasOnly(add=True),
    "last-k": Selective("last"),
    "norms": Selective("norm"),
    "full": Selective("full"),
}


def from_config(config: dict[str, Any]) -> Method:
    """The method that `graft.method.config` described. Raises AdapterError on an unknown kind or key, or a value of the wrong type."""
    values = dict(config)
    cls = KINDS.get(str(values.pop("kind", "")))
    if cls is None:
        raise AdapterError(f"unknown method {config.get('kind')!r}: this version knows {', '.join(KINDS)}")
    types = {field.name: field.type for field in fields(cls)}
    for name, value in values.items():
        if name not in types:
            raise AdapterError(f"{config['kind']}: unknown key {name!r}: it has {', '.join(types)}")
        values[name] = checked(f"{config['kind']}.{name}", value, types[name])
    return cls(**values)  # type: ignore[no-any-return]
