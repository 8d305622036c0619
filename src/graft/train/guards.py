"""What stops a training run before it does harm: losses and gradients that are not finite, tensors no gradient reaches.

Each check raises TrainingError with the step, the rows or the modules concerned, and what to try; each is called before the
optimizer's step, so that the tensors stay what they were.
"""

from collections.abc import Iterable, Mapping, Sequence
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


def finite_losses(losses: torch.Tensor, row_of: torch.Tensor, rows: Sequence[Placed], when: str) -> None:
    """Raise unless every loss is finite. losses: [N] nats, row_of: [N] index into `rows` of each loss's row."""
    if bool(torch.isfinite(losses.sum())):
        return
    bad = [rows[int(i)] for i in torch.unique(row_of[~torch.isfinite(losses)])] or rows
    advice = "Look at these rows; if they are in order, lower the learning rate."
    raise TrainingError(f"{when}: the loss is not finite on {listed(row.where for row in bad)}; nothing was changed. {advice}")


def finite_gradients(norm: torch.Tensor, named: Mapping[str, torch.nn.Parameter], rows: Sequence[Placed], when: str) -> None:
    """Raise unless the norm over all gradients is finite; names the modules whose gradient is not, and the step's rows."""
    if bool(torch.isfinite(norm)):
        return
    bad = [name for name, tensor in named.items() if tensor.grad is not None and not bool(torch.isfinite(tensor.grad).all())]
    where = listed(dict.fromkeys(module_of(name) for name in bad)) if bad else "its norm over all tensors"
    batch = listed(row.where for row in rows)
    raise TrainingError(f"{when}: the gradient is not finite at {where} (rows {batch}); nothing was changed. Lower the learning rate.")


def with_gradient(named: Mapping[str, torch.nn.Parameter]) -> set[str]:
    """Names of the tensors whose gradient has an element other than zero now."""
    return {name for name, tensor in named.items() if tensor.grad is not None and bool(tensor.grad.count_nonzero())}


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
