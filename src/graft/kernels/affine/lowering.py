"""How inductor is to compile `beside`: whoever computes a part writes it where it belongs, so that nothing is copied.

Left alone, inductor computes every part for every column and selects (its own `cat` does, for up to eight parts). Where its internals are
not as they are known here, the operator stays a call that copies.
"""

from typing import Any

import torch


def register() -> bool:
    """Teach inductor the operator; whether it could be taught. To be called before a graph with it is compiled."""
    try:
        from torch._inductor import ir
        from torch._inductor.lowering import full, lowerings, register_lowering
    except ImportError:
        return False
    operator = torch.ops.graft.beside.default
    if operator not in lowerings:

        @register_lowering(operator, type_promotion_kind=None)
        def beside(parts: list[Any], tail: int) -> Any:
            first = parts[0]
            zeros = full([first.get_size()[0], tail], 0, dtype=first.get_dtype(), device=first.get_device())
            return ir.TensorBox(ir.ConcatKernel.create([*parts, zeros], 1))

    return True
