"""What formats may ask about a transformers model."""

import torch.nn as nn
from torch import Tensor

from graft.formats import Ground
from graft.model import families
from graft.model.base import dense


def ground(model: nn.Module) -> Ground:
    """The model as formats see it."""
    named = dict(model.named_parameters(remove_duplicate=False))

    def value(name: str) -> Tensor | None:
        return dense(named[name]).cpu() if name in named else None

    return Ground(tuple(families.sites(model)), tied(model), value)


def tied(model: nn.Module) -> frozenset[str]:
    """The paths of modules whose weight is another module's too."""
    holders: dict[int, list[str]] = {}
    for path, module in model.named_modules():
        weight = module._parameters.get("weight")
        if weight is not None and "graft" not in path.split("."):
            holders.setdefault(id(weight), []).append(path)
    return frozenset(path for paths in holders.values() if len(paths) > 1 for path in paths)
