"""The affine forms of many adapters on the tokens of one batch: two launches for all of them, in plain torch elsewhere.

y'[t] = c[s] y[t] + act(x[t] A[s]^T + a[s]) B[s]^T + b[s]        s: the slot of token t
"""

import importlib.util
from collections.abc import Sequence

import torch
from torch import Tensor

from graft.kernels.slots.stack import GROUP, Stack

__all__ = ["GROUP", "Stack", "joined", "joins", "keep", "make", "run", "takes"]
TRITON = importlib.util.find_spec("triton") is not None
if TRITON:
    from graft.kernels.slots import ahead, launch


def takes(y: Tensor) -> bool:
    """Whether kernels run on outputs like these."""
    return TRITON and launch.takes(y)


def keep(device: torch.device) -> None:
    """Make what launches on a card's current stream share; to be called before any CUDA graph is recorded on it (launch.keep)."""
    if TRITON and device.type == "cuda":
        launch.keep(device)


def make(like: Tensor) -> None:
    """Compile all kernels for values in the dtype and on the card of `like` (ahead.make)."""
    if like.is_cuda and takes(like):
        ahead.make(like)


def run(stack: Stack, s: Tensor, x: Tensor | None, ys: list[Tensor]) -> list[Tensor]:
    """Each module's y' [T, out] of its y [T, out], for tokens in slots s [T] and their x [T, in], where `takes`; 3 modules at most."""
    return launch.run(stack, s, x, ys)


def joins(stack: Stack, x: Tensor, maps: Sequence[tuple[Tensor, Tensor | None]]) -> bool:
    """Whether `joined` can give what the products and `run` give for x [T, in]; of each module its weight [out, in] and bias [out]."""
    return launch.joins(stack, x, maps)


def joined(stack: Stack, s: Tensor, x: Tensor, maps: Sequence[tuple[Tensor, Tensor | None]]) -> list[Tensor]:
    """Each module's y' [T, out] of its own y = x W^T + bias, in two launches with the products."""
    return launch.joined(stack, s, x, maps)
