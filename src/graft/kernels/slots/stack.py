"""The affine forms of many adapters at modules that read one tensor, side by side."""

from dataclasses import dataclass

from torch import Tensor

GROUP = 8  # columns that have one owner, so that a kernel reads whole pieces of memory


@dataclass(frozen=True)
class Stack:
    """Of m modules with outs[j] outputs each, N in all, and W columns each, C = m W in all: A [C, in]; B [N, W]; a, of, act [C]; c, b
    [slots, N].

    Columns j W to (j + 1) W are module j's; `of` names a column's slot (-1: nobody's, and 0 in B), the same one in each GROUP from the
    first on, `act` the number of its activation among those of `acts`. Slot 0, the base's, has no columns: tokens that pad a kernel's tile
    are taken for its. What is None adds nothing; c is in float32.

    One module alone may have columns that read its y instead of x, by `behind` [C - first, N]: those from `first` on, a multiple of 64. A
    has at most `first` rows then, and columns without one are nobody's.
    """

    outs: tuple[int, ...]
    A: Tensor | None = None
    B: Tensor | None = None
    a: Tensor | None = None
    of: Tensor | None = None
    act: Tensor | None = None
    c: Tensor | None = None
    b: Tensor | None = None
    acts: tuple[tuple[int, str], ...] = ()
    behind: Tensor | None = None
    first: int = 0
