"""The serving benchmark, on a model so small that it runs anywhere."""

import json

import pytest

import serve as benchmark
import serve_loads
from serving.points import Point, planned
from serving.traffic import quantiles


def test_a_plan_measures_the_base_before_what_is_divided_by_it():
    points = planned("tiny", [2, 4], 8, 4, [8, 0, 1], ["transformers", "peft"], 2)
    assert len(set(points)) == len(points)
    ours = [point for point in points if point.engine == "graft"]
    assert [point.resident for point in ours] == sorted(point.resident for point in ours)
    assert {point.traffic for point in ours if point.resident == 0} == {"base"}
    assert all(Point(**json.loads(json.dumps(point.fields))) == point for point in points)


def test_quantiles():
    assert quantiles([float(k) for k in range(101)]) == {"p50": 50.0, "p95": 95.0}
    assert quantiles([3.0]) == {"p50": 3.0, "p95": 3.0}


@pytest.mark.filterwarnings("ignore")
def test_every_engine_is_measured_once_and_failures_are_lines(tmp_path, monkeypatch, capsys):
    output = tmp_path / "results.jsonl"
    given = ["--output", str(output), "--shape", "tiny", "--requests", "3", "--length", "8", "--new", "4", "--repeats", "1"]
    given += ["--resident", "0", "2", "--peers", "transformers", "peft", "--profile"]

    def broken(model, point, seed):
        raise RuntimeError("no card")

    monkeypatch.setattr(benchmark.peers, "peft_rate", broken)
    benchmark.main(given)
    lines = [json.loads(line) for line in output.read_text().splitlines()]
    assert [(line["point"]["engine"], line["point"]["traffic"]) for line in lines] == [
        ("graft", "base"), ("graft", "base"), ("graft", "one"), ("graft", "mixed"), ("transformers", "base"), ("peft", "mixed"),
    ]  # fmt: skip
    assert lines[-1]["failed"] == "RuntimeError: no card"
    for line in lines[:-1]:
        assert line["tokens_a_second"] > 0
        assert line["versions"]["torch"]
    assert all({"first_token_ms", "token_ms", "profile"} <= set(line) for line in lines[:4])
    assert all(0 < line["token_ms"]["p50"] <= line["token_ms"]["p95"] for line in lines[:4])
    benchmark.main(given)
    assert output.read_text().count("\n") == len(lines)
    assert "3 requests" in capsys.readouterr().out


def test_loads_are_timed_alone_and_beside_answers(tmp_path, monkeypatch):
    monkeypatch.setattr(serve_loads, "AFTER", 0.02)
    output = tmp_path / "loads.jsonl"
    serve_loads.main(["--output", str(output), "--shape", "tiny", "--before", "2", "--requests", "2"])
    lines = [json.loads(line) for line in output.read_text().splitlines()]
    assert [line["busy"] for line in lines] == [False] * 2 + [True] * 8
    assert len({line["method"] for line in lines if line["busy"]}) == 7
    assert all(line["load_s"] > 0 and line["first_s"] > 0 for line in lines)
    assert all(line["gaps_s"][0] > 0 for line in lines if line["busy"])
