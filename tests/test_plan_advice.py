"""Which method is advised, and why: ten situations, and the sources of the rules."""

import re
from pathlib import Path

import pytest

from graft.plan.advice import METHODS, RULES, Situation, advise, spoken, why_not

DOCS = Path(__file__).parent.parent


TEN = [
    (Situation(), ("lora",)),
    (Situation(examples=100), ("lora",)),
    (Situation(examples=10_000, needs=frozenset({"quality"})), ("lora",)),
    (Situation(examples=200_000, needs=frozenset({"knowledge"})), ("lora",)),
    (Situation(needs=frozenset({"form"})), ("ia3", "bias", "norms")),
    (Situation(needs=frozenset({"latency"})), ("lora",)),
    (Situation(needs=frozenset({"latency", "untouched"})), ("ia3", "bias")),
    (Situation(needs=frozenset({"adapters", "form"})), ("ia3",)),
    (Situation(needs=frozenset({"storage"})), ("ia3", "norms")),
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
    if rule.source == "docs/results.md":
        text = (DOCS / rule.source).read_text()
        for number in re.findall(r"\d+\.\d+", rule.sentence):
            assert re.search(rf"(?<![\d.]){re.escape(number)}(?!\d)", text), number
    assert rule.source.startswith(("docs/", "arXiv:"))
    if rule.source.startswith("docs/"):
        assert (DOCS / rule.source).exists()
