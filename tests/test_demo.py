"""The demo's data: the same bytes from the same seed, no order in both files, and codes that follow from their messages."""

import hashlib
import json
import re

import pytest

from graft import demo
from graft.errors import DataError


def read(path):
    """The rows of a JSON-lines file."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_files_have_the_rows_asked_for(tmp_path):
    train, test = demo.write(tmp_path / "data")
    assert (train.name, test.name) == ("train.jsonl", "test.jsonl")
    assert (len(read(train)), len(read(test))) == (640, 60)
    assert all(set(row) == {"prompt", "completion"} for row in read(train) + read(test))


def test_the_same_seed_gives_the_same_bytes(tmp_path):
    first, second, other = (demo.write(tmp_path / str(i), seed=seed) for i, seed in enumerate((0, 0, 1)))
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]
    assert first[0].read_bytes() != other[0].read_bytes()
    digest = hashlib.sha256(first[0].read_bytes()).hexdigest()
    assert digest.startswith("9f8298ee240326bb")  # on every machine: results in the docs were measured on these rows


def test_no_order_is_in_both_files(tmp_path):
    train, test = (read(path) for path in demo.write(tmp_path))
    codes = [row["completion"] for row in train + test]
    assert len(set(codes)) == len(codes)


def test_a_code_follows_from_its_message(tmp_path):
    for row in demo.rows(500, seed=3):
        name, drink, size, milk, count = row["completion"].split("|")
        number = int(count.removeprefix("x"))
        words = re.findall(r"[a-z]+|\d", row["prompt"].lower())
        assert name.lower() in words
        assert (drink if number == 1 else drink + "s") in words
        assert {"S": "small", "M": "medium", "L": "large"}[size] in words
        assert [word for word in demo.MILKS if word and word in words] == ([] if milk == "-" else [milk])
        assert number == 1 or str(number) in words or demo.COUNTS[number] in words


def test_rows_are_short():
    assert max(len(row["prompt"]) + len(row["completion"]) for row in demo.rows(2000)) < 90


def test_more_rows_than_orders_is_an_error():
    with pytest.raises(DataError, match="ask for fewer"):
        demo.rows(100_000)
