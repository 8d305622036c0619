"""Every kernel of adapters' forms, compiled before it is needed: else the first batch of its size waits a second for each."""

from collections.abc import Iterator

import torch
from torch import Tensor

from graft.kernels.slots import launch
from graft.kernels.slots.stack import GROUP, Stack

FEW = 16  # inputs, and outputs of the smallest module: what a real one's numbers are multiples of
WIDEST = 1024  # columns of a module; kernels for more are compiled when they come


def make(like: Tensor) -> None:
    """Run each kernel once on a few zeros in the dtype and on the device of `like` [any]: at first half a minute, then from disk."""
    for tokens in heights():
        s = torch.zeros(tokens, dtype=torch.long, device=like.device)
        for outs, columns in sizes(tokens):
            launch.run(stack_of(outs, columns, like), s, like.new_zeros(tokens, FEW), [like.new_zeros(tokens, outs)])


def heights() -> list[int]:
    """Numbers of tokens, one for each tile."""
    most = [rows for rows in launch.EXPAND if rows is not None]
    return [FEW, *most, most[-1] + 1]


def sizes(tokens: int) -> Iterator[tuple[int, int]]:
    """Outputs of a module and its columns, for each kernel of so many tokens."""
    for outs, (_, most, *_) in rows(launch.EXPAND, tokens):
        widths = {0, GROUP, *(min(most * 4**power, WIDEST) for power in range(3))}
        yield from ((outs, width) for width in sorted(widths))
    yield from ((FEW, columns) for columns, _ in rows(launch.SHRINK, tokens))


def rows(table: launch.Tiles, tokens: int) -> Iterator[tuple[int, tuple[int, ...]]]:
    """The rows of a table for so many tokens, each with a size that it is for."""
    size = FEW
    key = next((most for most in table if most is not None and tokens <= most), None)
    for end, tile in table[key]:
        yield size, tile
        size = 0 if end == launch.ANY else int(end) + FEW


def stack_of(outs: int, columns: int, like: Tensor) -> Stack:
    """Columns that are nobody's, or none."""
    if not columns:
        return Stack((outs,), b=like.new_zeros(1, outs))
    numbers = torch.full((columns,), -1, device=like.device)
    return Stack((outs,), like.new_zeros(columns, FEW), like.new_zeros(outs, columns), None, numbers, numbers.clamp(min=0))
