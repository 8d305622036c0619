"""The products of a low-rank branch, one side of which is only as wide as the ranks: operators that a compiler takes as they are.

    beside      [x, tail] or [dY_1, dY_2, tail]
    project_    S = drop(x) A^T             into the tail of x's own rows
    pull_       dS_j = dY_j B_j             into the tail of dY's rows, and dB_j = dY_j^T S_j, Σ_t dY_j * y_j in the same reading of dY
    outer       dA = dS^T drop(x)
    push_       dX += drop'(dS A)           the way back through the dropout

x [T, in + p] and dY [T, Σ out + p] have tails of p columns for what is R = Σ r wide; all sums are taken in float32 or wider. On CUDA these
are Triton kernels (graft.kernels.affine.tiles), which read each wide operand once; elsewhere, and in `pull_` for more ranks a map than
launch.PULLED, they are torch's own products.
"""

from typing import Any

import torch
from torch import Tensor

from graft.kernels.affine import launch
from graft.kernels.operators import LIBRARY, operator


def wide(dtype: torch.dtype) -> torch.dtype:
    """The precision of sums and of gradients of master tensors: float32, float64 for float64."""
    return torch.promote_types(dtype, torch.float32)


def drop(x: Tensor, dropout: float, seed: Tensor | None) -> Tensor:
    """x [T, in] with a share of its values dropped and the rest scaled, as decided by `seed` alone; x itself without dropout."""
    return dropped(x, dropout, seed) if dropout and seed is not None else x


@operator("dropped", lambda x, dropout, seed: x.new_empty(x.shape))
def dropped(x: Tensor, dropout: float, seed: Tensor) -> Tensor:
    """The same, with dropout."""
    generator = torch.Generator(x.device).manual_seed(int(seed))
    words = torch.empty(-(-x.numel() // 4), dtype=torch.int64, device=x.device).random_(-(2**63), None, generator=generator)
    drawn = words.view(torch.int16)[: x.numel()].view(x.shape)  # 16 bits a value: a random float for each takes five times as long
    return (x * (1 / (1 - dropout))).masked_fill_(drawn < round(dropout * 2**16) - 2**15, 0)


def remembered(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    """What the way back needs: the same values are dropped."""
    ctx.dropout, ctx.seed = inputs[1:]


def undropped(ctx: Any, dy: Tensor) -> tuple[Tensor, None, None]:
    """The way back."""
    return dropped(dy, ctx.dropout, ctx.seed), None, None


torch.library.register_autograd("graft::dropped", undropped, setup_context=remembered, lib=LIBRARY)


def write(buffer: Tensor, As: list[Tensor], Bs: list[Tensor]) -> None:
    """Put A_j [r_j, in] below the weights of a pitched buffer and B_j [out_j, r_j] beside each, in the buffer's dtype."""
    if launch.takes(buffer):
        return launch.write(buffer, As, Bs)
    width, row, column = As[0].shape[1], 0, 0
    bottom = sum(len(B) for B in Bs)
    for A, B in zip(As, Bs, strict=True):
        buffer[bottom + column : bottom + column + len(A), :width] = A
        buffer[row : row + len(B), width + column : width + column + len(A)] = B
        row, column = row + len(B), column + len(A)


@operator("beside", lambda parts, tail: parts[0].new_empty(parts[0].shape[0], sum(part.shape[1] for part in parts) + tail))
def beside(parts: list[Tensor], tail: int) -> Tensor:
    """[parts, 0] of parts [T, n_j]: rows with a tail of so many columns, [T, Σ n + tail]."""
    return torch.cat([*parts, parts[0].new_zeros(len(parts[0]), tail)], 1)


@operator("project_", lambda xs, A, dropout, seed: xs.new_empty(xs.shape[0], A.shape[0]), mutates=("xs",))
def project_(xs: Tensor, A: Tensor, dropout: float, seed: Tensor | None) -> Tensor:
    """S [T, R] = drop(x) A^T of xs = [x, tail] [T, in + p] and A [R, in]; the tail becomes [S, 0]."""
    if launch.takes(xs):
        return launch.project_(xs, A, dropout, seed)
    width, ranks = A.shape[1], A.shape[0]
    S = drop(xs[:, :width], dropout, seed) @ A.t()
    xs[:, width : width + ranks] = S
    xs[:, width + ranks :] = 0
    return S


def like_pull(dys: Tensor, S: Tensor, B: Tensor, ys: list[Tensor], outputs: list[int], ranks: list[int]) -> tuple[Tensor, Tensor, Tensor]:
    """Empty dS, dB and sums."""
    kind, total = wide(dys.dtype), sum(outputs)
    return torch.empty_like(S), B.new_empty(total, max(ranks), dtype=kind), B.new_empty(total if ys else 0, dtype=kind)


@operator("pull_", like_pull, mutates=("dys",))
def pull_(dys: Tensor, S: Tensor, B: Tensor, ys: list[Tensor], outputs: list[int], ranks: list[int]) -> tuple[Tensor, Tensor, Tensor]:
    """dS [T, R], dB [Σ out, max r] and, if any `ys` [T, out_j] are given, Σ_t dY * y [Σ out], of dys = [dY_1, ..., tail]
    [T, Σ out + p], S [T, R] and B [Σ out, R], whose blocks off the diagonal count as 0; the tail becomes [dS, 0].
    """
    if launch.takes(dys) and max(ranks) <= launch.PULLED:
        return launch.pull_(dys, S, B, ys, outputs, ranks)
    sums = dots(dys, ys)
    dS, dB = torch.empty_like(S), B.new_zeros(sum(outputs), max(ranks), dtype=wide(dys.dtype))
    row = column = 0
    for outs, r in zip(outputs, ranks, strict=True):
        dY, own = dys[:, row : row + outs], slice(column, column + r)
        dS[:, own] = dY @ B[row : row + outs, own]
        dB[row : row + outs, :r] = dY.t() @ S[:, own]
        row, column = row + outs, column + r
    dys[:, row : row + column] = dS
    dys[:, row + column :] = 0
    return dS, dB, sums


def dots(dys: Tensor, ys: list[Tensor]) -> Tensor:
    """Σ_t dY * y [Σ out] of dys [T, Σ out + ...] and ys [T, out_j], in float32 or wider."""
    kind, row, found = wide(dys.dtype), 0, [dys.new_empty(0, dtype=wide(dys.dtype))]
    for y in ys:
        found.append((dys[:, row : row + y.shape[1]].to(kind) * y).sum(0))
        row += y.shape[1]
    return torch.cat(found)


@operator("outer", lambda dS, x, dropout, seed: x.new_empty(dS.shape[1], x.shape[1], dtype=wide(x.dtype)))
def outer(dS: Tensor, x: Tensor, dropout: float, seed: Tensor | None) -> Tensor:
    """dA [R, in] = dS^T drop(x) of dS [T, R] and x [T, in], in float32 or wider."""
    if launch.takes(x):
        return launch.outer(dS, x, dropout, seed)
    return (dS.t() @ drop(x, dropout, seed)).to(wide(x.dtype))


@operator("push_", lambda dx, dS, A, dropout, seed: None, mutates=("dx",))
def push_(dx: Tensor, dS: Tensor, A: Tensor, dropout: float, seed: Tensor | None) -> None:
    """dx [T, in] += what reaches x of dS A through the dropout: dS [T, R], A [R, in]."""
    if launch.takes(dx):
        return launch.push_(dx, dS, A, dropout, seed)
    dx += drop(dS @ A, dropout, seed)
