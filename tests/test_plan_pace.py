"""The roofline against what was measured on an H100, and what must change a step's time in which direction."""

import json
from dataclasses import replace

import pytest

import plan_report
from graft.errors import ModelError
from graft.plan.cards import CARDS, bytes_of, named
from graft.plan.pace import pace
from graft.plan.setup import Setup
from steps.points import Point
from steps.predicted import job_of
from test_plan_memory import measured

H100 = named("H100 80GB")


@pytest.mark.parametrize(("point", "line"), measured(), ids=lambda value: value.words if isinstance(value, Point) else "")
def test_the_time_is_what_was_measured(point, line):
    assert pace(job_of(point), named(line["device"])).batch * 1000 == pytest.approx(line["ms"], rel=0.15)


PLAIN = job_of(Point(row="lora", shape="3b", loss="chunked")).under(Setup(batch=4, tokens=2048))


@pytest.mark.parametrize(
    ("change", "part", "slower"),
    [
        ({"checkpointing": True}, "products", True),
        ({"nf4": True}, "unpacking", True),
        ({"compiled": False}, "pointwise", True),
        ({"tokens": 1024}, "attention", False),
        ({"loss": "chunked", "supervised": 0.25}, "loss", False),
        ({"optimizer": ""}, "update", False),
    ],
)
def test_each_choice_changes_its_own_part(change, part, slower):
    before, after = pace(PLAIN, H100), pace(PLAIN.under(replace(PLAIN.setup, **change)), H100)
    assert (getattr(after, part) > getattr(before, part)) == slower
    assert getattr(after, part) != getattr(before, part)


def test_low_rank_branches_cost_more_than_scales_and_training_the_top_costs_least():
    times = {row: pace(job_of(Point(row=row)), H100).batch for row in ("limit", "lora", "dora", "ia3", "last-k", "bottleneck")}
    assert sorted(times, key=times.__getitem__) == ["last-k", "limit", "ia3", "bottleneck", "lora", "dora"]


def test_a_tiny_step_takes_what_the_host_needs_unless_it_is_recorded():
    point = Point(row="lora", shape="1b", batch=1, tokens=16)
    tiny, recorded = (pace(job_of(point, recorded=known), H100) for known in (False, True))
    assert tiny.batch == tiny.host
    assert recorded.host == 0
    assert recorded.batch < tiny.batch / 5
    assert pace(job_of(Point(row="lora", shape="1b", batch=4)), H100).batch > tiny.host


@pytest.mark.parametrize(("row", "ms"), [("limit", 6.0), ("lora", 8.4), ("dora", 12.0)])
def test_recorded_steps_of_few_tokens_take_their_gaps(row, ms):
    assert pace(job_of(Point(row=row, shape="1b", batch=1, tokens=512), recorded=True), H100).batch * 1000 == pytest.approx(ms, rel=0.03)


@pytest.mark.parametrize(
    ("text", "name"),
    [("h100", "H100 80GB"), ("NVIDIA H100 80GB HBM3", "H100 80GB"), ("a100 40gb", "A100 40GB"), ("NVIDIA GeForce RTX 4090", "RTX 4090"),
     ("4090", "RTX 4090"), ("l4", "L4"), ("L40S", "L40S"), ("a100", "A100 80GB")],
)  # fmt: skip
def test_a_card_is_found_by_its_words(text, name):
    assert named(text).name == name


def test_an_unknown_card_is_refused_with_those_that_are_known():
    with pytest.raises(ModelError, match=r"no card 'Z9' is known: name one of .*H100 80GB.* or cpu, or give --memory"):
        named("Z9")
    assert [card.memory for card in CARDS] == sorted(card.memory for card in CARDS)
    assert [card.name for card in CARDS if card.measured] == ["H100 80GB"]


def test_sizes_are_read_in_both_kinds_of_units():
    assert [bytes_of(text) for text in ("24GB", "24 GiB", "22.5g", "24000 MB")] == [24 * 10**9, 24 * 2**30, 22_500_000_000, 24 * 10**9]
    for text in ("24 cows", "", "0GB", "-3GB", "24", "8 kB"):
        with pytest.raises(ModelError, match="write a size such as 24GB"):
            bytes_of(text)


def test_points_that_set_the_rates_are_kept_apart_from_those_that_judge():
    lines = [json.loads(json.dumps(line)) for _, line in measured()]
    judge = {**lines[0], "point": json.loads(Point(row="lora", shape="3b", rank=16).key), "peak_bytes": 20_132_400_000, "ms": 122.0}
    third = {**lines[0], "point": json.loads(Point(row="lora", rank=64).key)}
    known, judged, others = plan_report.compared([*lines, judge, third])
    assert [one.point.shape for one in judged] == ["3b"]
    assert [one.point.rank for one in others] == [64]
    assert {one.point.shape for one in known} == {"7b"}
    assert plan_report.table(judged)[-1].startswith("1 points; the largest error is 0.0")
    assert plan_report.plotted(known, judged)[:4] == b"\x89PNG"
    assert plan_report.plotted(known, []) is None


def test_the_page_is_what_the_report_makes():
    known, judged, others = plan_report.compared(plan_report.lines())
    page = plan_report.PAGE.read_text()
    assert plan_report.summary(others) in page
    assert "\n".join(plan_report.table(known)) in page
    assert "\n".join(plan_report.table(judged)) in page
