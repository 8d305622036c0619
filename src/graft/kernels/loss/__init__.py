"""Losses of next tokens from hidden states: in chunks where the head is frozen, the plain version where it is trained."""

from torch import Tensor

from graft.kernels.loss import chunked, reference

__all__ = ["token_losses"]


def token_losses(hidden: Tensor, weight: Tensor, labels: Tensor, scale: float = 1.0, softcap: float = 0.0) -> Tensor:
    """The loss [N] of labels [N], from hidden [N, d] and the head's weight [V, d]."""
    if weight.requires_grad:
        return reference.token_losses(hidden, weight, labels, scale, softcap)
    return chunked.token_losses(hidden, weight, labels, scale, softcap)
