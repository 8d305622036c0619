"""The Triton kernel that unpacks 4-bit weights under Triton's interpreter, against bitsandbytes; run as a process of its own."""

import itertools

import bitsandbytes as bnb
import torch

from graft.kernels.nf4 import reference, tiles, unpack

torch.use_deterministic_algorithms(True)  # memory that nobody has written to is NaN
SHAPES = ((1, 8), (7, 64), (33, 200), (64, 176), (130, 72), (5, 1024))  # the last words of rows, of blocks and of blocks of scales
KINDS = (("nf4", 64, True), ("nf4", 64, False), ("nf4", 128, True), ("fp4", 64, True), ("fp4", 32, False))


def packed(shape, bits, block, nested, dtype=torch.float32):
    """A weight whose blocks differ a hundredfold in size."""
    weight = torch.randn(shape) * torch.logspace(-1, 1, shape[0])[:, None]
    made = bnb.nn.Params4bit(weight.to(dtype), requires_grad=False, quant_type=bits, blocksize=block, compress_statistics=nested)
    return made.to("cpu")


def alone():
    """To the bit in float32 and float16; the interpreter cuts off what does not fit into bfloat16."""
    for shape, (bits, block, nested), dtype in itertools.product(SHAPES, KINDS, (torch.float32, torch.float16)):
        weight = packed(shape, bits, block, nested, dtype)
        assert unpack.takes(weight.data, shape[1], block)
        ours, theirs = unpack.dequantise(weight), reference.dequantise(weight)
        assert ours.dtype == theirs.dtype == dtype
        assert ours.shape == shape
        assert torch.equal(ours, theirs), f"{bits} in {block}, nested: {nested}, {dtype}, at {shape}"


def with_margins():
    for outputs, inputs, margin in (((33, 7), 72, 16), ((5,), 64, 48), ((3, 130, 1), 200, 16)):
        weights = [packed((outs, inputs), "nf4", 64, True) for outs in outputs]
        A, B = torch.randn(margin, inputs), torch.randn(sum(outputs), margin)
        buffer = unpack.unpacked(weights, A, B)
        assert buffer.shape == (sum(outputs) + margin, inputs + margin)
        assert torch.equal(buffer[: sum(outputs), :inputs], torch.cat([reference.dequantise(weight) for weight in weights]))
        assert torch.equal(buffer[: sum(outputs), inputs:], B)
        assert torch.equal(buffer[sum(outputs) :, :inputs], A)


if __name__ == "__main__":
    assert tiles.INTERPRETED
    torch.manual_seed(0)
    alone()
    with_margins()
    print("all agree")
