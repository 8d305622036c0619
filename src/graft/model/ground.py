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

    return Ground(tuple(families.sites(model)), value)
