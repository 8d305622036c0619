"""PEFT's `modules_to_save` as a second part that trains whole modules: a classifier's head, or the norms.

Keys: `<root><path>.<parameter>`, in the module's own layout. For the sequence and token classification tasks PEFT adds
`classifier` and `score` to the names, whether or not the model has them.
"""

import re
from collections.abc import Sequence
from typing import Any

from graft.adapter import Part
from graft.errors import AdapterError
from graft.formats.ground import Ground
from graft.formats.leaves import Leaf, shown
from graft.formats.names import cover, names_of
from graft.method import Method
from graft.methods.selective import Selective
from graft.site import Site

CLASSIFIERS = ("classifier", "score")
CLASSIFYING = ("SEQ_CLS", "TOKEN_CLS")
CHOICES = (Selective("head"), Selective("norm"))


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


def inside(path: str, name: str) -> bool:
    """Whether a path, or what it lies in, ends with a name: how PEFT looks for modules to save."""
    parts = path.split(".")
    return any(".".join(parts[:k]).endswith(name) for k in range(1, len(parts) + 1))


def head(config: dict[str, Any], ground: Ground) -> tuple[Method, list[Site]] | None:
    """The part that `modules_to_save` names, if any. Raises AdapterError where Graft has no method for just those modules."""
    names = saved_names(config)
    for name in names:
        if name not in CLASSIFIERS and not any(inside(site.path, name) for site in ground.modules):
            raise AdapterError(f"its modules_to_save name {shown([name])}, which is no module of this model")
    sites = [site for site in ground.modules if any(inside(site.path, name) for name in names)]
    if not sites:
        return None
    tied = [site.path for site in sites if site.tied]
    if tied:
        raise AdapterError(f"it saves {shown(tied)} as a module of its own, which this model shares with another: untie the base first")
    for method in CHOICES:
        if [site for site in ground.sites if method.at(site)] == sites:
            return method, sites
    raise AdapterError(
        f"its modules_to_save name {shown([site.path for site in sites])}: Graft trains heads or norms as a whole, all of them"
    )


def fields(part: Part, main: Part, ground: Ground) -> dict[str, Any] | None:
    """`modules_to_save` for a second part; None where PEFT has no form for it beside the main part."""
    method, sites = part
    if method not in CHOICES or any(site.tied for site in sites) or set(sites) & set(main[1]):
        return None
    paths = [site.path for site in sites]
    if method == Selective("head"):  # a RoBERTa head of two modules is one to PEFT
        names = list(dict.fromkeys(path.split(".")[0] for path in paths))
    else:
        names = cover(paths, [site.path for site in ground.modules])
    held = {site for site in ground.modules if any(inside(site.path, name) for name in names)}
    return {"modules_to_save": names} if held == set(sites) else None


def leaves(root: str, method: Method, sites: Sequence[Site]) -> list[Leaf]:
    """One leaf a parameter."""
    return [Leaf(f"{root}{site.path}.{name}", shape, site, name) for site in sites for name, shape in method.shapes(site).items()]
