"""Which card kernels go to: Triton launches them on the current one, wherever their tensors lie."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

HERE: AbstractContextManager[Any] = nullcontext()


def on(value: Tensor) -> AbstractContextManager[Any]:
    """Within it a tensor's card is the current one; it costs next to nothing where it is already, or where the tensor is on none."""
    if not value.is_cuda or value.device.index == torch.cuda.current_device():
        return HERE
    return torch.cuda.device(value.device)
