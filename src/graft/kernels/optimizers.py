"""Optimizers by name: torch's AdamW, and bitsandbytes' AdamW with states in 8 bits, or in pages that move to the host where a GPU is full.

Adapters are small: AdamW's states are 8 bytes a trained parameter, 0.3 GB for LoRA r16 on a 7B model, so that the plain one is the
default; 8-bit states pay where much is trained (last layers, full). Training gives the plain one small
tensors as one (graft.train.flat).
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from graft.errors import TrainingError

OPTIMIZERS = {"adamw": "", "adamw8bit": "AdamW8bit", "paged_adamw": "PagedAdamW", "paged_adamw8bit": "PagedAdamW8bit"}
"""Name -> bitsandbytes' class; torch's own has none."""


def optimizer(name: str, parameters: Sequence[nn.Parameter], rate: float, decay: float) -> Any:
    """The optimizer of that name over the parameters. Raises TrainingError where it is not installed or cannot run on their device."""
    if not OPTIMIZERS[name]:
        fused = all(tensor.device.type in ("cpu", "cuda") for tensor in parameters)
        return torch.optim.AdamW(parameters, lr=rate, weight_decay=decay, fused=fused)
    device = parameters[0].device
    if name.startswith("paged") and device.type == "cpu":
        raise TrainingError(
            f"optimizer {name} moves its states between a GPU and the host, but the model is on the CPU: choose adamw or adamw8bit"
        )
    if any(tensor.dtype != torch.float32 for tensor in parameters):
        raise TrainingError(f"optimizer {name} trains float32 tensors, and these are {parameters[0].dtype}: choose adamw")
    try:
        import bitsandbytes
    except ImportError as error:
        raise TrainingError(f"optimizer {name} needs bitsandbytes: pip install 'graft-peft[nf4]', or choose adamw") from error
    made = getattr(bitsandbytes.optim, OPTIMIZERS[name])
    tried(name, made, device)
    return made(parameters, lr=rate, weight_decay=decay)


def tried(name: str, made: Any, device: torch.device) -> None:
    """One step on a tensor that nobody needs, since a version that has no kernels for this device says so only then."""
    spare = nn.Parameter(torch.zeros(4096, device=device))  # smaller ones keep their states in 32 bits
    spare.grad = torch.zeros_like(spare)
    try:
        made([spare], lr=1e-3).step()
    except (NotImplementedError, RuntimeError, ValueError) as error:
        raise TrainingError(f"optimizer {name} cannot run on {device} with this bitsandbytes ({error}): choose adamw") from error
