"""Prefix tuning: trained keys and values before the text in every layer. Li and Liang 2021, arXiv:2101.00190.

Shapes: flat kv [layers, 2, n, kv heads, head dim]. With `mlp` = h > 0 one MLP shared by all layers makes them in training,
kv = W2 tanh(W1 e + b1) + b2 with e [n, w], W1 [h, w], W2 [layers*2*w, h], w = kv heads * head dim, and is dropped by `finish`.
Keys enter attention after the rotation, so position does not turn them; the text's positions start at n, or at 0 without `shift`.
"""

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
import torch.nn.functional as F

from graft.errors import TargetError
from graft.forms import VirtualTokens
from graft.method import Base, Method, Shapes, Tensors
from graft.site import Site


@dataclass(frozen=True)
class Prefix:
    """`init_kv`: `random` (N(0, 0.02²)), `zero`, or `text` (the keys and values that the frozen model has for `text`)."""

    n: int = 20
    mlp: int = 0
    init_kv: str = "random"
    text: str = ""
    shift: bool = True
    kind: ClassVar[str] = "prefix"
    hint: ClassVar[str] = ": its attention does not go through transformers' attention registry"

    def __post_init__(self) -> None:
        if self.n < 1 or self.mlp < 0:
            raise TargetError(f"n = {self.n}, mlp = {self.mlp}: a prefix needs at least one position, and its MLP no negative width")
        if self.init_kv not in ("random", "zero", "text") or (self.init_kv == "text" and (self.mlp or not self.text)):
            raise TargetError("init_kv is 'random', 'zero' or 'text'; 'text' needs text=... and a flat prefix (mlp=0)")

    def at(self, site: Site) -> bool:
        """At the model's cache."""
        return site.role == "cache"

    def shapes(self, site: Site) -> Shapes:
        """kv, or the embedding and the MLP that make it."""
        heads, dim = site.heads
        if not self.mlp:
            return {"kv": (site.layers, 2, self.n, heads, dim)}
        width = heads * dim
        made = site.layers * 2 * width
        return {"e": (self.n, width), "W1": (self.mlp, width), "b1": (self.mlp,), "W2": (made, self.mlp), "b2": (made,)}

    def init(self, site: Site, base: Base, rng: torch.Generator) -> Tensors:
        """Random, zero or from text; an MLP starts as linear layers do."""
        if self.init_kv == "text":
            return {"kv": base.keys_values(repeated(base.tokens(self.text), self.n))}
        tensors = {name: torch.zeros(shape) for name, shape in self.shapes(site).items()}
        for name, value in tensors.items():
            if name in ("W1", "W2"):
                value.uniform_(-(value.shape[1] ** -0.5), value.shape[1] ** -0.5, generator=rng)
            elif name == "e":
                value.normal_(generator=rng)
            elif name == "kv" and self.init_kv == "random":
                value.normal_(std=0.02, generator=rng)
        return tensors

    def form(self, tensors: Tensors, base: Base) -> VirtualTokens:
        """kv as it is, or out of the MLP."""
        if "kv" in tensors:
            return VirtualTokens(kv=tensors["kv"], shift=self.shift)
        heads, dim = base.site.heads
        flat = F.linear(torch.tanh(F.linear(tensors["e"], tensors["W1"], tensors["b1"])), tensors["W2"], tensors["b2"])
        return VirtualTokens(kv=flat.view(self.n, base.site.layers, 2, heads, dim).permute(1, 2, 0, 3, 4), shift=self.shift)

    def finish(self, tensors: Tensors, base: Base) -> tuple[Method, Tensors]:
        """The flat prefix that the MLP makes."""
        kv = self.form(tensors, base).kv
        return self.finished(), {"kv": kv.detach().contiguous()} if kv is not None else {}

    def finished(self) -> Method:
        """The same prefix without its MLP."""
        return replace(self, mlp=0)


def repeated(ids: torch.Tensor, n: int) -> torch.Tensor:
    """The first n of ids [k], which is repeated if it is shorter."""
    return ids.repeat(-(-n // len(ids)))[:n]
