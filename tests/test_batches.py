"""Batches: padding and masks are right on either side; the stream is exact, endless and repeatable."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from graft.data import IGNORED, Message, Row, collate, epochs, tokenise
from graft.errors import DataError


def row(prompt="Where?", completion="Here.", **rest):
    return Row("1", (Message("user", prompt),), completion, **rest)


@pytest.mark.parametrize("side", ["left", "right"])
def test_collate_pads_and_masks(tiny_tokenizer, side):
    examples = tokenise([row("x", "yes"), row("a longer question", "no")], tiny_tokenizer).examples
    batch = collate(examples, 0, side=side)
    for index, example in enumerate(examples):
        kept = batch["attention_mask"][index].bool()
        assert batch["input_ids"][index][kept].tolist() == list(example.ids)
        assert batch["labels"][index][kept].tolist() == [IGNORED] * example.supervised + list(example.ids[example.supervised :])
        assert (batch["labels"][index][~kept] == IGNORED).all()
        assert kept.tolist() == sorted(kept.tolist(), reverse=side == "right")
    assert batch["input_ids"].dtype == torch.long
    with pytest.raises(DataError):
        collate([], 0)


@settings(max_examples=60, deadline=None)
@given(count=st.integers(1, 30), batch_size=st.integers(1, 12), pool=st.integers(1, 4), seed=st.integers(0, 5))
def test_every_example_once_an_epoch(count, batch_size, pool, seed):
    examples = list(range(count))
    sized = [Sized(index) for index in examples]
    taken = list(itertools.islice(epochs(sized, batch_size, seed, pool=pool), 3 * count))
    assert all(len(batch) == batch_size for batch in taken)
    flat = [one.index for batch in taken for one in batch]
    counts = [flat.count(index) for index in examples]
    assert max(counts) - min(counts) <= 2
    again = list(itertools.islice(epochs(sized, batch_size, seed, pool=pool), 3 * count))
    assert again == taken


class Sized:
    def __init__(self, index):
        self.index = index
        self.ids = (0,) * (index % 7 + 1)


def test_an_exact_epoch_is_a_permutation_and_the_next_differs():
    sized = [Sized(index) for index in range(24)]
    taken = list(itertools.islice(epochs(sized, 4, seed=3), 12))
    first, second = ([one.index for batch in half for one in batch] for half in (taken[:6], taken[6:]))
    assert sorted(first) == sorted(second) == list(range(24))
    assert first != second
