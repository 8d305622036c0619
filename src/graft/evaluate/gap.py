"""How far two models are apart, on the logits of real rows: what a merge or an export promises, measured."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

EXPLAINED = {torch.float64: 1e-6, torch.float32: 1e-3, torch.float16: 0.1, torch.bfloat16: 0.5}
"""The largest logit gap that rounding explains, in standard deviations of the logits: some twice to twenty times what is measured on
SmolLM2 (docs/merging.md), where a few positions of hundreds are far from the mean.
"""


@dataclass(frozen=True)
class Gap:
    """Largest and mean absolute difference of logits, the standard deviation of the logits themselves, the fraction of positions with the
    same next token, and the number of rows.
    """

    largest: float
    mean: float
    spread: float
    agreement: float
    rows: int

    def __str__(self) -> str:
        return (
            f"logits on {self.rows} rows: largest gap {self.largest:.3g}, mean {self.mean:.3g} (their spread is {self.spread:.3g}), "
            f"same next token {self.agreement:.1%}"
        )


@torch.no_grad()
def logits(model: Any, batch: dict[str, Tensor], *, front: Sequence[int] = ()) -> Tensor:
    """Logits [1, T, vocabulary] of one row, in float32 or wider; with the ids `front` before it, those of the row's own positions."""
    device = next(model.parameters()).device
    ids, mask = batch["input_ids"], batch["attention_mask"]
    if front:
        ids = torch.cat([torch.tensor([list(front)]), ids], 1)
        mask = torch.cat([mask.new_ones(1, len(front)), mask], 1)
    found: Tensor = model(input_ids=ids.to(device), attention_mask=mask.to(device)).logits
    found = found[:, len(front) :] if found.dim() == 3 else found[:, None]
    return (found if found.dtype == torch.float64 else found.float()).cpu()


def gap_of(before: Sequence[Tensor], after: Sequence[Tensor]) -> Gap:
    """The gap over all positions of all rows; columns that only `after` has do not count."""
    pairs = [(a, b[..., : a.shape[-1]]) for a, b in zip(before, after, strict=True)]
    differences = torch.cat([(a - b).abs().flatten() for a, b in pairs])
    equal = torch.cat([(a.argmax(-1) == b.argmax(-1)).flatten() for a, b in pairs])
    spread = torch.cat([a.flatten() for a, _ in pairs]).std()
    return Gap(float(differences.max()), float(differences.mean()), float(spread), float(equal.float().mean()), len(pairs))


def bound_of(dtype: torch.dtype, gap: Gap) -> float:
    """The largest gap that rounding explains between two models computed in `dtype` whose logits spread as these do."""
    return EXPLAINED[dtype] * gap.spread
