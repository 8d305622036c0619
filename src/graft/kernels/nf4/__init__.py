"""4-bit base weights: a Triton kernel makes them dense on CUDA, bitsandbytes elsewhere."""

from graft.kernels.nf4.linear import linear, own_forward, own_forwards
from graft.kernels.nf4.reference import is_packed, kind, state, stored_bytes
from graft.kernels.nf4.unpack import dequantise, unpacked

__all__ = ["dequantise", "is_packed", "kind", "linear", "own_forward", "own_forwards", "state", "stored_bytes", "unpacked"]
