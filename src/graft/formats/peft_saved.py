"""PEFT's `modules_to_save` as a Selective part, which trains whole modules: a classifier's head, norms, embeddings, any others.

Keys: `<root><path>.<parameter>`, in the module's own layout. For the sequence and token classification tasks PEFT adds
`classifier` and `score` to the names, whether or not the model has them. A name may be of a module that holds others.

Tied weights: a saved head becomes a copy of its own, as with us. Saved embeddings leave the head as it was, which we have no form
for, unless `ensure_weight_tying` is on: then the head follows them, as with us, and the file holds their weight twice.
"""

import re
from collections.abc import Sequence
from typing import Any

from graft.errors import AdapterError
from graft.formats.codec import Chosen
from graft.formats.ground import Ground
from graft.formats.leaves import Leaf, shown
from graft.formats.names import cover, names_of, naming
from graft.method import Method
from graft.methods.selective import Selective
from graft.site import Site

CLASSIFIERS = ("classifier", "score")
CLASSIFYING = ("SEQ_CLS", "TOKEN_CLS")
CHOICES = (Selective("head"), Selective("norm"))
TIEABLE = ("embed_tokens", "lm_head")  # the only names at which PEFT looks for ties


def saved_names(config: dict[str, Any]) -> list[str]:
    """The config's names, PEFT's own additions included."""
    names = names_of(config, "modules_to_save")
    if isinstance(names, str):
        raise AdapterError("modules_to_save is not a list of strings")
    own = CLASSIFIERS if config.get("task_type") in CLASSIFYING else ()
    return list(dict.fromkeys([*names, *own]))


def excluded(config: dict[str, Any], path: str) -> bool:
    """Whether a module is saved as a whole, or lies in one that is, and therefore no target."""
    return any(re.match(rf"(^|.*\.){re.escape(name)}($|\..*)", path) for name in saved_names(config))


def holders(path: str, names: Sequence[str]) -> list[str]:
    """The module, and those it lies in, that PEFT saves: whose paths end with a name."""
    parts = path.split(".")
    prefixes = [".".join(parts[:k]) for k in range(1, len(parts) + 1)]
    return [prefix for prefix in prefixes if any(prefix.endswith(name) for name in names)]


def selective(sites: Sequence[Site], ground: Ground) -> Method:
    """The Selective that trains exactly these modules."""
    for method in CHOICES:
        if [site for site in ground.sites if method.at(site)] == list(sites):
            return method
    return naming(lambda targets: Selective(targets=targets), sites, ground.sites)


def part(config: dict[str, Any], ground: Ground) -> Chosen | None:
    """The part that `modules_to_save` names, if any. Raises AdapterError where Graft has no form for it."""
    names = saved_names(config)
    for name in names:
        if name not in CLASSIFIERS and not any(holders(site.path, [name]) for site in ground.modules):
            raise AdapterError(f"its modules_to_save name {shown([name])}, which is no module of this model")
    sites = [site for site in ground.modules if holders(site.path, names)]
    nested = [site.path for site in sites if len(holders(site.path, names)) > 1]
    if nested:
        raise AdapterError(f"its modules_to_save name {shown(nested)} twice, by itself and by a module that holds it")
    sites = tied(sites, config, ground)
    return (selective(sites, ground), sites) if sites else None


def tied(sites: list[Site], config: dict[str, Any], ground: Ground) -> list[Site]:
    """The modules that are trained once ties are considered. Raises AdapterError for a tie that PEFT breaks and we keep."""
    followers, together = [site for site in ground.modules if site.tied], config.get("ensure_weight_tying", False)
    if not isinstance(together, bool):
        raise AdapterError(f"its config says ensure_weight_tying = {str(together)[:80]}, which is neither true nor false")
    embeddings = [site for site in ground.modules if site.role == "embedding"]
    if not followers or not embeddings:
        return sites
    names = saved_names(config)
    if together and any(name.split(".")[-1] in TIEABLE for name in names):
        return [site for site in ground.modules if (site in sites or site in embeddings) and site not in followers]
    if together and aims_at_a_tie(config):
        raise AdapterError("its config says ensure_weight_tying for adapted embeddings, which Graft cannot run: it ties whole modules only")
    if set(embeddings) & set(sites) and not set(followers) <= set(sites):
        raise AdapterError(
            f"it saves {shown([site.path for site in embeddings])} without {shown([site.path for site in followers])}, which share one "
            "weight in this model, and lets go of that tie, which Graft keeps: set ensure_weight_tying, save both, or untie the base first"
        )
    return sites


def aims_at_a_tie(config: dict[str, Any]) -> bool:
    """Whether PEFT finds a tied module among the targets."""
    names = names_of(config, "target_modules")
    if isinstance(names, str):
        return any(re.fullmatch(names, name) for name in TIEABLE)
    return any(name.split(".")[-1] in TIEABLE for name in names)


def fields(chosen: Sequence[Site], main: Sequence[Site], ground: Ground, *, tying: bool) -> dict[str, Any] | None:
    """`modules_to_save` for these sites; None where PEFT has no form for them beside the main part's. `tying`: it can keep ties."""
    followers = [site for site in ground.modules if site.tied]
    follow = any(site.role == "embedding" for site in chosen) and any(site not in chosen for site in followers)
    if set(chosen) & set(main) or (follow and not (tying and any(site.path.split(".")[-1] in TIEABLE for site in chosen))):
        return None
    paths = [site.path for site in chosen]
    shortest = cover(paths, [site.path for site in ground.modules])
    tops = list(dict.fromkeys(path.split(".")[0] for path in paths))  # a RoBERTa head of two modules is one to PEFT
    for names in (tops, shortest, paths):
        if {site for site in ground.modules if holders(site.path, names)} == set(chosen):
            return {"modules_to_save": names} | ({"ensure_weight_tying": True} if follow else {})
    return None


def leaves(root: str, method: Method, sites: Sequence[Site], ground: Ground, *, following: bool = False) -> list[Leaf]:
    """One leaf a parameter; those of tied modules that follow, which the file repeats, too."""
    made = [Leaf(f"{root}{site.path}.{name}", shape, site, name) for site in sites for name, shape in method.shapes(site).items()]
    sources = [site for site in sites if site.role == "embedding"] if following else []
    followers = [site for site in ground.modules if site.tied and site not in sites]
    return made + [Leaf(f"{root}{tie.path}.weight", method.shapes(one)["weight"], one, "weight") for one in sources for tie in followers]
