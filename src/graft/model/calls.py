"""A module's call: its input among the arguments, its output proper among what it returns, and their leading dimensions."""

from typing import Any

import torch
from torch import Tensor


def leading(x: Tensor) -> torch.Size:
    """The leading shape of a module's input: all of ids, all but the last dimension of activations."""
    return x.shape[:-1] if x.is_floating_point() else x.shape


def for_rows(x: Tensor, rows: int) -> Tensor:
    """A tensor that all rows share [1, ...] as one for each [rows, ...]; any other as it is."""
    return x.expand(rows, *x.shape[1:]) if x.shape[0] == 1 < rows else x


def first(out: Any) -> Tensor:
    """A module's output proper, the first of a tuple."""
    y: Tensor = out[0] if isinstance(out, tuple) else out
    return y


def with_output(y: Tensor, out: Any) -> Any:
    """The module's output with its proper part replaced."""
    return (y, *out[1:]) if isinstance(out, tuple) else y


def with_input(x: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The call's arguments with the first replaced."""
    if args:
        return (x, *args[1:]), kwargs
    return args, kwargs | {next(iter(kwargs)): x}
