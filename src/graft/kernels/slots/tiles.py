"""The affine forms of many adapters as Triton kernels, two in a row, whatever their number, ranks and methods.

`shrink` makes h = act(x A^T + a) where a column's slot is a token's. A program has a tile of tokens and a block of columns; where no token
of the tile is in a slot of the block it ends at once, and columns that none of them needs are not read: the bytes are those of adapters
that are in the batch, and a tile of one long text costs what its own adapter costs. The sum over inputs is cut into parts so that every
processor has work; whoever finishes a tile last adds the parts up in order, so that the same input gives the same bits. `expand` gives
c y + h B^T + b for all modules of a stack, each value of y read once. Sums are in float32.

At few tokens a product of the base costs what its launch and the reading of its weights cost, and A is but some more weights that read the
same input: `project` is `shrink` and the products of all modules in one launch.

EARLY is for cards that start a kernel before the one before it has ended (programmatic dependent launch, CUDA C++ Programming Guide 7.29):
what does not change while a model runs is read then, `wait` ends once the kernel before is done and what it wrote is seen, and `begin`
lets the next one start. `shrink` waits before `begin`, so what was there before it is there for `expand` before that waits; not so what
`project` writes.
"""

import triton
import triton.language as tl

from graft.kernels.slots.stack import GROUP as COLUMNS_OF_ONE

GROUP: tl.constexpr = tl.constexpr(COLUMNS_OF_ONE)


@triton.jit
def wait():
    """Until the kernel before is done."""
    tl.extra.cuda.gdc_wait()


@triton.jit
def begin():
    """Let the kernel after this one start."""
    tl.extra.cuda.gdc_launch_dependents()


@triton.jit
def tanh(value):
    """Of any size: exp overflows to a quotient of 0."""
    return 1 - 2 / (tl.exp(2 * value) + 1)


@triton.jit
def activated(
    h, code, acts, RELU: tl.constexpr, GELU: tl.constexpr, SILU: tl.constexpr, TANH: tl.constexpr, GELU_TANH: tl.constexpr,
    LEAKY: tl.constexpr,
):  # fmt: skip
    """Each column of h through the activation that its code names; `acts` has a bit for each code that any column has."""
    own = code[None, :]
    if (acts & (1 << RELU)) != 0:
        h = tl.where(own == RELU, tl.maximum(h, 0.0), h)
    if (acts & (1 << GELU)) != 0:
        h = tl.where(own == GELU, 0.5 * h * (1 + tl.erf(h * 0.7071067811865476)), h)
    if (acts & (1 << SILU)) != 0:
        h = tl.where(own == SILU, h / (1 + tl.exp(-h)), h)
    if (acts & (1 << TANH)) != 0:
        h = tl.where(own == TANH, tanh(h), h)
    if (acts & (1 << GELU_TANH)) != 0:
        h = tl.where(own == GELU_TANH, 0.5 * h * (1 + tanh(0.7978845608028654 * (h + 0.044715 * h * h * h))), h)
    if (acts & (1 << LEAKY)) != 0:
        h = tl.where(own == LEAKY, tl.where(h > 0, h, 0.01 * h), h)
    return h


@triton.jit
def either(a, b):
    """Bits of both."""
    return a | b


@triton.jit
def here(slot):
    """The slots of a tile's tokens, one bit each: slots that are 64 apart share one, which costs reading and nothing else."""
    return tl.reduce(tl.full(slot.shape, 1, tl.int64) << (slot & 63).to(tl.int64), 0, either)


@triton.jit
def wanted(owner, word):
    """Whether a column's owner is among them."""
    return (owner >= 0) & (((word >> (owner & 63).to(tl.int64)) & 1) != 0)


@triton.jit(do_not_specialize=["tokens", "groups", "first", "acts", "shifted"])
def shrink(
    x, A, z, D, a, of, act, s, h, partial, counters, tokens, groups, width, span, x_token, z_width, z_span, z_token, first, acts, shifted,
    BT: tl.constexpr, BC: tl.constexpr, BK: tl.constexpr, MOST: tl.constexpr, RELU: tl.constexpr, GELU: tl.constexpr,
    SILU: tl.constexpr, TANH: tl.constexpr, GELU_TANH: tl.constexpr, LEAKY: tl.constexpr, FLOAT: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """h [T, C] where a token's slot is the column's; nothing is written elsewhere. partial [parts, T, C], counters [tiles, blocks].

    Columns from `first` on, a multiple of BC, read z by the rows of D instead of x by those of A. The sum is in MOST parts at most.
    """
    tile, block, part, parts = tl.program_id(0), tl.program_id(1), tl.program_id(2), tl.num_programs(2)
    columns = groups * GROUP
    token, column = tile * BT + tl.arange(0, BT), block * BC + tl.arange(0, BC)
    source, maps, across, reach, source_token, number = x, A, width, span, x_token, column
    if block * BC >= first:
        source, maps, across, reach, source_token, number = z, D, z_width, z_span, z_token, column - first
    slot = tl.load(s + token, mask=token < tokens, other=0).to(tl.int32)
    owner = tl.load(of + column, mask=column < columns, other=-1).to(tl.int32)
    code = tl.load(act + column, mask=column < columns, other=0).to(tl.int32)
    shift = tl.load(a + column, mask=column < columns * shifted, other=0.0).to(tl.float32)
    used = wanted(owner, here(slot))
    if EARLY:
        wait()
        begin()
    if tl.max(used.to(tl.int32), 0) > 0:
        low = part * reach
        total = tl.zeros([BT, BC], tl.float32)
        source_row = source + token.to(tl.int64)[:, None] * source_token
        map_row = maps + number.to(tl.int64)[:, None] * across
        for k in range(low, tl.minimum(low + reach, across), BK):
            place = k + tl.arange(0, BK)[None, :]
            left = tl.load(source_row + place, mask=(token < tokens)[:, None] & (place < across), other=0.0)
            right = tl.load(map_row + place, mask=used[:, None] & (place < across), other=0.0)
            if FLOAT:
                left, right = left.to(tl.float32), right.to(tl.float32)
            total = tl.dot(left, tl.trans(right), total, input_precision="ieee")
        hit = (slot[:, None] == owner[None, :]) & (token < tokens)[:, None]
        spot = token.to(tl.int64)[:, None] * columns + column[None, :]
        last = parts == 1
        if parts > 1:
            tl.store(partial + part.to(tl.int64) * tokens * columns + spot, total, mask=hit)
            counter = counters + tile * tl.num_programs(1) + block
            last = tl.atomic_add(counter, 1, sem="acq_rel") == parts - 1
            if last:
                total = tl.zeros([BT, BC], tl.float32)
                for place in tl.static_range(MOST):  # unrolled, so that all are on their way at once
                    own = partial + spot + columns.to(tl.int64) * tokens * place
                    total += tl.load(own, mask=hit & (tl.full([BC], place, tl.int32) < parts)[None, :], other=0.0, cache_modifier=".cg")
                tl.store(counter, 0)
        if last:
            total = activated(total + shift[None, :], code, acts, RELU, GELU, SILU, TANH, GELU_TANH, LEAKY)
            tl.store(h + spot, total.to(h.dtype.element_ty), mask=hit)


@triton.jit(do_not_specialize=["tokens", "groups", "blocks", "blocks_0", "blocks_1", "acts", "shifted", "biased"])
def project(
    x, W_0, W_1, W_2, bias_0, bias_1, bias_2, A, a, of, act, s, y, h, tokens, groups, width, x_token, end_0, end_1, end_2, blocks,
    blocks_0, blocks_1, acts, shifted, biased, BT: tl.constexpr, BC: tl.constexpr, BK: tl.constexpr, STAGES: tl.constexpr,
    RELU: tl.constexpr, GELU: tl.constexpr, SILU: tl.constexpr, TANH: tl.constexpr, GELU_TANH: tl.constexpr, LEAKY: tl.constexpr,
    FLOAT: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """h as `shrink` has it in the first `blocks` programs, and each module's x W^T + bias in the others, [T, out] one after another in y;
    module j's outputs end at end_j, and the first two have so many blocks of BC. All tokens are one tile; width is a multiple of BK.
    """
    block = tl.program_id(0)
    columns = groups * GROUP
    token = tl.arange(0, BT)
    maps, shifts, out, across, place = A, a, h, columns, block
    shifting = shifted != 0
    if block >= blocks:
        maps, shifts, out, across, place, shifting = W_0, bias_0, y, end_0, block - blocks, (biased & 1) != 0
    if block >= blocks + blocks_0:
        maps, shifts, out, across, place = W_1, bias_1, y + end_0 * tokens, end_1 - end_0, block - blocks - blocks_0
        shifting = (biased & 2) != 0
    if block >= blocks + blocks_0 + blocks_1:
        maps, shifts, out, across, place = W_2, bias_2, y + end_1 * tokens, end_2 - end_1, block - blocks - blocks_0 - blocks_1
        shifting = (biased & 4) != 0
    column = place * BC + tl.arange(0, BC)
    branch = (block < blocks).to(tl.int32)
    owner = tl.load(of + column, mask=column < columns * branch, other=-1).to(tl.int32)
    code = tl.load(act + column, mask=column < columns * branch, other=0).to(tl.int32)
    shift = tl.load(shifts + column, mask=column < across * shifting.to(tl.int32), other=0.0).to(tl.float32)
    whole = column < across * (1 - branch)  # a base's columns are every token's
    if EARLY:
        wait()
        begin()
    slot = tl.load(s + token, mask=token < tokens, other=0).to(tl.int32)  # no product stands between here and who wrote it
    used = whole
    if branch != 0:
        used = wanted(owner, here(slot))
    if tl.max(used.to(tl.int32), 0) > 0:
        total = tl.zeros([BT, BC], tl.float32)
        source_row = x + token.to(tl.int64)[:, None] * x_token
        map_row = maps + column.to(tl.int64)[:, None] * width
        for k in tl.range(0, width, BK, num_stages=STAGES):
            inner = k + tl.arange(0, BK)[None, :]
            left = tl.load(source_row + inner, mask=(token < tokens)[:, None], other=0.0)
            right = tl.load(map_row + inner, mask=used[:, None], other=0.0)
            if FLOAT:
                left, right = left.to(tl.float32), right.to(tl.float32)
            total = tl.dot(left, tl.trans(right), total, input_precision="ieee")
        total = activated(total + shift[None, :], code, acts * branch, RELU, GELU, SILU, TANH, GELU_TANH, LEAKY)
        hit = ((slot[:, None] == owner[None, :]) | whole[None, :]) & (token < tokens)[:, None]
        tl.store(out + token.to(tl.int64)[:, None] * across + column[None, :], total.to(h.dtype.element_ty), mask=hit)


@triton.jit
def owners(of, column, width):
    """The slot of each column, -1 for those beyond the end; columns change hands in groups, so that what is read at once has one owner."""
    return tl.load(of + column // GROUP * GROUP, mask=column < width, other=-1).to(tl.int32)


@triton.jit
def needed(of, width, word, GROUPS: tl.constexpr, STEPS: tl.constexpr):
    """Which steps of columns have one that is wanted: a bit each (steps 64 apart share one), and the first of them, STEPS if none has."""
    group, step = tl.arange(0, GROUPS), tl.arange(0, STEPS)
    owner = tl.load(of + group * GROUP, mask=group * GROUP < width, other=-1).to(tl.int32)
    there = tl.max(tl.reshape(wanted(owner, word).to(tl.int32), [STEPS, GROUPS // STEPS]), 1)
    bits = tl.reduce(there.to(tl.int64) << (step & 63).to(tl.int64), 0, either)
    return bits, tl.min(tl.where(there > 0, step, STEPS), 0)


@triton.jit
def kept(hidden, column, owner, slot):
    """h of some columns: of a token those of its slot, which are there."""
    return tl.load(hidden + column[None, :], mask=slot[:, None] == owner[None, :], other=0.0)


@triton.jit
def added(total, left, right, FLOAT: tl.constexpr):
    """total + h B^T over some columns."""
    if FLOAT:
        left, right = left.to(tl.float32), right.to(tl.float32)
    return tl.dot(left, tl.trans(right), total, input_precision="ieee")


@triton.jit(do_not_specialize=["tokens", "groups", "group", "blocks_0", "blocks_1", "scaled", "shifted"])
def expand(
    y_0, y_1, y_2, h, B, of, c, b, s, out, tokens, groups, group, end_0, end_1, end_2, blocks_0, blocks_1, y_token_0, y_token_1,
    y_token_2, scaled, shifted, BT: tl.constexpr, BO: tl.constexpr, BC: tl.constexpr, STEPS: tl.constexpr, SKIPS: tl.constexpr,
    BRANCH: tl.constexpr, THERE: tl.constexpr, FLOAT: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """c y + h B^T + b of every module, [T, out] one after another in `out`; module j's outputs end at end_j of N = end_2, and the first
    two have so many blocks of BO outputs. h has `groups` groups of columns, each module `group` of them, taken in steps of BC, at most
    STEPS; SKIPS leaves out those that no token needs. THERE says that y is not of the kernel before.
    """
    tile, block = tl.program_id(0), tl.program_id(1)
    columns, width = groups * GROUP, group * GROUP
    token = tile * BT + tl.arange(0, BT)
    slot = tl.load(s + token, mask=token < tokens, other=0).to(tl.int32)
    y, y_token, first, end, place = y_0, y_token_0, 0, end_0, block
    if block >= blocks_0:
        y, y_token, first, end, place = y_1, y_token_1, end_0, end_1, block - blocks_0
    if block >= blocks_0 + blocks_1:
        y, y_token, first, end, place = y_2, y_token_2, end_1, end_2, block - blocks_0 - blocks_1
    own = ((block >= blocks_0).to(tl.int32) + (block >= blocks_0 + blocks_1).to(tl.int32)) * width
    inner, row = place * BO + tl.arange(0, BO), first + place * BO + tl.arange(0, BO)
    inside = (token < tokens)[:, None] & (row < end)[None, :]
    values = y + token.to(tl.int64)[:, None] * y_token + inner[None, :]
    table = slot.to(tl.int64)[:, None] * end_2 + row[None, :]
    # all that is there is asked for before anything is done with it; `scaled` and `shifted` are 0 where there is no c or b
    if THERE:
        base = tl.load(values, mask=inside, other=0.0)
    scale = tl.load(c + table, mask=inside & (token < tokens * scaled)[:, None], other=1.0)
    shift = tl.load(b + table, mask=inside & (token < tokens * shifted)[:, None], other=0.0)
    word, total = here(slot), tl.zeros([BT, BO], tl.float32)
    hidden, maps = h + token.to(tl.int64)[:, None] * columns + own, B + row.to(tl.int64)[:, None] * width
    bits, step = tl.full([], -1, tl.int64), tl.full([], 0, tl.int32)
    if SKIPS:
        bits, step = needed(of + own, width, word, STEPS * BC // GROUP, STEPS)
    column = step * BC + tl.arange(0, BC)
    owner = owners(of + own, column, width)
    right = tl.load(maps + column[None, :], mask=wanted(owner, word)[None, :] & (row < end)[:, None], other=0.0)
    if EARLY:
        wait()
    if not THERE:
        base = tl.load(values, mask=inside, other=0.0)
    left = kept(hidden, column, owner, slot)
    base = base.to(tl.float32) * scale.to(tl.float32) + shift.to(tl.float32)
    if BRANCH:
        total = added(total, left, right, FLOAT)
        for later in range(step + 1, tl.cdiv(width, BC)):
            if not SKIPS or ((bits >> (later & 63)) & 1) != 0:
                column = later * BC + tl.arange(0, BC)
                owner = owners(of + own, column, width)
                right = tl.load(maps + column[None, :], mask=wanted(owner, word)[None, :] & (row < end)[:, None], other=0.0)
                total = added(total, kept(hidden, column, owner, slot), right, FLOAT)
    total += base
    start = out + first * tokens
    tl.store(start + token.to(tl.int64)[:, None] * (end - first) + inner[None, :], total.to(out.dtype.element_ty), mask=inside)
