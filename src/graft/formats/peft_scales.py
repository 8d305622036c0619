"""PEFT's IA3 as IA3.

Keys: `base_model.model.<path>.ia3_l`, [out, 1] where an output is scaled and [1, in] at `feedforward_modules`. The inner activation
of a gated MLP, which we scale at the output of `up`, is scaled by PEFT at the input of `down`: the same numbers at another module.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from graft.errors import AdapterError, TargetError
from graft.formats.codec import ALL, ANY, Chosen, Codec
from graft.formats.ground import Ground, is_matrix
from graft.formats.keys import keys
from graft.formats.leaves import Leaf
from graft.formats.names import cover, matched, names_of, naming
from graft.formats.peft_targets import ROOT, TARGETS, targeted
from graft.method import Method, select
from graft.methods.ia3 import IA3
from graft.site import Site

KEYS = keys(
    used=(*ALL, *TARGETS, "feedforward_modules"),
    neutral=(*ANY, "fan_in_fan_out", "init_ia3_weights"),
)


@dataclass(frozen=True)
class Place:
    """One of our scales and the module at which PEFT has it; `ahead`: PEFT scales that module's input."""

    site: Site
    name: str
    module: Site
    ahead: bool


def places(method: Method, sites: Sequence[Site], ground: Ground) -> list[Place]:
    """Where PEFT has the scales of a method at its sites."""
    downs = {site.layer: site for site in ground.modules if site.role == "down"}
    made = []
    for site in sites:
        (name,) = method.shapes(site)
        inner = site.role == "up" and site.gated and method == IA3() and site.layer in downs
        made.append(Place(site, name, downs[site.layer] if inner else site, inner or name == "i"))
    return made


def config(parts: Sequence[Chosen], ground: Ground) -> dict[str, Any] | None:
    """The IA3 config; None where a module is no whole linear map, or names cannot say which inputs are scaled."""
    if len(parts) != 1:
        return None
    found = places(*parts[0], ground)
    if any(not is_matrix(place.module) or place.module.role == "embedding" for place in found):
        return None
    everything = [site.path for site in ground.modules]
    paths, ahead = ([place.module.path for place in found if place.ahead or both] for both in (True, False))
    for names in (cover(ahead, everything), ahead):
        if {path for path in paths if is_ahead(names, path)} == set(ahead):
            return {
                "target_modules": [*cover([path for path in paths if path not in ahead], everything), *names],
                "feedforward_modules": names,
                "fan_in_fan_out": ground.transposed,
                "init_ia3_weights": True,
            }
    return None


def is_ahead(names: str | Sequence[str], path: str) -> bool:
    """Whether PEFT's `feedforward_modules` name a module: unlike elsewhere, a list's names are ends of the text, at any letter."""
    return matched(names, path) if isinstance(names, str) else any(path.endswith(name) for name in names)


def parts(config: dict[str, Any], ground: Ground, found: Sequence[str]) -> list[Chosen]:
    """IA3() where its own places are meant, else with targets. Raises AdapterError where it cannot act there."""
    sites = targeted(config, ground, found)
    if config.get("feedforward_modules") is None:
        raise AdapterError("its config has no feedforward_modules, which say where inputs are scaled instead of outputs")
    names = names_of(config, "feedforward_modules")
    ahead = [site for site in sites if is_ahead(names, site.path)]
    try:
        own = select(IA3(), ground.sites)
    except TargetError:
        own = []
    if {(place.module, place.ahead) for place in places(IA3(), own, ground)} == {(site, site in ahead) for site in sites}:
        return [(IA3(), own)]
    everything = [site.path for site in ground.modules]
    for inputs in (cover([site.path for site in ahead], everything), [site.path for site in ahead]):
        made = naming(lambda targets, inputs=tuple(inputs): IA3(targets, inputs), sites, ground.sites)  # type: ignore[misc]
        if all(("i" in made.shapes(site)) == (site in ahead) for site in sites):
            return [(made, sites)]
    raise AdapterError("its feedforward_modules cannot be told from its other target_modules by name")


def leaves(method: Method, sites: Sequence[Site], ground: Ground) -> list[Leaf]:
    """One leaf a site."""
    made = []
    for place in places(method, sites, ground):
        shape = (1, place.module.inputs) if place.ahead else (place.module.outputs, 1)
        made.append(Leaf(f"{ROOT}{place.module.path}.ia3_l", shape, place.site, place.name))
    return made


SCALES = Codec("IA3", ROOT, KEYS, config, parts, leaves)
