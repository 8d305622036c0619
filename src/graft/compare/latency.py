"""How long one forward takes: batch 1 x 128 tokens, no cache, logits at every position; the median, in milliseconds.

It is what a user waits for before the first token of an answer. Random token ids: the time does not depend on them.
"""

import statistics
import time

import torch
from torch import nn

LENGTH = 128
WARM = 2
LEAST, MOST = 5, 30  # timed passes: at least LEAST, then until PATIENCE seconds or MOST
PATIENCE = 2.0


@torch.inference_mode()
def forward_ms(model: nn.Module, *, length: int = LENGTH) -> float:
    """Median milliseconds of a forward of [1, length] token ids through a transformers model in eval mode."""
    device = next(model.parameters()).device
    vocabulary = int(model.get_input_embeddings().weight.shape[0])  # type: ignore[operator]
    ids = torch.randint(vocabulary, (1, length), generator=torch.Generator().manual_seed(0)).to(device)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    for _ in range(WARM):
        _timed(model, inputs, device)
    times: list[float] = []
    while len(times) < LEAST or (sum(times) < PATIENCE and len(times) < MOST):
        times.append(_timed(model, inputs, device))
    return 1000 * statistics.median(times)


def _timed(model: nn.Module, inputs: dict[str, torch.Tensor], device: torch.device) -> float:
    """Seconds of one forward."""
    _settle(device)
    started = time.perf_counter()
    model(**inputs, use_cache=False)
    _settle(device)
    return time.perf_counter() - started


def _settle(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
