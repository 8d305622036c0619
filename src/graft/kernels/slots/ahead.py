"""The kernels of adapters' forms, compiled before they are needed: else the first batch of its size waits up to a second for each.

Left out are those for modules of more than WIDEST columns, or whose inputs and outputs are no multiples of 16.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import torch
from torch import Tensor

from graft.kernels.slots import launch
from graft.kernels.slots.stack import GROUP, Stack

FEW = 16  # inputs, and outputs of the smallest module: what a real one's numbers are multiples of
THREADS = 8  # that compile beside each other
WIDEST = 1024  # columns of a module; kernels for more are compiled when they come


def make(like: Tensor) -> None:
    """Run each kernel once on a few zeros in the dtype and on the device of `like` [any]; later starts take them from disk."""
    first, *others = launches(like)
    first()  # what Triton sets up once is there before others ask for it
    with ThreadPoolExecutor(THREADS) as pool:
        for done in [pool.submit(one) for one in others]:
            done.result()


def launches(like: Tensor) -> Iterator[Callable[[], object]]:
    """What launches one kernel or two, each kernel at least once."""
    for tokens in heights():
        for outs, columns in sizes(tokens):
            yield partial(ran, like, tokens, outs, columns)
        for outs, (_, inputs, *_) in starts(launch.choices(launch.PROJECT, tokens)) if tokens <= launch.LONGEST else ():
            yield partial(projected, like, tokens, outs, inputs)


def ran(like: Tensor, tokens: int, outs: int, columns: int) -> None:
    """Launch `shrink` and `expand` for a module."""
    s = torch.zeros(tokens, dtype=torch.long, device=like.device)
    launch.run(stack_of(outs, columns, FEW, like), s, like.new_zeros(tokens, FEW), [like.new_zeros(tokens, outs)])


def projected(like: Tensor, tokens: int, outs: int, inputs: int) -> None:
    """Launch `project` for a module."""
    s = torch.zeros(tokens, dtype=torch.long, device=like.device)
    launch.project(stack_of(outs, GROUP, inputs, like), s, like.new_zeros(tokens, inputs), [(like.new_zeros(outs, inputs), None)])


def heights() -> list[int]:
    """Numbers of tokens, one for each tile."""
    most = [rows for rows in launch.EXPAND if rows is not None]
    return [FEW, *most, most[-1] + 1]


def sizes(tokens: int) -> Iterator[tuple[int, int]]:
    """Outputs of a module and its columns, for each kernel of so many tokens."""
    for outs, (_, most, *_) in starts(launch.choices(launch.EXPAND, tokens)):
        widths = {0, GROUP, *(min(most * 4**power, WIDEST) for power in range(3))}
        yield from ((outs, width) for width in sorted(widths))
    yield from ((FEW, columns) for columns, _ in starts(launch.choices(launch.SHRINK, tokens)))


def starts(choices: launch.Choices) -> Iterator[tuple[int, tuple[int, ...]]]:
    """Each of some tiles, with a size that it is for."""
    ends = [0, *(int(end) for end, _ in choices[:-1])]
    yield from ((end + FEW, tile) for end, (_, tile) in zip(ends, choices, strict=True))


def stack_of(outs: int, columns: int, inputs: int, like: Tensor) -> Stack:
    """Columns that are nobody's, or none."""
    if not columns:
        return Stack((outs,), b=like.new_zeros(1, outs))
    numbers = torch.full((columns,), -1, device=like.device)
    return Stack((outs,), like.new_zeros(columns, inputs), like.new_zeros(outs, columns), None, numbers, numbers.clamp(min=0))
