"""What rides on an engine of continuous batching, and how large the engine is made."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from torch import Tensor

from graft.errors import ServeError


class Scheduled(NamedTuple):
    """One request's share of the next batch: so many tokens, up to `position`; `new`: whether a token follows them."""

    name: str
    length: int
    position: int
    new: bool


class Guest(Protocol):
    """What rides on the engine. All is called from its thread."""

    rows: int
    outputs: int

    def between(self) -> None:
        """Before each batch is scheduled: what must not happen while one runs, as loading an adapter."""

    def fill(self, batch: Sequence[Scheduled], rows: Tensor) -> Hashable:
        """Write rows [rows, width] (int32, on the host) for a batch. What is returned decides which CUDA graph may run it."""

    def variants(self) -> Sequence[tuple[Hashable, bool]]:
        """What `fill` will likely return, and whether for batches of single new tokens too: graphs for it are recorded ahead."""

    def assume(self, variant: Hashable) -> None:
        """The batch filled last runs as one for which `fill` has returned this."""

    def choose(self, logits: Tensor, rows: Tensor) -> Tensor:
        """The next tokens from logits [n, vocabulary] and their rows [rows, n]: int32 [1, n], or more rows of outputs below."""

    def keys_values(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """The layer's new keys and values [1, heads, T, head dim], as they are to be cached."""

    def found(self, name: str, tokens: int) -> None:
        """So many tokens of a request that begins were found in the cache."""

    def deliver(self, name: str, tokens: list[int], row: Tensor | None, *, finished: bool, error: str) -> None:
        """All tokens of a request so far, and the outputs [outputs] that came with the last (int32, on the host); or why it failed."""

    def gone(self, name: str) -> None:
        """A cancelled request runs no longer."""

    def died(self, reason: str) -> None:
        """The engine's thread ended by an error; nothing runs any more."""


@dataclass(frozen=True)
class Room:
    """How large the engine is made: `cached` tokens of keys and values in pages of `page`, `batch` tokens and `requests` a step.

    `graphs` and `overlap` switch CUDA graphs and asynchronous batching; None leaves that to transformers. `warm`: adapters'
    kernels are compiled and, where paged attention runs, graphs of the bare base's batches recorded before the first request, other graphs
    while nothing runs. `lean`: norms and rotations run compiled; None means on a GPU.
    """

    cached: int = 4096
    batch: int = 256
    requests: int = 64
    page: int = 16
    share: bool = True
    graphs: bool | None = None
    overlap: bool | None = None
    warm: bool = True
    lean: bool | None = None

    def __post_init__(self) -> None:
        for name, least in (("page", 1), ("cached", self.page), ("batch", 1), ("requests", 1)):
            if getattr(self, name) < least:
                raise ServeError(f"{name} is {getattr(self, name)}: it must be at least {least}")
