"""Pack: the affine forms of many adapters at one module, run together on a batch whose rows want different ones.

    y' = c[s] * y + (act(x' A^T + a) * (of == s)) B^T + b[s]          x' = i[s] * x, or y where the pack reads y

`s` is the slot of each row (or of each token); slot 0 is the bare base. The columns of A and B of all adapters stand side by side,
each tagged with its slot in `of`; the mask comes after the activation, since act(0) need not be 0. Everything that varies between
adapters is a tensor of fixed capacity, so that loading another one changes no shape and recompiles nothing.
"""

from collections.abc import Sequence

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from graft.errors import AdapterError
from graft.forms import ACTIVATIONS, Affine, project

CODES = tuple(ACTIVATIONS)


class Pack(nn.Module):
    """Capacity for `slots` adapters (slot 0 included) and `columns` branch columns; shapes c, b [slots, out], i [slots, in]."""

    c: Tensor
    i: Tensor
    b: Tensor
    A: Tensor
    a: Tensor
    B: Tensor
    of: Tensor
    act: Tensor
    held: Tensor

    def __init__(self, slots: int, columns: int, width: int, inputs: int, outputs: int, like: Tensor) -> None:
        """`width` is the size of what A reads: `inputs`, or `outputs` where the pack reads y."""
        super().__init__()
        self.used: dict[int, frozenset[str]] = {}
        zeros = {"b": (slots, outputs), "A": (columns, width), "a": (columns,), "B": (outputs, columns)}
        for name, shape in zeros.items():
            self.register_buffer(name, like.new_zeros(shape), persistent=False)
        for name, size in {"c": outputs, "i": inputs}.items():
            self.register_buffer(name, like.new_ones(slots, size), persistent=False)
        self.register_buffer("held", torch.zeros(slots, dtype=torch.bool, device=like.device), persistent=False)
        self.register_buffer("of", torch.full((columns,), -1, device=like.device), persistent=False)
        self.register_buffer("act", torch.zeros(columns, dtype=torch.long, device=like.device), persistent=False)

    def load(self, slot: int, form: Affine) -> None:
        """Put a form into a slot, in place. Raises AdapterError where its branch does not fit into the free columns."""
        self.free(slot)
        for name in ("c", "i", "b"):
            value = getattr(form, name)
            if value is not None:
                getattr(self, name)[slot] = value
        if form.A is not None and form.B is not None:
            free = (self.of < 0).nonzero().flatten()
            if len(free) < len(form.A):
                raise AdapterError(f"a branch of rank {len(form.A)} does not fit: {len(free)} columns are free")
            own = free[: len(form.A)]
            self.A[own], self.B[:, own] = form.A.to(self.A.dtype), form.B.to(self.B.dtype)
            self.a[own] = torch.zeros_like(self.a[own]) if form.a is None else form.a.to(self.a.dtype)
            self.of[own], self.act[own] = slot, CODES.index(form.act)
        self.used[slot] = frozenset(form.tensors()) | {form.act}
        self.held[slot] = True

    def free(self, slot: int) -> None:
        """Empty a slot: its rows see the bare base."""
        self.c[slot], self.i[slot], self.b[slot] = 1, 1, 0
        self.of[self.of == slot] = -1
        self.used.pop(slot, None)
        self.held[slot] = False

    def has(self, name: str) -> bool:
        """Whether any slot has this field (or this activation)."""
        return any(name in names for names in self.used.values())

    def scaled(self, s: Tensor, x: Tensor) -> Tensor:
        """x' = i[s] * x, or x itself where no adapter scales inputs."""
        return x * self.i[s] if self.has("i") else x

    def forward(self, s: Tensor, source: Tensor, y: Tensor) -> Tensor:
        """s broadcasts to y's leading dimensions; source is x' [..., in], ids [...], or y; y [..., out] -> y' [..., out].

        Where the forms add to x, x stands for y and the output of the base for source.
        """
        out = y * self.c[s] if self.has("c") else y
        if self.has("A"):
            h = self.activated(project(source, self.A) + self.a)
            h = h * (self.of == s[..., None])
            out = out + F.linear(h, self.B)
        return out + self.b[s] if self.has("b") else out

    def activated(self, h: Tensor) -> Tensor:
        """Each column of h [..., columns] through its own activation."""
        for code, name in enumerate(CODES):
            if name != "identity" and self.has(name):
                h = torch.where(self.act == code, ACTIVATIONS[name](h), h)
        return h


def slots_of(s: Tensor, shape: Sequence[int]) -> Tensor:
    """Bring slots s [rows] (or one a token, [rows, T]) to a module's leading shape [B, ...], B a multiple of rows (beams)."""
    if tuple(s.shape) == tuple(shape):
        return s
    rows = s.repeat_interleave(shape[0] // s.shape[0], 0)
    return rows.reshape(shape[0], *[1] * (len(shape) - 1)) if rows.dim() == 1 else rows
