"""Graft's own type, for what PEFT has no form for: the same two files, with `"peft_type": "GRAFT"`.

`"graft": {"version": 1, "parts": [the methods' configs]}`; tensors `<part>:<path>:<role>:<name>`.
"""

from typing import Any

from graft.adapter import Adapter, Part
from graft.errors import AdapterError
from graft.formats.ground import Ground
from graft.formats.keys import keys
from graft.formats.leaves import Branch, Leaf, drain, fill
from graft.formats.names import checked_pattern
from graft.method import Method, Tensors, select
from graft.method import config as config_of
from graft.methods import from_config
from graft.site import Site

TYPE, VERSION = "GRAFT", 1
KEYS = keys(used=("peft_type", "graft"), neutral=("base_model_name_or_path",))


def write(adapter: Adapter) -> tuple[dict[str, Any], Tensors]:
    """Config and tensors of any adapter."""
    parts = [config_of(method) for method, _ in adapter.parts]
    branches = [branch(number, method, list(sites)) for number, (method, sites) in enumerate(adapter.parts)]
    own = {"peft_type": TYPE, "base_model_name_or_path": adapter.base or None, "graft": {"version": VERSION, "parts": parts}}
    return own, drain(branches, adapter)


def branch(number: int, method: Method, sites: list[Site]) -> Branch:
    """The leaves of one part."""
    shapes = [(site, name, shape) for site in sites for name, shape in method.shapes(site).items()]
    return method, [Leaf(f"{number}:{site.path}:{site.role}:{name}", shape, site, name) for site, name, shape in shapes]


def read(config: dict[str, Any], tensors: Tensors, ground: Ground) -> tuple[Part, ...]:
    """The parts. Raises AdapterError where config, tensors and model do not fit each other exactly."""
    KEYS.check(config)
    own = config.get("graft")
    if not isinstance(own, dict) or set(own) != {"version", "parts"} or not isinstance(own["parts"], list) or not own["parts"]:
        raise AdapterError('its "graft" entry is not {"version": 1, "parts": [method configs]}')
    if own["version"] != VERSION:
        raise AdapterError(f"it is in version {str(own['version'])[:80]} of Graft's format, and this Graft reads {VERSION}: update Graft")
    methods = [method_of(part) for part in own["parts"]]
    return fill([branch(number, method, select(method, ground.sites)) for number, method in enumerate(methods)], tensors)


def method_of(part: Any) -> Method:
    """One part's method."""
    if not isinstance(part, dict):
        raise AdapterError('its "graft" parts are not method configs')
    for key, value in part.items():
        for name in value if isinstance(value, list) else ():
            if isinstance(name, str):
                checked_pattern(key, name)
    return from_config(part)
