"""The activations that a form may have between its two products, by name."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "identity": lambda h: h,
    "relu": F.relu,
    "gelu": F.gelu,
    "silu": F.silu,
    "tanh": torch.tanh,
    "gelu_tanh": lambda h: F.gelu(h, approximate="tanh"),
    "leaky_relu": F.leaky_relu,
}
