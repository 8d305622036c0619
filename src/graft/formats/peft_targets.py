"""Which modules a PEFT config means: `target_modules`, `exclude_modules`, `layers_to_transform` and `layers_pattern`."""

import re
from collections.abc import Collection, Sequence
from typing import Any

from graft.errors import AdapterError
from graft.formats.ground import Ground, is_matrix
from graft.formats.leaves import shown
from graft.formats.names import checked_pattern, matched, names_of
from graft.formats.peft_saved import excluded
from graft.site import LINEAR, Site

ROOT = "base_model.model."
TARGETS = ("target_modules", "exclude_modules")
LAYERS = ("layers_to_transform", "layers_pattern")
HELD = ".lora_A.weight"


def targeted(config: dict[str, Any], ground: Ground, found: Sequence[str]) -> list[Site]:
    """The linear maps and embeddings that the config names; "all-linear" takes what the file holds beside the layers' linear maps."""
    sites = [site for site in named(config, ground, found) if is_matrix(site)]
    if not sites:
        raise no_match(config)
    return sites


def named(config: dict[str, Any], ground: Ground, found: Sequence[str]) -> list[Site]:
    """All modules with parameters that the config names."""
    names: str | Collection[str] = names_of(config, "target_modules")
    without = names_of(config, "exclude_modules")
    check_layers(config, names)
    if isinstance(names, str) and names.lower() == "all-linear":
        held = {key[len(ROOT) : -len(HELD)] for key in found if key.endswith(HELD)}
        chosen = [site for site in ground.modules if site.role in LINEAR or site.path in held]
    else:
        names = names if isinstance(names, str) else frozenset(names)
        chosen = [site for site in ground.modules if matched(names, site.path)]
    chosen = [site for site in chosen if not matched(without, site.path) and not excluded(config, site.path)]
    return [site for site in chosen if in_layers(config, names, site.path)]


def no_match(config: dict[str, Any]) -> AdapterError:
    """The error where nothing is left to adapt."""
    names = names_of(config, "target_modules")
    where = f" in layers_to_transform {str(config['layers_to_transform'])[:80]}" if config.get("layers_to_transform") else ""
    return AdapterError(f"its target_modules ({shown([names] if isinstance(names, str) else names)}) match no module of this model{where}")


def check_layers(config: dict[str, Any], names: str | Collection[str]) -> None:
    """Raise AdapterError unless the two keys about layers have a meaning."""
    layers, patterns = config.get("layers_to_transform"), names_of(config, "layers_pattern")
    numbers = layers if isinstance(layers, list) else [] if layers is None else [layers]
    if not all(isinstance(number, int) and not isinstance(number, bool) for number in numbers):
        raise AdapterError(f"layers_to_transform = {str(layers)[:80]} is neither a number nor a list of numbers")
    if patterns and layers is None:
        raise AdapterError("it has layers_pattern without layers_to_transform")
    if isinstance(names, str) and layers is not None:
        raise AdapterError("it has layers_to_transform beside target_modules that are no list of names, which peft refuses")
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        checked_pattern("layers_pattern", pattern)


def in_layers(config: dict[str, Any], names: str | Collection[str], path: str) -> bool:
    """Whether a module lies in the layers to transform; a whole path among the targets is taken wherever it lies."""
    layers = config.get("layers_to_transform")
    if layers is None or layers == [] or path in names:
        return True
    patterns = names_of(config, "layers_pattern") or [r"[^.]*"]
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        found = re.match(rf"(?:^|.*?\.){pattern}\.(?P<idx>\d+)\.", path)
        if found:
            return int(found["idx"]) in (layers if isinstance(layers, list) else [layers])
    return False
