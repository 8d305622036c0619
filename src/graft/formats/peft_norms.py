"""PEFT's LN_TUNING as Selective: norms (or other modules that its targets name) trained as a whole.

Keys: `base_model.model.<path>.ln_tuning_layers.<parameter>`, in the module's own layout.
"""

from collections.abc import Sequence
from typing import Any

from graft.errors import AdapterError
from graft.formats.codec import ALL, ANY, Chosen, Codec
from graft.formats.ground import Ground
from graft.formats.keys import keys
from graft.formats.leaves import Leaf, shown
from graft.formats.names import cover, matched, names_of
from graft.formats.peft_saved import selective
from graft.formats.peft_targets import ROOT, TARGETS, named, no_match
from graft.method import Method
from graft.site import Site

KEYS = keys(used=(*ALL, *TARGETS), neutral=ANY)


def config(parts: Sequence[Chosen], ground: Ground) -> dict[str, Any] | None:
    """The LN_TUNING config; None for what is not just norms."""
    sites = [site for _, chosen in parts for site in chosen]
    if len(parts) != 1 or not sites or any(site.role != "norm" for site in sites):
        return None
    return {"target_modules": cover([site.path for site in sites], [site.path for site in ground.modules])}


def parts(config: dict[str, Any], ground: Ground, found: Sequence[str]) -> list[Chosen]:
    """Selective at the modules that the config names. Raises AdapterError where a name is a module that holds others."""
    sites, names = named(config, ground, found), names_of(config, "target_modules")
    if not sites:
        raise no_match(config)
    parents = {path for site in ground.modules for path in prefixes(site.path)}
    held = sorted(path for path in parents if matched(names, path))
    if held:
        raise AdapterError(f"its target_modules name {shown(held)}, which holds other modules: Graft reads LN_TUNING of single modules")
    return [(selective(sites, ground), sites)]


def prefixes(path: str) -> list[str]:
    """The paths of the modules that a path lies in."""
    parts = path.split(".")
    return [".".join(parts[:k]) for k in range(1, len(parts))]


def leaves(method: Method, sites: Sequence[Site], ground: Ground) -> list[Leaf]:
    """One leaf a parameter."""
    return [
        Leaf(f"{ROOT}{site.path}.ln_tuning_layers.{name}", shape, site, name)
        for site in sites
        for name, shape in method.shapes(site).items()
    ]


NORMS = Codec("LN_TUNING", ROOT, KEYS, config, parts, leaves)
