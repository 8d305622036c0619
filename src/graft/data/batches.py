"""Batches: examples padded to tensors, and the endless, reproducible stream of them that training takes from."""

import random
from collections.abc import Iterator, Sequence

import torch

from graft.data.tokenise import Example
from graft.errors import DataError

IGNORED = -100


def collate(
    examples: Sequence[Example], pad_id: int, *, side: str = "right", multiple: int = 1, most: int | None = None
) -> dict[str, torch.Tensor]:
    """input_ids, attention_mask and labels, each int64 [B, T]; labels are -100 where a token is not trained.

    T is the longest, or the next multiple of `multiple` that is not above `most`, so that batches have few different lengths. `side` is
    where the padding goes; training pads right, generation left. Raises DataError for no examples or another side.
    """
    if not examples or side not in ("left", "right"):
        raise DataError("collate needs at least one example, and side 'left' or 'right'")
    longest = max(len(example.ids) for example in examples)
    rounded = -(-longest // multiple) * multiple
    shape = (len(examples), rounded if most is None else max(longest, min(rounded, most)))
    ids = torch.full(shape, pad_id, dtype=torch.long)
    mask = torch.zeros(shape, dtype=torch.long)
    labels = torch.full(shape, IGNORED, dtype=torch.long)
    for row, example in enumerate(examples):
        length = len(example.ids)
        start = 0 if side == "right" else shape[1] - length
        tokens = torch.tensor(example.ids, dtype=torch.long)
        ids[row, start : start + length] = tokens
        mask[row, start : start + length] = 1
        labels[row, start + example.supervised : start + length] = tokens[example.supervised :]
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def epochs(examples: Sequence[Example], batch_size: int, seed: int, *, pool: int = 8) -> Iterator[list[Example]]:
    """Batches of exactly `batch_size` examples without end; every example once an epoch, each epoch in a new order set by `seed`.

    Within windows of `pool` batches examples of like length share a batch, for padding is wasted work; the batches of a window come
    in random order. `pool=1` shuffles only. What an epoch leaves over begins the next one. Raises DataError without examples.
    """
    if not examples or batch_size < 1 or pool < 1:
        raise DataError("epochs needs at least one example, and a batch size and a pool of at least 1")
    return stream(list(examples), batch_size, random.Random(seed), pool)


def stream(examples: list[Example], batch_size: int, rng: random.Random, pool: int) -> Iterator[list[Example]]:
    """The generator behind `epochs`."""
    left: list[Example] = []
    while True:
        order = rng.sample(examples, len(examples))
        if left:
            missing = batch_size - len(left)
            left, order = left + order[:missing], order[missing:]
            if len(left) == batch_size:
                yield left
                left = []
        whole = len(order) - len(order) % batch_size
        for start in range(0, whole, pool * batch_size):
            yield from window(order[start : min(start + pool * batch_size, whole)], batch_size, rng)
        left = left + order[whole:]


def window(examples: list[Example], batch_size: int, rng: random.Random) -> list[list[Example]]:
    """Batches of neighbours in length, in random order."""
    ranked = sorted(examples, key=lambda example: len(example.ids))
    batches = [ranked[start : start + batch_size] for start in range(0, len(ranked), batch_size)]
    rng.shuffle(batches)
    return batches
