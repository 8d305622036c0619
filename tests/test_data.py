"""Reading: every form and format is read, every bad row is named."""

import csv
import gzip
import hashlib
import io
import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from graft.data import overlap, read, split
from graft.errors import DataError

CHAT = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Where?"}, {"role": "assistant", "content": "Here."}]


def write(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


@pytest.mark.parametrize("ending", ["jsonl", "jsonl.gz", "json", "csv", "parquet"])
def test_every_format_gives_the_same_rows(tmp_path, ending):
    records = [
        {"id": "a", "prompt": 'say "hé"\nnow', "completion": "hé", "choices": ["hé", "ho"], "gold": 0},
        {"id": "b", "prompt": "second, line", "completion": "yes", "choices": ["no", "yes"], "gold": 1},
    ]
    path = tmp_path / f"data.{ending}"
    path.write_bytes(encoded(records, ending))
    table = read(path)
    assert [(one.id, one.messages[0].content, one.completion, one.choices, one.gold) for one in table.rows] == [
        (record["id"], record["prompt"], record["completion"], tuple(record["choices"]), record["gold"]) for record in records
    ]
    assert table.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def encoded(records, ending):
    if ending == "parquet":
        arrow = pytest.importorskip("pyarrow")
        from pyarrow import parquet

        sink = io.BytesIO()
        parquet.write_table(arrow.Table.from_pylist(records), sink)
        return sink.getvalue()
    if ending == "csv":
        sink = io.StringIO(newline="")
        writer = csv.writer(sink)
        writer.writerow(records[0])
        writer.writerows([json.dumps(v) if isinstance(v, list | int) else v for v in record.values()] for record in records)
        return b"\xef\xbb\xbf" + sink.getvalue().encode()
    if ending == "json":
        return json.dumps(records, indent=2).encode()
    lines = "".join(json.dumps(record, ensure_ascii=False) + "\r\n" for record in records).encode()
    return gzip.compress(lines) if ending == "jsonl.gz" else lines


BAD = {
    "broken json": ('{"prompt": "a", "completion": ', "character 31", "broken JSON"),
    "not an object": ("[1]", "", "is a list, must be an object"),
    "blank line": ("", "", "blank"),
    "null": ('{"prompt": "a", "completion": null}', "column 'completion'", "is null, must be text"),
    "nan": ('{"prompt": "a", "completion": NaN}', "", "NaN is not a JSON value"),
    "infinite label": ('{"prompt": "a", "completion": "b", "label": 1e999}', "column 'label'", "inf"),
    "number": ('{"prompt": "a", "completion": 3}', "column 'completion'", "is a number"),
    "empty": ('{"prompt": "a", "completion": " "}', "column 'completion'", "is empty"),
    "key twice": ('{"prompt": "a", "completion": "b", "completion": "c"}', "", "'completion' stands twice"),
    "typo": ('{"prompt": "a", "completon": "b"}', "", "'completon': did you mean 'completion'?"),
    "missing": ('{"prompt": "a"}', "", "needs column 'completion' too"),
    "unknown": ('{"foo": "a"}', "", "no known row form"),
    "other form": ('{"instruction": "a", "output": "b"}', "", "the row has the form alpaca, the rows before it prompt/completion"),
    "one text, one list": ('{"prompt": "a", "completion": [{"role": "assistant", "content": "b"}]}', "column 'prompt'", "both must be"),
    "wrong role": (
        '{"prompt": [{"role": "tool", "content": "a"}], "completion": [{"role": "assistant", "content": "b"}]}',
        "column 'prompt'",
        "user",
    ),
    "two completions": (json.dumps({"prompt": CHAT[:2], "completion": CHAT[2:] * 2}), "column 'completion'", "has 2 messages"),
    "lone surrogate": ('{"prompt": "a\\ud800", "completion": "b"}', "column 'prompt'", "half of a character"),
    "same choice": ('{"prompt": "a", "completion": "b", "choices": ["b", "b"], "gold": 0}', "column 'choices'", "twice"),
    "gold out of range": ('{"prompt": "a", "completion": "b", "choices": ["b", "c"], "gold": 2}', "column 'gold'", "must be 0 to 1"),
    "gold disagrees": ('{"prompt": "a", "completion": "b", "choices": ["b", "c"], "gold": 1}', "column 'gold'", "the completion says 'b'"),
    "no gold": ('{"prompt": "a", "completion": "b", "choices": ["d", "c"]}', "column 'choices'", "does not hold the completion"),
    "deep": ("[" * 100_000, "", "broken JSON"),
    "huge number": ('{"prompt": "a", "completion": "b", "gold": ' + "1" * 5000 + "}", "", "broken JSON"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_row_is_named(tmp_path, name):
    line, column, reason = BAD[name]
    good = json.dumps({"prompt": "a", "completion": "b"})
    path = tmp_path / "t.jsonl"
    path.write_text(f"{good}\n{line}\n{good}\n")
    table = read(path, bad_rows="skip")
    (bad,) = table.bad
    assert len(table.rows) == 2
    assert bad.where == "t.jsonl:2"
    assert bad.column == column
    assert reason in bad.reason
    with pytest.raises(DataError, match=r"t\.jsonl:2"):
        read(path)


def test_five_bad_rows_are_shown_and_the_rest_counted(tmp_path):
    with pytest.raises(DataError) as error:
        read(write(tmp_path / "t.jsonl", [{"text": "ok"}] + [{"text": ""}] * 8))
    message = str(error.value)
    assert "8 of 9 rows" in message
    assert "and 3 more" in message
    assert message.count("is empty") == 5


def test_bytes_that_are_not_utf8_are_named(tmp_path):
    path = tmp_path / "t.jsonl"
    path.write_bytes(b'{"text": "a"}\n{"text": "caf\xe9"}\n')
    with pytest.raises(DataError, match=r"t\.jsonl:2, character 14: byte 0xe9 is not UTF-8"):
        read(path)
    path = tmp_path / "t.csv"
    path.write_bytes(b"text\nok\ncaf\xe9\n")
    with pytest.raises(DataError, match=r"t\.csv:3: byte 0xe9"):
        read(path)
    path.write_bytes("text\na".encode("utf-16"))
    with pytest.raises(DataError, match="UTF-16"):
        read(path)


FILE_FAULTS = {
    "t.json": (b'[{"text": "a"}, {"text": ]', r"t\.json:1, character 26: broken JSON"),
    "trailing.json": (b'[{"text": "a"},]', "broken JSON"),
    "more.json": (b'[{"text": "a"}] x', "something follows"),
    "open.json": (b'[{"text": "a"}', "broken JSON"),
    "object.json": (b'{"text": "a"}', "must hold a list"),
    "t.jsonl.gz": (gzip.compress(b'{"text": "a"}')[:-9], "not a whole gzip file"),
    "t.csv": (b'text\n"a', "broken CSV"),
    "twice.csv": (b"text,text\na,b\n", "'text' stands twice"),
    "t.parquet": (b"PAR1 nonsense PAR1", "not a readable parquet"),
    "t.txt": (b"hello", "unknown format"),
    "empty.jsonl": (b"", "the file is empty"),
    "blank.jsonl": (b"\n\n", "the file is empty"),
    "empty.json": (b"[]", "the file is empty"),
    "empty.csv": (b"", "the file is empty"),
    "cells.csv": (b"text,label\na\n", r"cells\.csv:2: has 1 cells, the header has 2"),
    "choices.csv": (b"prompt,completion,choices\na,b,b|c\n", "column 'choices': holds 'b|c', must be JSON"),
}


@pytest.mark.parametrize("name", FILE_FAULTS)
def test_a_broken_file_is_named(tmp_path, name):
    blob, reason = FILE_FAULTS[name]
    (tmp_path / name).write_bytes(blob)
    with pytest.raises(DataError, match=reason.replace("|", r"\|")):
        read(tmp_path / name)


def test_lines_are_counted_through_cells_and_objects_of_several_lines(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text('text,label\n"a\nb",x\nc,\n')
    with pytest.raises(DataError, match=r"t\.csv:4, column 'label': is empty"):
        read(path)
    path = tmp_path / "t.json"
    path.write_text('[\n {"text": "a"},\n\n {"text":\n ""}]')
    with pytest.raises(DataError, match=r"t\.json:4, column 'text': is empty"):
        read(path)


def test_sources_that_are_no_file(tmp_path):
    for source in ("absent.jsonl", "some/absent.jsonl", tmp_path / "org" / "name", "one two"):
        with pytest.raises(DataError, match="no such file"):
            read(source)
    with pytest.raises(DataError, match="is a folder"):
        read(tmp_path)


def test_a_hub_id_is_read_through_datasets(monkeypatch):
    datasets = pytest.importorskip("datasets")
    asked = []

    def load_dataset(name, split):
        asked.append((name, split))
        return [{"text": "a", "label": 0}]

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert read("some-org/some.data").rows[0].where == "some-org/some.data:1"
    assert read("some-org/some.data:test[:10%]").rows[0].label == "0"
    assert asked == [("some-org/some.data", "train"), ("some-org/some.data", "test[:10%]")]


def test_limit_reads_no_further(tmp_path):
    path = tmp_path / "t.jsonl"
    path.write_text('{"text": "a"}\n{"text": "b"}\nbroken')
    assert len(read(path, limit=2)) == 2


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["role", "content", "from", "value", "x"]), inner, max_size=3)
    ),
    max_leaves=8,
)
columns = [
    "messages",
    "conversations",
    "prompt",
    "completion",
    "text",
    "label",
    "instruction",
    "input",
    "output",
    "choices",
    "gold",
    "id",
    "références",
]


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    records=st.lists(st.dictionaries(st.sampled_from(columns), json_values, max_size=5) | json_values, max_size=4),
    junk=st.binary(max_size=20),
)
def test_anything_read_is_a_table_or_a_data_error(tmp_path, records, junk):
    path = tmp_path / "t.jsonl"
    path.write_bytes("\n".join(map(json.dumps, records)).encode() + b"\n" + junk)
    for name in ("t.jsonl", "t.json", "t.csv"):
        (tmp_path / name).write_bytes(path.read_bytes())
        try:
            table = read(tmp_path / name, bad_rows="skip")
        except DataError:
            continue
        assert all(one.completion.strip() for one in table.rows)


def test_split_keeps_prompts_together_and_is_repeatable(tmp_path):
    table = read(write(tmp_path / "t.jsonl", [{"prompt": f"p{i // 3}", "completion": f"c{i}"} for i in range(60)]))
    rest, held = split(table, 0.2, seed=1)
    assert len(held) == 12
    assert len(rest) == 48
    assert overlap(rest, held) == 0
    assert split(table, 12, seed=1) == (rest, held)
    assert split(table, 12, seed=2) != (rest, held)
    assert overlap(table, held) == 12
    for part in (0, 60, 1.5):
        with pytest.raises(DataError, match="at least one row"):
            split(table, part, seed=0)
    with pytest.raises(DataError, match="shared by more rows"):
        split(table, 2, seed=0)


def test_labels_and_duplicates(tmp_path):
    table = read(write(tmp_path / "t.jsonl", [{"text": "a", "label": "y"}, {"text": "b", "label": "x"}, {"text": "a", "label": "y"}]))
    assert table.labels == ("x", "y")
    assert table.duplicates == 1
