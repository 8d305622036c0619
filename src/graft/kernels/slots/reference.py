"""The affine forms of many adapters in plain torch: the truth that the kernels are held to."""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from graft.kernels.slots.stack import Stack

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "gelu": F.gelu,
    "silu": F.silu,
    "tanh": torch.tanh,
    "gelu_tanh": lambda h: F.gelu(h, approximate="tanh"),
    "leaky_relu": F.leaky_relu,
}


def run(stack: Stack, s: Tensor, x: Tensor | None, ys: Sequence[Tensor]) -> list[Tensor]:
    """Each module's y' [T, out] of its y [T, out], for tokens in slots s [T] and their x [T, in]."""
    width = 0 if stack.B is None else stack.B.shape[1]
    found, first = [], 0
    for place, y in enumerate(ys):
        outs, columns = slice(first, first + stack.outs[place]), slice(place * width, (place + 1) * width)
        out = y.float() if stack.c is None else y.float() * stack.c[s, outs].float()
        if stack.A is not None and stack.B is not None and stack.of is not None and x is not None:
            h = x.float() @ stack.A[columns].float().t()
            h = h if stack.a is None else h + stack.a[columns].float()
            for code, name in stack.acts:
                h = torch.where(stack.act[columns] == code, ACTIVATIONS[name](h), h) if stack.act is not None else h
            h = torch.where(stack.of[columns] == s[:, None], h, 0).to(y.dtype).float()
            out = out + h @ stack.B[outs].float().t()
        out = out if stack.b is None else out + stack.b[s, outs].float()
        found.append(out.to(y.dtype))
        first += stack.outs[place]
    return found
