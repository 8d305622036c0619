"""Verify: the proof that an adapter never touches its base, by the base's full digest after everything that can be done with it.

The adapter is loaded strictly, run, trained for two steps (its own tensors are put back afterwards), routed beside the bare base,
merged and unmerged, and taken off. After each stage but the merge itself the digest must be the first one.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from graft.errors import AdapterError
from graft.model.adapted import Adapted
from graft.model.digest import changed, digests, whole
from graft.model.load_adapter import load
from graft.model.merge import merge, unmerge

Batches = Sequence[dict[str, Tensor]]
STEPS = 2
MERGED = "merged"


@dataclass(frozen=True)
class Stage:
    """One stage: what was done, the digest after it, whether the base is as it was, and a note (what differs, what was left out)."""

    name: str
    digest: str
    equal: bool
    note: str = ""


def verify(model: Any, folder: str | Path, batches: Batches = (), *, force: bool = False) -> list[Stage]:
    """Take the adapter in `folder` through everything on `model`, which is left as it was found.

    `batches` hold a forward's arguments (random ids where there are none). Raises AdapterError if the folder cannot be loaded.
    """
    before = digests(model)
    stages = [Stage("base as loaded", whole(before), True)]
    adapted = load(model, folder, force=force)
    for name, note in exercised(adapted, list(batches) or [made_up(model)]):
        found = digests(model)
        differing = changed(before, found)
        merged = name == MERGED
        stages.append(Stage(name, whole(found), merged or not differing, note or ("" if merged else differing)))
    return stages


def exercised(adapted: Adapted, batches: Batches) -> Iterator[tuple[str, str]]:
    """Do one thing after another; the name of each that is done, and a note."""
    yield "adapter attached", ""
    forward(adapted.model, batches)
    yield "forward", ""
    train(adapted, batches)
    yield f"{STEPS} training steps", ""
    refused = route(adapted, batches)
    yield ("not routed" if refused else "routed"), refused
    if adapted.mergeable:
        yield "not merged", adapted.mergeable
    else:
        merge(adapted)
        yield MERGED, "the base's weights are exchanged, as they should be"
        unmerge(adapted)
        yield "unmerged", ""
    adapted.detach()
    yield "detached", ""


def made_up(model: Any) -> dict[str, Tensor]:
    """Two rows of random ids."""
    ids = torch.randint(0, int(model.get_input_embeddings().weight.shape[0]), (2, 12), generator=torch.Generator().manual_seed(0))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


@torch.no_grad()
def forward(model: Any, batches: Batches) -> None:
    """Run every batch."""
    for batch in batches:
        model(**on(model, batch))


def on(model: Any, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """A batch on the model's device, without labels."""
    return {name: value.to(model.device) for name, value in batch.items() if name != "labels"}


def train(adapted: Adapted, batches: Batches) -> None:
    """A few steps of AdamW on the adapter, and its tensors put back."""
    model, parameters = adapted.model, adapted.parameters()
    kept = [value.detach().clone() for value in parameters]
    modes = [(module, module.training) for module in model.modules()]
    optimizer = torch.optim.AdamW(parameters, lr=1e-3)
    model.train()
    for _ in range(STEPS):
        optimizer.zero_grad()
        for batch in batches:
            model(**on(model, batch)).logits.float().square().mean().backward()
        optimizer.step()
    model.eval()
    for module, training in modes:
        module.training = training
    with torch.no_grad():
        for value, own in zip(parameters, kept, strict=True):
            value.copy_(own)
            value.grad = None


def route(adapted: Adapted, batches: Batches) -> str:
    """Every batch with its rows given to the live adapter, the bare base and a copy in turn; the reason where that cannot be."""
    try:
        adapted.add("copy", adapted.adapter())
        for batch in batches:
            adapted.route([("live", None, "copy")[number % 3] for number in range(len(batch["input_ids"]))])
            forward(adapted.model, [batch])
    except AdapterError as error:
        return str(error)
    finally:
        adapted.route(None)
    return ""
