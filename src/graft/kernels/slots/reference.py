"""The affine forms of many adapters in plain torch: the truth that the kernels are held to."""

from collections.abc import Sequence

import torch
from torch import Tensor

from graft.kernels.activations import ACTIVATIONS
from graft.kernels.slots.stack import Stack


def run(stack: Stack, s: Tensor, x: Tensor | None, ys: Sequence[Tensor]) -> list[Tensor]:
    """Each module's y' [T, out] of its y [T, out], for tokens in slots s [T] and their x [T, in]."""
    width = 0 if stack.B is None else stack.B.shape[1]
    whole, found, first = hidden(stack, s, x, ys[0]), [], 0
    for place, y in enumerate(ys):
        outs, columns = slice(first, first + stack.outs[place]), slice(place * width, (place + 1) * width)
        out = y.float() if stack.c is None else y.float() * stack.c[s, outs].float()
        out = out if whole is None or stack.B is None else out + whole[:, columns] @ stack.B[outs].float().t()
        out = out if stack.b is None else out + stack.b[s, outs].float()
        found.append(out.to(y.dtype))
        first += stack.outs[place]
    return found


def hidden(stack: Stack, s: Tensor, x: Tensor | None, y: Tensor) -> Tensor | None:
    """h [T, C]: 0 where a token's slot is not the column's."""
    if stack.of is None or stack.act is None:
        return None
    h = torch.zeros(len(s), len(stack.of), device=s.device)
    if stack.A is not None and x is not None:
        h[:, : len(stack.A)] = x.float() @ stack.A.float().t()
    if stack.behind is not None:
        h[:, stack.first :] = y.float() @ stack.behind.float().t()
    h = h if stack.a is None else h + stack.a.float()
    for code, name in stack.acts:
        h = torch.where(stack.act == code, ACTIVATIONS[name](h), h)
    return torch.where(stack.of == s[:, None], h, 0).to(y.dtype).float()
