"""Bytes of the loss: its logits and what is made of them, at the moment at which most of that is held.

With M supervised positions, a vocabulary of V and width d:

    model      12 N V        float32 log-probabilities, their gradient, and the gradient of the logits, of all N positions at once
    chunked    12 C V + 2 b M d      logits, their distance to the sum, and its exponential, of C <= 1024 positions, never kept;
                                     the picked hidden states and their gradient of all M

(graft.kernels.loss.chunked). A head that is trained, or does more than a product, makes all M rows of logits at once.
"""

from graft.kernels.loss.chunked import CHUNK
from graft.plan.facts import Facts
from graft.plan.setup import Setup

COPIES = 3  # float32 tensors as large as the logits


def supervised(setup: Setup) -> int:
    """Positions that the loss is of."""
    return round(setup.positions * setup.supervised)


def held(facts: Facts, setup: Setup, *, frozen: bool = True) -> int:
    """Bytes of the loss; `frozen` says that the head is not trained and nothing acts on it."""
    if setup.loss == "model":
        return 4 * COPIES * setup.positions * facts.vocabulary
    rows = supervised(setup)
    if not (frozen and facts.logits):
        return 4 * COPIES * rows * facts.vocabulary + setup.bytes * rows * facts.width
    return 4 * COPIES * min(rows, CHUNK) * facts.vocabulary + 2 * setup.bytes * rows * facts.width
