"""What a plan needs to know of a model, read off its skeleton: sizes of one block, how many blocks, what is outside them.

Numbers are of values, not bytes. A Llama block of width d with an MLP of f has the linear maps query [d, d], key and value [d, kv], and
so on; `queries` and `keys` are the widths of what attention reads, d and kv heads x head dim.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn as nn

from graft.model import families
from graft.site import LINEAR, Site

ATTENDING = ("query", "key", "value", "qkv")
MLP_IN = ("gate", "up", "gate_up")


@dataclass(frozen=True)
class Facts:
    """`linear` are (role, in, out) of one block's maps; `block` and `outside` count parameters of one block and outside all; `packs`
    those of a block that 4 bits can hold. `detour` says that norms compute in a float32 copy of their input. `logits` is whether the loss
    can be made without holding logits (a plain frozen head), `plain` whether all maps are torch's, so that branches are fused with them.
    """

    name: str
    layers: int
    width: int
    vocabulary: int
    queries: int
    keys: int
    heads: int
    inner: int
    gated: bool
    linear: tuple[tuple[str, int, int], ...]
    block: int
    packs: int
    outside: int
    tied: bool
    detour: bool
    logits: bool
    plain: bool

    @property
    def parameters(self) -> int:
        """All of the base."""
        return self.layers * self.block + self.outside

    @property
    def products(self) -> int:
        """Values of one block's linear maps: a token's forward pass takes twice as many operations."""
        return sum(inputs * outputs for _, inputs, outputs in self.linear)


def facts(model: Any, sites: Sequence[Site]) -> Facts:
    """Of a transformers model, which may be without memory, and its sites."""
    layers = max((site.layers for site in sites), default=0)
    linear = tuple((s.role, s.inputs, s.outputs) for s in sites if s.layer == 0 and s.role in LINEAR and s.rows is None)
    keys, dim = families.heads(model)
    heads = int(model.config.num_attention_heads)
    total = sum(torch.Size(families.logical_shape(value)).numel() for value in model.parameters())
    within = sum(torch.Size(shape).numel() for site in sites if site.layer is not None and site.primary for _, shape in site.parameters)
    head = next((site for site in sites if site.role == "head" and site.layer is None), None)
    inner = next((inputs for role, inputs, _ in linear if role == "down"), 0)
    norms = [model.get_submodule(site.path) for site in sites if site.role == "norm" and site.layer == 0]
    return Facts(
        name=str(model.config.model_type),
        layers=layers,
        width=int(model.config.hidden_size),
        vocabulary=int(model.config.vocab_size) if head is None else head.outputs,
        queries=heads * dim,
        keys=keys * dim,
        heads=heads,
        inner=inner,
        gated=any(site.gated for site in sites),
        linear=linear,
        block=within // max(layers, 1),
        packs=sum(inputs * outputs for _, inputs, outputs in linear),
        outside=total - within // max(layers, 1) * layers,
        tied=bool(getattr(model.config, "tie_word_embeddings", False)),
        detour=bool(norms) and not any(isinstance(norm, nn.LayerNorm) for norm in norms),
        logits=head is not None and families.logit_map(model) is not None and not head.bias,
        plain=all(type(model.get_submodule(site.path)) is nn.Linear for site in sites if site.role in LINEAR),
    )
