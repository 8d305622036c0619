"""A CUDA graph of work, captured on a stream of its own, and what torch leaves behind where a capture fails.

A capture that fails raises before torch has ended it: the default generator goes on as if kernels were captured, and refuses to draw; the
allocator of the card's memory waits with freed blocks for the capture's end; the capture's stream stays the current one. `mend` ends all
three. No way is known for the allocator of pinned memory, which may go on asking the graph: so that is kept.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import Tensor

FAILED: list[torch.cuda.CUDAGraph] = []
"""Graphs whose capture failed, kept as long as the process, without memory of theirs."""


class Graph:
    """A CUDA graph of the work, and the copies of its inputs."""

    def __init__(self, work: Callable[[Mapping[str, Tensor]], Tensor], inputs: Mapping[str, Tensor], pool: Any, stream: Any) -> None:
        self.inputs = {name: value.clone() for name, value in inputs.items()}
        self.graph, self.pool = torch.cuda.CUDAGraph(), pool or torch.cuda.graph_pool_handle()
        torch.cuda.synchronize()
        current = torch.cuda.current_stream()
        try:
            with unmasked(), torch.cuda.graph(self.graph, pool=self.pool, stream=stream, capture_error_mode="thread_local"):
                self.output = work(self.inputs)
        except BaseException:
            mend(self.graph, self.pool, current)
            raise

    def play(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Copy the inputs in, play, and copy the output out."""
        for name, value in inputs.items():
            self.inputs[name].copy_(value, non_blocking=True)
        self.graph.replay()
        return self.output.clone()


def mend(graph: torch.cuda.CUDAGraph, pool: Any, current: Any) -> None:
    """Go on after a capture into `pool` that failed, with `current` as the current stream; the default generator draws on where it was."""
    FAILED.append(graph)
    graph.reset()
    torch.cuda.set_stream(current)
    device = torch.cuda.current_device()
    generator = torch.cuda.default_generators[device]
    generator.graphsafe_set_state(generator.clone_state())
    end, release = (getattr(torch._C, name, None) for name in ("_cuda_endAllocateToPool", "_cuda_releasePool"))
    with suppress(RuntimeError):  # the capture was ended, or never begun
        if end and release:
            end(device, pool)
            release(device, pool)


@contextmanager
def beside(stream: Any) -> Iterator[None]:
    """Run the block on a stream, if one is given, between what comes before and after it on the current one."""
    if stream is None:
        yield
        return
    current = torch.cuda.current_stream()
    stream.wait_stream(current)
    try:
        with torch.cuda.stream(stream):
            yield
    finally:
        current.wait_stream(stream)


@contextmanager
def unmasked() -> Iterator[None]:
    """Have transformers make the masks that it makes for whole rows without a mask, without looking at numbers on the device.

    It looks whether rows are several texts packed together, which they are not here, and while a graph is recorded it takes for granted
    that they are: every row would get a mask, and a slower attention.
    """
    from transformers import masking_utils

    names = {"is_tracing": lambda *given: False, "find_packed_sequence_indices": lambda *given, **named: None}
    before = {name: getattr(masking_utils, name) for name in names}
    for name, value in names.items():
        setattr(masking_utils, name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(masking_utils, name, value)
