"""A job: one method on one model, trained in one way; what memory and time are computed from."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch

from graft.forms import Form, VirtualTokens
from graft.method import Method, select
from graft.plan.facts import Facts, facts
from graft.plan.serving import forms
from graft.plan.setup import Setup
from graft.site import Site


@dataclass(frozen=True)
class Job:
    """What is trained how: the base, the forms at its sites, the shapes of the trained tensors by site, the setup. `entered` says that a
    gradient reaches the first block's input although nothing is trained there.
    """

    facts: Facts
    forms: Sequence[tuple[Site, Form]]
    shapes: Mapping[Site, Mapping[str, tuple[int, ...]]]
    setup: Setup
    entered: bool = False

    @cached_property
    def every(self) -> list[tuple[int, ...]]:
        """The shapes of all trained tensors."""
        return [shape for shapes in self.shapes.values() for shape in shapes.values()]

    @property
    def trained(self) -> int:
        """Values trained."""
        return sum(torch.Size(shape).numel() for shape in self.every)

    @cached_property
    def virtual(self) -> int:
        """Dummy positions a row: those of a prompt."""
        return sum(0 if form.embeds is None else len(form.embeds) for _, form in self.forms if isinstance(form, VirtualTokens))

    @property
    def positions(self) -> int:
        """Positions of one forward pass, a prompt's included."""
        return self.setup.batch * (self.setup.tokens + self.virtual)

    def under(self, setup: Setup) -> "Job":
        """The same job in another way."""
        return replace(self, setup=setup)


def job(model: Any, sites: Sequence[Site], method: Method, setup: Setup) -> Job:
    """A method on a model, which may be without memory. Raises TargetError where it finds no place."""
    made = forms(model, method, sites)
    return Job(facts(model, sites), made, {site: method.shapes(site) for site in select(method, sites)}, setup)


def bare(model: Any, sites: Sequence[Site], setup: Setup) -> Job:
    """The frozen base with a gradient to its embeddings' output: the least that a method in the first block can cost."""
    return Job(facts(model, sites), (), {}, setup, entered=True)
