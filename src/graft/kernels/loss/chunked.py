"""The same losses with a frozen head, in chunks: no more than `CHUNK` rows of logits exist at any time, and none is kept.

The gradient of each row's own loss to its hidden state is made while its logits are at hand,

    dl_n/dh_n = scale ((softmax(z_n) - onehot(label_n)) cap'(z_n)) W

and waits, [N, d], for the factor that the backward pass brings. W gets no gradient, so a third of the head's products is not run.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from graft.kernels.loss.reference import logits_of

CHUNK = 1024  # rows of logits at a time: 131 MB in float32 at a vocabulary of 32,000


class Chunked(torch.autograd.Function):
    """losses [N] of labels [N] from hidden [N, d]; a gradient for hidden alone."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, labels: Tensor, scale: float, softcap: float) -> Tensor:
        """Chunk after chunk; the gradient is made only if it will be asked for."""
        needed = ctx.needs_input_grad[0]
        losses = hidden.new_empty(len(labels), dtype=torch.promote_types(hidden.dtype, torch.float32))
        slopes = torch.empty_like(hidden) if needed else None
        for start in range(0, len(labels), CHUNK):
            rows = slice(start, start + CHUNK)
            z = logits_of(hidden[rows], weight, scale, softcap)
            total, picked = torch.logsumexp(z, -1, keepdim=True), labels[rows, None]
            losses[rows] = (total - z.gather(-1, picked)).squeeze(-1)
            if slopes is not None:
                slopes[rows] = slope(z, total, picked, scale, softcap).to(hidden.dtype) @ weight
        ctx.save_for_backward(slopes)
        return losses

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, None, None, None, None]:
        """Each row's gradient times its loss's."""
        (slopes,) = ctx.saved_tensors
        return None if slopes is None else slopes * grads[0][:, None].to(slopes.dtype), None, None, None, None


def slope(z: Tensor, total: Tensor, picked: Tensor, scale: float, softcap: float) -> Tensor:
    """dl/d(h W^T), [n, V]: the softmax less one at the label, through the cap and the scale."""
    cap = 1 - (z / softcap).square() if softcap else None
    p = torch.exp(z - total)
    p.scatter_add_(-1, picked, p.new_full(picked.shape, -1.0))
    p = p if cap is None else p * cap
    return p if scale == 1.0 else p * scale


def token_losses(hidden: Tensor, weight: Tensor, labels: Tensor, scale: float = 1.0, softcap: float = 0.0) -> Tensor:
    """The loss [N] of each label, differentiable in `hidden` only: `weight` is frozen."""
    losses: Tensor = Chunked.apply(hidden, weight, labels, scale, softcap)  # type: ignore[no-untyped-call]
    return losses
