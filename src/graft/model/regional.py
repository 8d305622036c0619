"""Regional compile: each transformer block of a model compiled by itself, in place, and put back afterwards.

Blocks of one kind share their graphs, so that a model of 32 costs the compiler what two do: the first block is a kind of its own where its
input needs no gradient (nothing is trained below it) while that of the others does. A second length of batches gives one graph more of each
kind, which then serves every length. What adapters hold, their scales and which of them a row wants make no new graph.

In evaluation blocks run as they are: a few forward passes would not earn back graphs of their own.
"""

import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch
import torch.nn as nn
from torch import Tensor

from graft.errors import ModelError, TrainingError
from graft.model import families
from graft.model.foreign import reason
from graft.model.rebuilt import inductor

CHOICES = ("auto", "on", "off")
EARNS = 1.2e16
"""Parameters times tokens trained on from which compiling pays on a GPU. On an H100 a step of a 7B model over 4096 tokens takes 203 ms
compiled and 289 eager: 3.1e-15 s for each parameter and token are saved, and two kinds of blocks cost 36 s before the first step. On slower
cards it pays sooner, and it saves memory from the first step on; on CPUs it costs as much and saves little, if anything.
"""
SETTINGS = {
    "recompile_limit": 64,  # graphs of one class of block: of all methods, kinds and lengths that the process trains
    "skip_fwd_side_effects_in_bwd_under_checkpoint": True,  # what a block's modules pass to each other is passed again, and is the same
}
"""Of dynamo, while blocks are compiled; those that this version of torch knows."""
EXCESS = 4  # graphs beyond what is expected after which blocks are no longer compiled


@dataclass(frozen=True)
class Compiled:
    """What compiling a model's blocks came to: `blocks` of so many `kinds` share `graphs`, which took the compiler so many `seconds`.

    `excess` says why there are more graphs than kinds of blocks and batches, `failed` why the blocks run uncompiled after all: in which
    block, and what the compiler says; each is empty where it is not so.
    """

    blocks: int
    kinds: int
    graphs: int
    seconds: float
    excess: str = ""
    failed: str = ""

    @property
    def notes(self) -> list[str]:
        """What a user should hear."""
        return [text for text in (self.failed, self.excess) if text]


class Ahead(Protocol):
    """Work that is due before the first block runs (graft.model.fused), and whether it waits for that."""

    late: bool

    def prepare(self) -> None:
        """Do it, if it is due."""


def blocks(model: Any) -> dict[str, nn.Module]:
    """The transformer's blocks by path, in order."""
    named = ((path, module, families.place(path)) for path, module in model.named_modules())
    return {path: module for path, module, (layer, ending) in named if layer is not None and not ending}


def pays(model: Any, tokens: int) -> bool:
    """Whether compiling pays for a model that will be trained on so many tokens in all."""
    values = [value for block in blocks(model).values() for value in block.parameters()]
    if not values or not on_gpu(values[0]):
        return False
    return tokens * sum(torch.Size(families.logical_shape(value)).numel() for value in values) >= EARNS


def on_gpu(value: Tensor) -> bool:
    """Whether a tensor is where compiling can pay."""
    return value.is_cuda


class Regional:
    """The blocks of one model, compiled while attached, by `rebuilt.inductor` or another backend. ModelError for a model without any.

    Where a block does not become one graph, or more graphs are made than there are kinds of blocks and batches, that is a TrainingError
    with `strict`, naming the block and the reason; else it is in the report, and all blocks run uncompiled (the second: after `EXCESS`).
    """

    def __init__(self, model: Any, *, backend: Callable[..., Any] | None = None, strict: bool = False, ahead: Ahead | None = None) -> None:
        self.blocks, self.backend, self.strict, self.ahead = blocks(model), backend or inductor, strict, ahead
        if not self.blocks:
            raise ModelError(f"{type(model).__name__} has no transformer blocks that could be compiled: train it with compile off")
        known: dict[object, int] = {}
        self.kinds = {path: known.setdefault(kind(block), len(known)) for path, block in self.blocks.items()}
        self.before: dict[str, Any] = {}
        self.patches = ExitStack()
        self.shapes: dict[int, torch.Size] = {}  # of each kind's first input
        self.expected: set[object] = set()
        self.graphs, self.seconds, self.excess, self.failed = 0, 0.0, "", ""

    @property
    def report(self) -> Compiled:
        """What it came to so far."""
        return Compiled(len(self.blocks), len(set(self.kinds.values())), self.graphs, self.seconds, self.excess, self.failed)

    def attach(self) -> None:
        """Have each block compiled when it first runs in training."""
        from torch import _dynamo as dynamo

        self.patches.enter_context(dynamo.config.patch({name: value for name, value in SETTINGS.items() if hasattr(dynamo.config, name)}))
        for path, block in self.blocks.items():
            compiled = torch.compile(block._call_impl, fullgraph=True, backend=self.backend)
            self.before[path] = vars(block).get("_compiled_call_impl")
            block._compiled_call_impl = partial(self.run, path, block, compiled)
        if self.ahead is not None:
            self.ahead.late = True

    def detach(self) -> None:
        """Put every block back as it was."""
        if self.ahead is not None:
            self.ahead.late = False
        for path, was in self.before.items():
            if was is None:
                vars(self.blocks[path]).pop("_compiled_call_impl", None)
            else:
                self.blocks[path]._compiled_call_impl = was
        self.before.clear()
        self.patches.close()

    def run(self, path: str, block: Any, compiled: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """One block's call."""
        if self.ahead is not None:
            self.ahead.prepare()
        if self.failed or not block.training:
            return block._call_impl(*args, **kwargs)
        new = self.expect(self.kinds[path], [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)])
        before, known, started = made(), reasons(), time.perf_counter()
        try:
            with tracing() if new else nullcontext():
                out = compiled(*args, **kwargs)
        except failures() as error:
            self.fail(path, f"cannot be compiled as one graph ({reason(error)})", error)
            return block._call_impl(*args, **kwargs)
        if made() > before:
            self.seconds += time.perf_counter() - started
            self.count(path, made() - before, [text for text in reasons() if text not in known])
        return out

    def expect(self, number: int, given: list[Tensor]) -> bool:
        """Whether such a call is new: each kind may need a graph, and lengths other than its first one more."""
        shape = given[0].shape
        first = self.shapes.setdefault(number, shape)
        facts = tuple((value.requires_grad, value.dtype, value.dim()) for value in given)
        same = tuple(size == was for size, was in zip(shape, first, strict=True))
        key, before = (number, same, shape[0] == 1, torch.is_grad_enabled(), facts), len(self.expected)
        self.expected.add(key)
        return len(self.expected) > before

    def count(self, path: str, graphs: int, why: list[str]) -> None:
        """More graphs were made at a block, because of what did not fit."""
        self.graphs += graphs
        extra = self.graphs - len(self.expected)
        if extra > 0:
            said = "; ".join(dict.fromkeys(" ".join(text.splitlines()[0].split("#")[0].split(". ")[0].split()) for text in why))
            text = f"was compiled once more for the same kind of input ({said or 'no reason is known'})"
            if self.strict or extra > EXCESS:
                self.fail(path, text, None)
            self.excess = self.excess or f"{path} {text}"

    def fail(self, path: str, why: str, error: BaseException | None) -> None:
        """Go on without compiling, or not at all."""
        if self.strict:
            raise TrainingError(f"{path} {why}: train with compile off, or without strict, to run it uncompiled") from error
        self.failed = f"{path} {why}; all blocks run uncompiled, more slowly and in more memory"


@contextmanager
def regional(
    model: Any, wanted: bool = True, *, backend: Callable[..., Any] | None = None, strict: bool = False, ahead: Ahead | None = None
) -> Iterator[Regional | None]:
    """Compile a model's blocks inside the block, if `wanted`; `ahead` is then done before the first block of a forward, not before all."""
    if not wanted:
        yield None
        return
    made = Regional(model, backend=backend, strict=strict, ahead=ahead)
    made.attach()
    try:
        yield made
    finally:
        made.detach()


@contextmanager
def tracing() -> Iterator[None]:
    """Without the warnings that torch has for itself when it traces what runs without any."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def kind(block: nn.Module) -> object:
    """What a compiler tells blocks apart by: their modules and switches, and which tensors they have, of what shape, trained or not."""
    switches = [
        (
            name,
            type(module),
            sorted((key, value) for key, value in vars(module).items() if isinstance(value, bool | str) and key != "training"),
        )
        for name, module in block.named_modules()
    ]
    tensors = [(name, value.shape, value.dtype, value.requires_grad) for name, value in [*block.named_parameters(), *block.named_buffers()]]
    return repr((switches, tensors))


def failures() -> tuple[type[Exception], ...]:
    """What a compiler raises that cannot do its work."""
    from torch._dynamo.exc import FailOnRecompileLimitHit, TorchDynamoException

    return TorchDynamoException, FailOnRecompileLimitHit


def made() -> int:
    """Graphs that dynamo has made in this process so far."""
    from torch._dynamo.utils import counters

    return counters["stats"]["unique_graphs"]


def reasons() -> list[str]:
    """Why dynamo found that graphs which it has do not fit, in its own words, all in this process so far."""
    from torch._dynamo.utils import guard_failures

    return [text for texts in guard_failures.values() for text in texts]
