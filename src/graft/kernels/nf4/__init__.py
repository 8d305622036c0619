"""4-bit base weights; the plain torch version is the only one so far and therefore the one chosen."""

from graft.kernels.nf4.reference import dequantise, is_packed, linear, own_forward, own_forwards, state, stored_bytes

__all__ = ["dequantise", "is_packed", "linear", "own_forward", "own_forwards", "state", "stored_bytes"]
