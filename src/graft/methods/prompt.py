"""Prompt tuning: n trained input embeddings before the text. Lester et al. 2021, arXiv:2104.08691.

Shapes: embeds [n, d]. On a causal model a trained prompt is served as a prefix (its keys and values, computed once). `into`: `words`,
among the words' embeddings, or (on an encoder) `layers`, behind its positions and norm; the text's positions then stay as they were.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch

from graft.errors import TargetError
from graft.forms import VirtualTokens
from graft.method import Base, Shapes, Tensors
from graft.methods.prefix import repeated
from graft.site import Site


@dataclass(frozen=True)
class Prompt:
    """`init_embeds`: `random` (with the spread of the model's own), `vocabulary` (those of random tokens), or `text` (those of `text`)."""

    n: int = 20
    init_embeds: str = "vocabulary"
    text: str = ""
    into: str = "words"
    kind: ClassVar[str] = "prompt"

    def __post_init__(self) -> None:
        if self.n < 1:
            raise TargetError(f"n = {self.n}: a prompt needs at least one position")
        if self.init_embeds not in ("random", "vocabulary", "text") or (self.init_embeds == "text" and not self.text):
            raise TargetError("init_embeds is 'random', 'vocabulary' or 'text'; 'text' needs text=...")
        if self.into not in ("words", "layers"):
            raise TargetError(f"into = {self.into!r}: choose 'words' or 'layers'")

    def at(self, site: Site) -> bool:
        """At the input embeddings, or at what enters the first layer."""
        return site.role == ("entry" if self.into == "layers" else "embedding")

    def shapes(self, site: Site) -> Shapes:
        """embeds [n, d]."""
        return {"embeds": (self.n, site.outputs)}

    def init(self, site: Site, base: Base, rng: torch.Generator) -> Tensors:
        """Random, or embeddings of words."""
        if self.init_embeds == "random":
            spread = float(base.embed(torch.arange(min(site.inputs, 1000))).std())
            return {"embeds": torch.empty(self.n, site.outputs).normal_(std=spread, generator=rng)}
        if self.init_embeds == "text":
            return {"embeds": base.embed(repeated(base.tokens(self.text), self.n))}
        return {"embeds": base.embed(torch.randint(site.inputs, (self.n,), generator=rng))}

    def form(self, tensors: Tensors, base: Base) -> VirtualTokens:
        """embeds."""
        return VirtualTokens(embeds=tensors["embeds"], shift=self.into == "words")
