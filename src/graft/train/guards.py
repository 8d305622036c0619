"""What stops a training run before it does harm: losses and gradients that are not finite, tensors no gradient reaches.

Each check raises TrainingError with the step, the rows or the modules concerned, and what to try; each is called before the
optimizer's step, so that the tensors stay what they were.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from graft.errors import TrainingError

SHOWN = 5


class Placed(Protocol):
    """A data row that knows where it came from, such as `train.jsonl:31`."""

    @property
    def where(self) -> str:
        """File and line."""
        ...


@dataclass(frozen=True)
class Seen:
    """The losses [N] of one batch, nats, and which of its rows each stands in, [N] on the CPU."""

    rows: Sequence[Placed]
    losses: torch.Tensor
    row_of: torch.Tensor


def finite_losses(total: float, batches: Iterable[Seen], when: str) -> None:
    """Raise unless the sum over all losses of these batches, `total`, is finite; names the rows whose loss is not."""
    if math.isfinite(total):
        return
    bad = [seen.rows[int(i)] for seen in batches for i in torch.unique(seen.row_of[~torch.isfinite(seen.losses).cpu()])]
    advice = "Look at these rows; if they are in order, lower the learning rate."
    raise TrainingError(f"{when}: the loss is not finite on {listed(row.where for row in bad)}; nothing was changed. {advice}")


def finite_gradients(norm: float, named: Mapping[str, torch.nn.Parameter], rows: Sequence[Placed], when: str) -> None:
    """Raise unless the norm over all gradients is finite; names the modules whose gradient is not, and the step's rows."""
    if math.isfinite(norm):
        return
    bad = [name for name, tensor in named.items() if tensor.grad is not None and not bool(torch.isfinite(tensor.grad).all())]
    where = listed(dict.fromkeys(module_of(name) for name in bad)) if bad else "its norm over all tensors"
    batch = listed(row.where for row in rows)
    raise TrainingError(f"{when}: the gradient is not finite at {where} (rows {batch}); nothing was changed. Lower the learning rate.")


def with_gradient(named: Mapping[str, torch.nn.Parameter]) -> set[str]:
    """Names of the tensors whose gradient has an element other than zero now."""
    counts = {name: tensor.grad.count_nonzero() for name, tensor in named.items() if tensor.grad is not None}
    known = torch.stack(list(counts.values())).tolist() if counts else []  # read at once
    return {name for name, count in zip(counts, known, strict=True) if count}


def reached(named: Iterable[str], touched: set[str], steps: int) -> None:
    """Raise if a module has trainable tensors and none of them is in `touched`, those with a gradient in the first steps.

    It is a matter of whole modules: LoRA's A has no gradient while B is zero, and that is right.
    """
    modules = dict.fromkeys(module_of(name) for name in named)
    alive = {module_of(name) for name in touched}
    silent = [module for module in modules if module not in alive]
    if silent:
        text = f"no gradient reached {listed(silent)} in the first {steps} steps, so training would not change it"
        raise TrainingError(f"{text}. Is the adapter attached to the model that runs, and is that part of the model in use?")


def module_of(name: str) -> str:
    """The module a tensor belongs to: `layers.0.q_proj.graft.A` -> `layers.0.q_proj`; of the model itself, the tensor's name."""
    return name.split(".graft.")[0] if ".graft." in name else name.rpartition(".")[0].removesuffix("graft") or name


def listed(names: Iterable[str]) -> str:
    """The first names and how many more there are."""
    every = list(names)
    more = f" and {len(every) - SHOWN} more" if len(every) > SHOWN else ""
    return ", ".join(every[:SHOWN]) + more
