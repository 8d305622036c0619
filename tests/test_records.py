"""Records: what is written can be read back, a kill loses one line at most, and a wrong record is refused with its field named."""

import json

import pytest

import synthetic_records as synthetic
from graft.compare.records import append, read
from graft.errors import DataError
from synthetic_records import PLAN, RUN


def test_what_is_appended_is_read_back(tmp_path):
    file = tmp_path / "deep" / "records.jsonl"
    for record in synthetic.records():
        append(file, record)
    found = read(file)
    assert found.plan.model["name"] == "SmolLM2-135M-Instruct"
    assert found.find("lora/seed-1").seed == 1
    assert found.find("lora/seed-9") is None
    assert found == read(file.parent)


@pytest.mark.parametrize("cut", [1, 7, 40])
def test_a_torn_last_line_is_dropped_and_then_mended(tmp_path, cut):
    file = tmp_path / "records.jsonl"
    for record in (PLAN, RUN, RUN | {"run": "lora/seed-1"}):
        append(file, record)
    whole = file.read_bytes()
    file.write_bytes(whole[:-cut])
    assert len(read(file).runs) == (2 if cut == 1 else 1)  # cutting the newline alone loses nothing
    append(file, RUN | {"run": "lora/seed-2"})
    assert [run.run for run in read(file).runs][-1] == "lora/seed-2"
    assert all(json.loads(line) for line in file.read_text().splitlines())


def test_the_later_record_of_a_run_counts(tmp_path):
    file = tmp_path / "records.jsonl"
    for record in (PLAN, RUN | {"status": "failed", "reason": "x"}, RUN | {"run": "a"}, RUN):
        append(file, record)
    assert [(run.run, run.status) for run in read(file).runs] == [("lora/seed-0", "done"), ("a", "done")]


def test_non_finite_numbers_become_null(tmp_path):
    file = tmp_path / "records.jsonl"
    append(file, PLAN)
    append(file, RUN | {"score": float("nan"), "curve": [{"step": 1, "train_loss": float("inf")}]})
    run = read(file).runs[0]
    assert run.score is None
    assert run.curve[0]["train_loss"] is None


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"score": "high"}, "score must be a number"),
        ({"per_item": [1, None]}, "per_item must be a list, each item a number"),
        ({"role": "rehearsal"}, "role must be one of trial, final, baseline"),
        ({"run": None}, "needs 'run'"),
        ({"kind": "walk"}, "kind must be one of plan, run"),
        ({"schema": 2}, "schema 2 is not known"),
        ({"seed": True}, "seed must be a whole number"),
        ({"scoer": 1.0}, "unknown key 'scoer'"),
    ],
)
def test_wrong_records_are_refused_before_they_are_written(tmp_path, change, words):
    file = tmp_path / "records.jsonl"
    append(file, PLAN)
    with pytest.raises(DataError, match=words):
        append(file, RUN | change)
    assert len(file.read_text().splitlines()) == 1


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "does not exist"),
        ("", "no plan line"),
        ('{"kind":"plan"\n{"kind":"run"}\n', r"records.jsonl:1: not valid JSON"),
        (json.dumps(PLAN) + "\n[1]\n", r"records.jsonl:2: a record is a JSON object, not list"),
        (json.dumps(PLAN) + "\n" + json.dumps(RUN | {"status": "fine"}) + "\n", r"records.jsonl:2: status must be"),
    ],
)
def test_unreadable_files_are_named_with_their_line(tmp_path, text, words):
    file = tmp_path / "records.jsonl"
    if text is not None:
        file.write_text(text)
    with pytest.raises(DataError, match=words):
        read(file)


def test_keys_of_a_newer_graft_are_ignored_when_reading(tmp_path):
    (tmp_path / "records.jsonl").write_text(json.dumps(PLAN | {"mood": "good"}) + "\n")
    assert read(tmp_path).plan.model == {"name": "tiny"}
