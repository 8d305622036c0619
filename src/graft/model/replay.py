"""Replay: work on the device that is the same each time, recorded once as a CUDA graph, so that a step does not wait for its launches.

Hundreds of small kernels that the host launches one by one take longer than they run. On other devices the work is simply done.
"""

import copy
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from graft.kernels.cards import on


class Replay:
    """`work` reads and writes tensors that stay where they are; it is recorded anew when one that it is given has moved."""

    def __init__(self, work: Callable[[], None]) -> None:
        self.work = work
        self.graph: torch.cuda.CUDAGraph | None = None
        self.places: list[int] = []

    def __call__(self, tensors: Iterable[Tensor]) -> None:
        """Do the work, which depends on these tensors."""
        found = list(tensors)
        with on(found[0]) if found else nullcontext():
            self.done(found)

    def done(self, found: list[Tensor]) -> None:
        """Do it, on the card that is current."""
        places = [value.data_ptr() for value in found]
        if found and found[0].is_cuda and torch.cuda.is_current_stream_capturing():  # a graph cannot be recorded into another
            self.work()
        elif self.graph is None or places != self.places:
            self.work()
            self.graph, self.places = self.recorded() if found and found[0].is_cuda else None, places
        else:
            self.graph.replay()

    def recorded(self) -> torch.cuda.CUDAGraph:
        """The work as a graph."""
        graph = torch.cuda.CUDAGraph()
        usual: Any = torch.cuda.graph.default_capture_stream  # of the card that was current when it was made
        away = usual is not None and usual.device.index != torch.cuda.current_device()
        stream: Any = torch.cuda.Stream() if away else None  # type: ignore[no-untyped-call]
        with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
            self.work()
        return graph

    def __deepcopy__(self, memo: dict[int, object]) -> "Replay":
        """A copy records its own."""
        return Replay(copy.deepcopy(self.work, memo))
