"""What formats may ask about a transformers model."""

from typing import Any

from torch import Tensor

from graft.formats import Ground
from graft.model import families
from graft.model.base import dense


def ground(model: Any) -> Ground:
    """The model as formats see it."""
    named = dict(model.named_parameters(remove_duplicate=False))

    def value(name: str) -> Tensor | None:
        return dense(named[name]).cpu() if name in named else None

    return Ground(tuple(families.sites(model)), value, str(model.config.model_type), type(model).__name__)
