"""Small trained tensors side by side in one, and their gradients: an update is then a handful of kernels, whatever their number.

    whole = [p_1, 0, p_2, 0, ...], whole.grad likewise, and each p_k and its gradient are views of them

AdamW, clipping and setting to zero are elementwise, so that nothing differs but the order in which the norm of all gradients is summed. A
step of 448 tensors costs the host some milliseconds else, and on one core of a CPU 8 of 38. Each view starts at a multiple of 64 bytes.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn

MOST = 1 << 30  # bytes: while they are moved, tensors exist twice
ALIGNED = 64  # bytes


@contextmanager
def flat(tensors: Sequence[nn.Parameter], wanted: bool = True) -> Iterator[list[nn.Parameter]]:
    """What an optimizer is to step inside the block: one tensor, or the tensors themselves where they are many bytes, few or unlike.

    The gradient of the one stays: it is set to zero, not dropped. After the block each tensor has memory of its own again.
    """
    kinds = {(value.dtype, value.device) for value in tensors}
    size = sum(value.numel() * value.element_size() for value in tensors)
    if not wanted or len(kinds) != 1 or len(tensors) < 2 or size > MOST:
        yield list(tensors)
        return
    step = max(1, ALIGNED // tensors[0].element_size())
    rooms = [-(-value.numel() // step) * step for value in tensors]
    whole = nn.Parameter(tensors[0].new_zeros(sum(rooms)))
    whole.grad = torch.zeros_like(whole)
    for value, mine, slope in zip(tensors, torch.split(whole.detach(), rooms), torch.split(whole.grad, rooms), strict=True):
        here = mine[: value.numel()].view(value.shape)
        here.copy_(value.detach())
        value.data = here
        value.grad = slope[: value.numel()].view(value.shape)
    try:
        yield [whole]
    finally:
        for value in tensors:
            value.data = value.detach().clone()
            value.grad = None
