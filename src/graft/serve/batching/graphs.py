"""The CUDA graphs of one set of static tensors, as many as may be: each holds some megabytes, and requests choose among many kinds."""

from typing import Any

import torch
from transformers.generation.continuous_batching.utils import CudaGraphBuffer

MOST = 384  # more than are recorded ahead (graft.serve.batching.warm), which are 232 at most


class Graphs(CudaGraphBuffer):  # type: ignore[misc]
    """transformers' store, in which the one used longest ago makes room for the next."""

    def get_graph(self, key: Any) -> Any:
        """The graph of a key, used now; None if there is none."""
        graph = self._storage.pop(key, None)
        if graph is not None:
            self._storage[key] = graph
        return graph

    def set_graph(self, key: Any, graph: Any) -> None:
        """Keep a graph."""
        while len(self._storage) >= MOST:
            if torch.cuda.is_available():
                torch.cuda.synchronize()  # it may run
            self._storage.pop(next(iter(self._storage))).reset()
        self._storage[key] = graph
