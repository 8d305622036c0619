"""Virtual tokens on the device, by slot: rows of embeddings (prompts) and of keys and values (prefixes), as many as there are tokens.

A request's virtual tokens are ids above the vocabulary, vocabulary + j for the j-th, whatever its adapter: the slot of a token says whose
they are, `where[slot, j]` in which row it lies. All else is the engine's: pages, chunks, sharing between requests of one adapter.
"""

import torch
from torch import Tensor

from graft.forms import VirtualTokens
from graft.pack import place_of

AT_FIRST = 512  # rows; one takes what a token takes in the cache, or a row of embeddings
LONGEST = 16  # virtual tokens of a slot, at first; doubled when they no longer suffice


class Rows:
    """A tensor whose rows (its dimension `dim`) are taken and given back by so many slots; row 0 is nobody's.

    At first there are as many as all slots would take if each had as many as the first, up to AT_FIRST: what grows makes recorded graphs
    stale.
    """

    def __init__(self, dim: int, slots: int) -> None:
        self.dim, self.slots = dim, slots
        self.value: Tensor | None = None
        self.spare: list[int] = []

    def take(self, given: Tensor) -> list[int]:
        """Put given rows where there is room, and say where."""
        n, dim = given.shape[self.dim], self.dim
        if len(self.spare) < n:
            old = 1 if self.value is None else self.value.shape[dim]
            shape = list(given.shape)
            shape[dim] = old + max(old, n, min(self.slots * n, AT_FIRST) if self.value is None else 0)
            wider = given.new_zeros(shape)
            if self.value is not None:
                wider.narrow(dim, 0, old).copy_(self.value)
            self.spare += range(old, shape[dim])
            self.value = wider
        own, self.spare = self.spare[:n], self.spare[n:]
        if self.value is not None:
            self.value.index_copy_(dim, torch.tensor(own, device=given.device), given)
        return own

    def free(self, own: list[int]) -> None:
        """Give rows back; the memory too, where they were the last."""
        self.spare = sorted(self.spare + own)
        if self.value is not None and len(self.spare) == self.value.shape[self.dim] - 1:
            self.value, self.spare = None, []


class VirtualRows:
    """where [slots, longest]; caches, embeds [slots] bool; back [slots]: by how much the text's positions are not shifted.

    Rows: keys and values [layers, 2, rows, heads, head dim], embeddings [rows, d], in `dtype`.
    """

    def __init__(self, slots: int, device: torch.device, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self.kv, self.embeddings = Rows(2, slots - 1), Rows(0, slots - 1)
        self.where = torch.zeros(slots, LONGEST, dtype=torch.long, device=device)
        self.caches = torch.zeros(slots, dtype=torch.bool, device=device)
        self.embeds = torch.zeros(slots, dtype=torch.bool, device=device)
        self.back = torch.zeros(slots, dtype=torch.int32, device=device)
        self.held: dict[int, tuple[Rows, list[int]]] = {}

    def load(self, slot: int, virtual: VirtualTokens) -> None:
        """Put an adapter's virtual tokens into an empty slot."""
        given, rows, flag = (virtual.kv, self.kv, self.caches) if virtual.embeds is None else (virtual.embeds, self.embeddings, self.embeds)
        if given is None:
            return
        own = rows.take(given.to(self.where.device, self.dtype))
        if len(own) > self.where.shape[1]:
            wider = self.where.new_zeros(len(self.where), max(len(own), 2 * self.where.shape[1]))
            wider[:, : self.where.shape[1]] = self.where
            self.where = wider
        self.where[slot, : len(own)] = torch.tensor(own, device=self.where.device)
        flag[slot] = True
        self.back[slot] = 0 if virtual.shift else len(own)
        self.held[slot] = rows, own

    def free(self, slot: int) -> None:
        """Empty a slot."""
        rows, own = self.held.pop(slot, (None, []))
        if rows is not None:
            rows.free(own)
        self.where[slot], self.caches[slot], self.embeds[slot], self.back[slot] = 0, False, False, 0

    def state(self) -> tuple[object, ...]:
        """What a recorded graph depends on: which tensors there are, where, and how they lie."""
        return tuple(map(place_of, (self.kv.value, self.embeddings.value, self.where, self.caches, self.embeds, self.back)))


class Present:
    """The virtual tokens among ids [rows, T]: which they are, and where theirs lie."""

    def __init__(self, rows: VirtualRows, ids: Tensor, slots: Tensor, vocabulary: int) -> None:
        virtual = ids >= vocabulary
        self.own = rows.where[slots, (ids - vocabulary).clamp(0, rows.where.shape[1] - 1).long()]
        self.caches, self.embeds = virtual & rows.caches[slots], virtual & rows.embeds[slots]
        self.kv, self.embeddings = rows.kv.value, rows.embeddings.value

    def embedded(self, out: Tensor) -> Tensor:
        """The embeddings' output [rows, T, d] with those of prompts."""
        if self.embeddings is None:
            return out
        return torch.where(self.embeds[..., None], self.embeddings[self.own * self.embeds], out)

    def keys_values(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """A layer's keys and values [rows, heads, T, head dim] with those of prefixes."""
        if self.kv is None:
            return keys, values
        given = self.kv[layer][:, self.own * self.caches].transpose(2, 3)
        here = self.caches[:, None, :, None]
        return torch.where(here, given[0], keys), torch.where(here, given[1], values)
