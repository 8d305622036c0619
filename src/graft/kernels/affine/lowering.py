"""How inductor is to compile two operators of ours.

    beside(parts, tail)    whoever computes a part writes it where it belongs, so that nothing is copied. Left alone, inductor computes
                           every part for every column and selects (its own `cat` does, for up to eight parts)
    once(value)            the value, held in memory: left alone, inductor computes it again for every value that reads it

Where its internals are not as they are known here, both stay calls that copy.
"""

from typing import Any

import torch
from torch import Tensor

from graft.kernels.operators import operator


@operator("once", torch.empty_like)
def once(value: Tensor) -> Tensor:
    """The value itself, for a compiler to hold; of any shape."""
    return value.clone()


def register() -> bool:
    """Teach inductor the operators; whether it could be taught. To be called before a graph with them is compiled."""
    try:
        from torch._inductor import ir
        from torch._inductor.lowering import full, lowerings, register_lowering
    except ImportError:
        return False
    if torch.ops.graft.beside.default not in lowerings:

        @register_lowering(torch.ops.graft.beside.default, type_promotion_kind=None)
        def beside(parts: list[Any], tail: int) -> Any:
            first = parts[0]
            zeros = full([first.get_size()[0], tail], 0, dtype=first.get_dtype(), device=first.get_device())
            return ir.TensorBox(ir.ConcatKernel.create([*parts, zeros], 1))

        @register_lowering(torch.ops.graft.once.default, type_promotion_kind=None)
        def held(value: Any) -> Any:
            value.realize()
            return value

    return True
