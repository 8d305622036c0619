"""The loss of next tokens, from the hidden states that enter the head: the plain torch version, which holds all logits at once.

    l_n = logsumexp(z_n) - z_n[label_n]          z = cap(scale h W^T)          cap(z) = softcap tanh(z / softcap), or z

h [N, d], W [V, d], labels [N], losses [N] in float32 (float64 where h is). The product is taken in h's dtype, all else in the losses'.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def token_losses(hidden: Tensor, weight: Tensor, labels: Tensor, scale: float = 1.0, softcap: float = 0.0) -> Tensor:
    """The loss [N] of each label, differentiable in `hidden` and `weight`."""
    return F.cross_entropy(logits_of(hidden, weight, scale, softcap), labels, reduction="none")


def logits_of(hidden: Tensor, weight: Tensor, scale: float, softcap: float) -> Tensor:
    """z [N, V] in the losses' dtype."""
    z = F.linear(hidden, weight).to(torch.promote_types(hidden.dtype, torch.float32))
    z = z if scale == 1.0 else z * scale
    return softcap * torch.tanh(z / softcap) if softcap else z
