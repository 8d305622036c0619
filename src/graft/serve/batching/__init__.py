"""The one place that touches the private parts of transformers' continuous batching.

    manager     a thread that schedules requests, packs their tokens into one row [1, T], runs the model and hands out tokens
    guest       what rides on it here: rows of numbers for each token and request, keys and values, the choice of tokens
    graphs      what is recorded, as much as may be
    paging      attention over the cache's pages (graft.kernels.attention.paged), where kernels run on the model's device

Numbers of ours travel with the engine's own small inputs: it keeps room [rows, width] (int32) in one static tensor for "logits
processors", fills it on the host before each batch, copies it to the device with everything else, and gives it to the model. So nothing
of ours needs another copy, and a recorded CUDA graph reads what belongs to the batch that it runs. Results travel back likewise, in rows
that are added to the engine's output tensor.

Private parts move between transformers' minor versions: those that are known here are stated, each with a contract test
(tests/test_serve_contract.py), and others are refused.
"""

from graft.serve.batching.manager import Batching
from graft.serve.batching.versions import KNOWN, NAMES, minor
from graft.serve.batching.wires import token_rows
from graft.serve.guest import Room

__all__ = ["KNOWN", "NAMES", "Batching", "Room", "minor", "token_rows"]
