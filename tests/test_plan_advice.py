"""Which method is advised, and why: ten situations, and the sources of the rules."""

import re
from pathlib import Path

import pytest

from graft.plan import plan
from graft.plan.advice import METHODS, RULES, Situation, advise, spoken, why_not
from graft.plan.show import commands
from planned import llama

DOCS = Path(__file__).parent.parent


TEN = [
    (Situation(), ("lora",)),
    (Situation(examples=100), ("lora",)),
    (Situation(examples=10_000, needs=frozenset({"quality"})), ("lora",)),
    (Situation(examples=200_000, needs=frozenset({"knowledge"})), ("lora",)),
    (Situation(needs=frozenset({"form"})), ("ia3", "bias", "norms")),
    (Situation(needs=frozenset({"latency"})), ("lora",)),
    (Situation(needs=frozenset({"latency", "untouched"})), ("ia3",)),
    (Situation(needs=frozenset({"adapters", "form"})), ("ia3",)),
    (Situation(needs=frozenset({"storage"})), ("ia3",)),
    (Situation(needs=frozenset({"speed"})), ("lora", "last-k")),
]


@pytest.mark.parametrize(("situation", "best"), TEN)
def test_the_advice_in_ten_situations(situation, best):
    found = advise(situation)
    assert found.best == best
    assert found.reasons
    assert ("equal" in spoken(found)) == (len(best) > 1)
    assert any(rule.source.startswith("docs/") for rule in found.reasons), "measured evidence comes first"
    for name in METHODS:
        assert bool(why_not(situation, name)) == (name not in best)


def test_virtual_tokens_and_bottlenecks_are_ruled_out_where_they_cannot_serve():
    found = advise(Situation(needs=frozenset({"latency"})))
    assert set(found.ruled_out) == {"bottleneck", "prefix", "prompt"}
    assert "context" in why_not(Situation(needs=frozenset({"context"})), "prefix")[0].sentence
    assert advise(Situation(fits=frozenset({"prompt"}))).best == ("prompt",)
    assert advise(Situation(fits=frozenset())).best == ()
    assert spoken(advise(Situation(fits=frozenset()))) == "No method fits."
    assert "full" in advise(Situation(parameters=70 * 10**9)).ruled_out


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.sentence[:40])
def test_every_number_of_a_rule_stands_where_it_says(rule):
    assert {*rule.favours, *rule.against, *rule.out} <= set(METHODS)
    if rule.source in ("docs/results.md", "docs/performance.md"):
        text = (DOCS / rule.source).read_text()
        for number in re.findall(r"\d+\.\d+", rule.sentence):
            assert re.search(rf"(?<![\d.]){re.escape(number)}(?!\d)", text), number
    assert rule.source.startswith(("docs/", "arXiv:", "huggingface/peft"))
    if rule.source.startswith("docs/"):
        assert (DOCS / rule.source).exists()


def test_the_page_has_the_ten_situations():
    page = (DOCS / "docs" / "planning.md").read_text()
    rows = [line.strip("| ").split(" | ") for line in page.split("because |\n|---:|---|---|---|\n")[1].split("\n\n")[0].splitlines()]
    found = [
        (Situation(int(examples.replace(",", "").strip("–") or 0), frozenset(needs.strip("–").split(",")) - {""}), tuple(best.split(", ")))
        for examples, needs, best, _ in rows
    ]
    assert found == TEN


def test_what_cannot_be_merged_or_shared_is_not_advised_for_it():
    many = advise(Situation(needs=frozenset({"adapters"})))
    assert {"full", "last-k", "norms"} <= set(many.ruled_out)
    fast = advise(Situation(needs=frozenset({"adapters", "latency"})))
    assert fast.best == ("ia3",)
    assert not any("merged it is" in rule.sentence for rule in fast.reasons)
    assert advise(Situation(needs=frozenset({"adapters", "latency", "quality"}))).best == ("lora",)


def test_the_largest_rank_is_taken_where_there_is_much_to_learn():
    assert advise(Situation(examples=200_000, needs=frozenset({"knowledge"}))).largest
    assert not advise(Situation(examples=200_000)).largest
    config = llama(512, 2, 1024)
    assert "--set r=64 " in commands(plan(config, examples=200_000, need=["knowledge"], memory="80GB"))[0]
    assert "--set r=8 " in commands(plan(config, examples=200_000, memory="80GB"))[0]


def test_why_not_has_what_was_measured_of_a_method_where_nothing_speaks_against_it():
    assert "behind LoRA on banking77" in why_not(Situation(), "ia3")[0].sentence
    assert "train least" in why_not(Situation(needs=frozenset({"form"})), "bottleneck")[0].sentence
