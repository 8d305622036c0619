"""Bytes of what is trained: master values, their gradients, the optimizer's states, and what a form keeps beside them.

Masters and gradients are float32. AdamW has two float32 states a value; bitsandbytes' in 8 bits has two bytes and, for each 256 values of a
tensor, two float32 scales, but float32 states for tensors of less than 4096 values; states in pages can leave the card and are counted
on the host. A scale of a sum (DoRA's) keeps two numbers a channel: the base's squared row norms, and the norms of the sum.
"""

from collections.abc import Iterable, Sequence

import torch

from graft.forms import Affine, Form

MASTER = 4
SMALL, SCALED = 4096, 256  # bitsandbytes: values below which states stay float32; values a scale

Shapes = Iterable[tuple[int, ...]]


def masters(shapes: Shapes) -> int:
    """Bytes of the trained tensors of these shapes; as many again for their gradients."""
    return sum(torch.Size(shape).numel() for shape in shapes) * MASTER


def states(shapes: Shapes, optimizer: str) -> int:
    """Bytes of an optimizer's states on the card, of all tensors of these shapes; 0 for no optimizer."""
    if not optimizer or optimizer.startswith("paged"):
        return 0
    sizes = [torch.Size(shape).numel() for shape in shapes]
    if not optimizer.endswith("8bit"):
        return sum(2 * MASTER * size for size in sizes)
    return sum(2 * MASTER * size if size < SMALL else 2 * size + 2 * 4 * -(-size // SCALED) for size in sizes)


def norms(forms: Sequence[tuple[object, Form]]) -> int:
    """Bytes of the row norms that scaled sums keep."""
    scales = [form.c for _, form in forms if isinstance(form, Affine) and form.c is not None and form.scales == "sum"]
    return sum(2 * MASTER * c.numel() for c in scales)
