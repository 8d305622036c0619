"""Unpacking 4-bit weights as a Triton kernel: each byte is read once, and rows are written with what stands beside them.

    W[o, i] = code[q] * scale        scale = absmax of i's block, or with nested scales  table[absmax] * scales + offset

q is the value's 4 bits, of two in a byte the upper ones first. All is in float32 and rounded once, to the bits that bitsandbytes gives: a
nested scale's product and sum must not become one fused multiply-add. A thread takes a word of 8 values, which cross no row and no block,
and writes them as one. Under Triton's interpreter (TRITON_INTERPRET=1) the kernel runs on a CPU.
"""

import os

import torch
import triton
import triton.language as tl
from torch import Tensor

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
WORD = 8  # values
WORDS = 512  # of one program: 4 for each thread, so that enough loads are under way


def takes(packed: Tensor, inputs: int, block: int) -> bool:
    """Whether the kernel runs on packed bytes of rows of so many inputs, in such blocks."""
    return (packed.is_cuda or INTERPRETED) and inputs % WORD == 0 and block % WORD == 0


@triton.jit
def unpack(
    packed, absmax, code, offset, scales, table, beside, out, words, row_words, own_words,
    BLOCK: tl.constexpr, NESTED: tl.constexpr, MARGIN: tl.constexpr, WORD: tl.constexpr, WORDS: tl.constexpr,
):  # fmt: skip
    """out [rows, row_words * WORD] = [W, beside], W [rows, own_words * WORD]; blocks are counted in words, NESTED in scales (0: not)."""
    word, lane = tl.program_id(0) * WORDS + tl.arange(0, WORDS), tl.arange(0, WORD)
    present = word < words
    row, column = word // row_words, word % row_words
    own = present & (column < own_words)
    place = row * own_words + column
    value = tl.load(packed + place, mask=own, other=0)
    scale = tl.load(absmax + place // BLOCK, mask=own, other=0)
    if NESTED:
        scale = tl.load(table + scale.to(tl.int32), mask=own, other=0.0) * tl.load(scales + place // BLOCK // NESTED, mask=own, other=0.0)
        scale = scale + tl.load(offset)
    bits = (value[:, None] >> (4 * (lane ^ 1))[None, :]) & 15
    dense = (tl.load(code + bits) * scale[:, None]).to(out.dtype.element_ty)
    target = word.to(tl.int64)[:, None] * WORD + lane[None, :]
    if MARGIN:
        margin = (row * (row_words - own_words) + column - own_words).to(tl.int64)[:, None] * WORD + lane[None, :]
        other = tl.load(beside + margin, mask=(present & (column >= own_words))[:, None], other=0.0)
        dense = tl.where(own[:, None], dense, other)
    tl.store(out + target, dense, mask=present[:, None])


def fill(out: Tensor, tensors: list[Tensor], block: int, nested: int, beside: Tensor | None) -> None:
    """out [rows, in + margin] = [W, beside] of a packed W [rows, in] and beside [rows, margin], in out's dtype, all without gaps.

    `tensors` are W's, as graft.kernels.nf4.reference.parts gives them.
    """
    packed, absmax, code, *more = tensors
    offset, scales, table = more or (code, code, code)
    margin = 0 if beside is None else beside.shape[1]
    words, row_words = out.numel() // WORD, out.shape[1] // WORD
    with torch.cuda.device_of(out):  # that a model's layers may lie on several
        unpack[(triton.cdiv(words, WORDS),)](
            packed.reshape(-1).view(torch.int32), absmax, code, offset, scales, table, out if beside is None else beside, out,
            words, row_words, row_words - margin // WORD,
            BLOCK=block // WORD, NESTED=nested, MARGIN=margin > 0, WORD=WORD, WORDS=WORDS, num_warps=4, enable_fp_fusion=False,
        )  # fmt: skip
