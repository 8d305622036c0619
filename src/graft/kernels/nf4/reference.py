"""Weights in 4 bits (NF4, QLoRA, https://arxiv.org/abs/2305.14314) as bitsandbytes holds them and makes them dense: the plain version.

A packed weight [out, in] is a bitsandbytes `Params4bit`: two values a byte, one absmax a block of 64, and with double quantisation that
absmax in 8 bits, with scales of its own for 256 of them and one offset: 4.127 bits a parameter.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from graft.errors import ModelError

MISSING = "4-bit weights need bitsandbytes: run `pip install 'graft-peft[nf4]'`"


class Kind(NamedTuple):
    """How values are packed: the type of 4 bits, values a block, scales a block (0 where scales are no 8-bit codes), the dense dtype."""

    bits: str
    block: int
    nested: int
    dtype: torch.dtype


def is_packed(weight: Any) -> bool:
    """Whether `weight` is a 4-bit parameter that has been quantised."""
    return getattr(weight, "quant_state", None) is not None


def kind(weight: Any) -> Kind:
    """How a packed weight is packed."""
    state = weight.quant_state
    return Kind(state.quant_type, state.blocksize, state.state2.blocksize if state.nested else 0, state.dtype)


def parts(weight: Any) -> list[Tensor]:
    """A packed weight as plain tensors: bytes, absmax, code [16], and where that is nested offset [], scales, table [256].

    Raises ModelError if bitsandbytes' own forward pass has rewritten the packed bytes.
    """
    state = weight.quant_state
    refuse_repacked(state)
    found = [weight.data.view(torch.uint8), state.absmax, state.code]
    return [*found, state.offset, state.state2.absmax, state.state2.code] if state.nested else found


def dense(tensors: list[Tensor], shape: Sequence[int], packed: Kind) -> Tensor:
    """The dense weight, of this shape, of a packed weight's `parts`. Raises ModelError if bitsandbytes is missing.

    It is made in rows that end with a block, or as one: of others bitsandbytes' kernel for CPUs takes a wrong block's scale.
    """
    try:
        from bitsandbytes.functional import QuantState, dequantize_4bit
    except ImportError as error:
        raise ModelError(MISSING) from error
    values, absmax, code, *more = tensors
    scales = QuantState(absmax=more[1], code=more[2], blocksize=packed.nested, dtype=torch.float32) if more else None
    total = math.prod(shape)
    width = next((width for width in (shape[-1], packed.block) if width % packed.block == 0 == total % width), total)
    state = QuantState(
        absmax, torch.Size((total // width, width)), code, packed.block, packed.bits, packed.dtype, more[0] if more else None, scales
    )
    with torch.no_grad():
        found: Tensor = dequantize_4bit(values, state)
    return found.view(torch.Size(shape))


def dequantise(weight: Any) -> Tensor:
    """The dense weight [out, in] of a packed 4-bit parameter, in the dtype it was quantised from.

    Raises ModelError if bitsandbytes is missing, or if its own forward pass has already rewritten the packed bytes.
    """
    return dense(parts(weight), weight.quant_state.shape, kind(weight))


def refuse_repacked(state: Any) -> None:
    """Raise ModelError if bitsandbytes repacked a weight for its CPU kernel, which keeps no gradient."""
    if getattr(state, "packing_format_for_cpu", False):
        raise ModelError("bitsandbytes has repacked this model's 4-bit weights by evaluating it: load it again, with graft's load")


def state(weight: Any) -> dict[str, Any]:
    """A packed weight's quantisation state: block scales, code tables and the scales' own, tensors and plain values by name."""
    found: dict[str, Any] = weight.quant_state.as_dict()
    return found


def stored_bytes(weight: Any) -> int:
    """Bytes that a packed weight holds: its 4-bit values, its block scales, and the scales' own scales if those are quantised too."""
    state = weight.quant_state
    tensors = [weight.data, state.absmax]
    if state.nested:
        tensors += [state.offset, state.state2.absmax]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
