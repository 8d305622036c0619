"""Ground: what a format may ask about the base model that an adapter is read for or saved from."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from graft.site import LINEAR, Site


@dataclass(frozen=True)
class Ground:
    """`sites` in the model's order; `value`: a parameter by its name (dense, on the CPU), or None where the base has none of it; `kind`:
    transformers' name of the architecture, and `model_class` that of the model's class.
    """

    sites: tuple[Site, ...]
    value: Callable[[str], Tensor | None]
    kind: str = ""
    model_class: str = ""

    @property
    def modules(self) -> list[Site]:
        """The sites that are whole modules with parameters of their own: what a foreign file can name."""
        return [site for site in self.sites if site.primary and site.parameters]

    @property
    def transposed(self) -> bool:
        """Whether the linear maps' weights are stored [in, out], as transformers' Conv1D does. Square ones cannot tell."""
        maps = [site for site in self.modules if site.role in LINEAR and site.inputs != site.outputs]
        return any(dict(site.parameters).get("weight") == (site.inputs, site.outputs) for site in maps)


def is_matrix(site: Site) -> bool:
    """Whether the site is a whole module with a weight of two dimensions."""
    return site.primary and len(dict(site.parameters).get("weight", ())) == 2
