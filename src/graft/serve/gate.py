"""The gate: what a batch of the engine is to the adapters in a model's slots, before and within a forward.

The engine packs tokens of many requests into one row [1, T]. At the root each token gets its slot, ids of virtual tokens become ids that
the embeddings know, and positions of texts that their prefix does not shift are moved back; at the embeddings and in the cache virtual
tokens get what is theirs. All of that is left out where the batch needs none of it (`Needs`), and a batch of the bare base alone runs
through no slot, so that it costs nothing that adapters are there. No value is looked at on the host: a recorded CUDA graph serves every
batch with the same needs.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from graft.model.wiring import Wiring
from graft.serve.batching import token_rows
from graft.serve.sampling import Draws
from graft.serve.shelf import Entry
from graft.serve.virtual import Present, VirtualRows


class Needs(NamedTuple):
    """Whether a batch has tokens of any adapter, virtual tokens, and texts that their prefix does not shift."""

    adapters: bool = False
    virtual: bool = False
    back: bool = False


class Gate:
    """The hooks of one served model. Row 0 of the engine's numbers is each token's slot."""

    def __init__(self, model: Any, wiring: Wiring, rows: VirtualRows) -> None:
        self.model, self.wiring, self.routing, self.rows = model, wiring, wiring.routing, rows
        self.vocabulary = int(model.get_input_embeddings().weight.shape[0])
        self.needs = Needs()
        self.present: Present | None = None
        self.handles = [
            model.register_forward_pre_hook(self.enter, with_kwargs=True),
            model.register_forward_hook(self.leave),
            model.get_input_embeddings().register_forward_hook(self.embedded),
        ]

    def remove(self) -> None:
        """Take the hooks off."""
        for handle in self.handles:
            handle.remove()

    def enter(self, model: Any, args: tuple[Any, ...], call: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Before a forward of the engine."""
        self.wiring.bypass(not self.needs.adapters)
        rows = token_rows(call) if self.needs.adapters else None
        if rows is None:
            return None
        slots = rows[:1].long()
        self.routing.slots = slots
        self.routing.kept = slots[:, call["logits_to_keep"].long()] if call.get("logits_to_keep") is not None else slots
        changed = {}
        if self.needs.virtual:
            self.present = Present(self.rows, call["input_ids"], slots, self.vocabulary)
            changed["input_ids"] = torch.where(call["input_ids"] >= self.vocabulary, 0, call["input_ids"])
        if self.needs.back:
            changed["position_ids"] = (call["position_ids"] - self.rows.back[slots]).clamp_min(0)
        return args, call | changed

    @contextmanager
    def around(self, ids: Tensor, slots: Tensor) -> Iterator[dict[str, Tensor]]:
        """The call of a plain forward of ids [rows, T] with a slot each, virtual ones included."""
        where = torch.arange(ids.shape[1], device=ids.device).expand_as(ids) - self.rows.back[slots]
        before, self.needs = self.needs, Needs(adapters=True)  # those of the last batch are not this forward's
        self.routing.slots, self.present = slots, Present(self.rows, ids, slots, self.vocabulary)
        try:
            yield {"input_ids": torch.where(ids >= self.vocabulary, 0, ids), "position_ids": where.clamp_min(0)}
        finally:
            self.needs, self.routing.slots, self.present = before, None, None

    def leave(self, model: Any, args: tuple[Any, ...], out: Any) -> None:
        """After a forward: what is left here is no other's."""
        self.routing.slots = self.routing.kept = self.present = None

    def embedded(self, module: Any, args: tuple[Any, ...], out: Tensor) -> Tensor:
        """What leaves the embeddings."""
        return out if self.present is None else self.present.embedded(out)

    def keys_values(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """What enters the cache."""
        return (keys, values) if self.present is None else self.present.keys_values(layer, keys, values)


def likely(resident: Iterable[Entry], last: Draws) -> list[tuple[tuple[Needs, Draws], bool]]:
    """What batches will likely need, and whether those of single new tokens do too: greedy ones, and what the last one drew.

    The bare base; adapters, where slots have any; prompts with virtual tokens, where one of them has.
    """
    there = list(resident)
    needs = [(Needs(), True)] + [(Needs(adapters=True), True)] * bool(there)
    if any(entry.virtual for entry in there):
        needs.append((Needs(adapters=True, virtual=True, back=any(entry.unshifted for entry in there)), False))
    return [((need, drawn), single) for drawn in dict.fromkeys([Draws(), last]) for need, single in needs]
