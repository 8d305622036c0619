"""What passes between slots: which adapter each row wants, and one module's input on its way to another's slot."""

import torch
from torch import Tensor

from graft.errors import AdapterError


class Routing:
    """Which adapter each row of the batch wants: `slots` [rows] (or [rows, T]), or None for the live one on all rows.

    `virtual` are the rows' keys and values [layers, 2, rows, heads, n, head dim], which of them each row sees [rows, n], and whether
    they shift its text [rows, 1]. `kept` are the slots of the positions whose logits are asked for, where these are not all.
    `stale` says that the live adapter may have been trained since its slot was filled.
    """

    def __init__(self) -> None:
        self.slots: Tensor | None = None
        self.kept: Tensor | None = None
        self.virtual: tuple[Tensor | None, Tensor | None, Tensor | int] = (None, None, 1)
        self.stale = True
        self.seen: tuple[Tensor, frozenset[int]] | None = None  # which occur, in what they were found

    def present(self) -> frozenset[int] | None:
        """The slots that occur, found once for each tensor; None where to look is to wait for a device, or nothing may depend on values."""
        if self.slots is None or self.slots.device.type != "cpu" or torch.compiler.is_compiling():
            return None
        if self.seen is None or self.seen[0] is not self.slots:
            self.seen = self.slots, frozenset(self.slots.flatten().tolist())
        return self.seen[1]


class Cell:
    """Carries a module's input to another module's slot within one forward."""

    def __init__(self) -> None:
        self.x: Tensor | None = None

    def take(self) -> Tensor:
        """The input; it is held no longer."""
        x, self.x = self.x, None
        if x is None:
            raise AdapterError("a parallel adapter's input module did not run before its output module")
        return x
