"""Scoring: how likely each token of a text is after those before it, by an adapter or the bare base.

    logprob[t] = log softmax(logits[t - 1])[ids[t]]        the first token has none

Texts run in one plain causal forward between two batches of the engine, padded on the right, each with the slot of its adapter and its
virtual tokens before it. Nothing is kept in the engine's cache.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import DynamicCache

from graft.model.base import CACHE
from graft.serve.gate import Gate

AT_ONCE = 256  # positions whose log-probabilities are computed together


@dataclass(frozen=True)
class Scored:
    """A text's `ids`; of each its `logprobs` and the likeliest `alternatives` (id, log-probability) there: None and () of the first."""

    ids: tuple[int, ...]
    logprobs: tuple[float | None, ...]
    alternatives: tuple[tuple[tuple[int, float], ...], ...]


class Asked(NamedTuple):
    """A text to be scored: ids [virtual + text], its adapter's slot, and how many alternatives are told."""

    ids: list[int]
    virtual: int
    slot: int
    told: int


class Filled(DynamicCache):  # type: ignore[misc]
    """A cache of one forward, in which prefixes' keys and values are put."""

    def __init__(self, gate: Gate) -> None:
        super().__init__()
        self.gate = gate

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **more: Any) -> Any:
        """Take a layer's keys and values."""
        return super().update(*self.gate.keys_values(layer_idx, key_states, value_states), layer_idx, *args, **more)


def score(gate: Gate, texts: Sequence[Asked], plain: AbstractContextManager[None]) -> list[Scored]:
    """Score texts, with attention as it is within `plain`."""
    longest, device = max(len(one.ids) for one in texts), gate.model.device
    ids = torch.tensor([[*one.ids, *[0] * (longest - len(one.ids))] for one in texts], device=device)
    slots = torch.tensor([[one.slot] * longest for one in texts], device=device)
    with plain, gate.around(ids, slots) as call:
        logits = gate.model(**call, **{CACHE: Filled(gate)}, use_cache=True).logits
    return [scored(one.ids[one.virtual :], own[one.virtual : len(one.ids) - 1], one.told) for one, own in zip(texts, logits, strict=True)]


def scored(ids: list[int], logits: Tensor, alternatives: int) -> Scored:
    """A text's scores from the logits [T - 1, vocabulary] of all but its last position."""
    found: list[float] = []
    others: list[tuple[tuple[int, float], ...]] = []
    wanted = torch.tensor(ids[1:], device=logits.device)
    for k in range(0, len(wanted), AT_ONCE):
        logs = logits[k : k + AT_ONCE].float().log_softmax(-1)
        found += logs.gather(-1, wanted[k : k + AT_ONCE, None])[:, 0].tolist()
        values, best = logs.topk(min(alternatives, logs.shape[-1]), -1)
        others += [tuple(zip(own, value, strict=True)) for own, value in zip(best.tolist(), values.tolist(), strict=True)]
    return Scored(tuple(ids), (None, *found), ((), *others))


def padded(texts: Sequence[list[int]]) -> int:
    """How many tokens texts make, each as long as the longest."""
    return len(texts) * max(map(len, texts))
