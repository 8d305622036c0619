"""What people type by mistake in Python: one sentence that says what to type."""

import pytest
import torch

import graft
import graft.methods
from graft.errors import AdapterError, GraftError
from tiny import tiny


@pytest.mark.parametrize(
    ("method", "said"),
    [
        ("lora", "'lora' is no method: give one with its settings, such as graft.LoRA"),
        (graft.LoRA, "is no method: give one with its settings"),
        ([], "no method was given"),
        ([graft.LoRA(), "ia3"], "'ia3' is no method"),
        (graft.LoRA(r=1.5), r"lora.r = 1.5: expected int"),
        (graft.LoRA(targets="query"), "lora.targets = 'query': expected"),
    ],
)
def test_what_is_no_method_is_said_to_be_none(method, said):
    model = tiny("llama")
    with pytest.raises(AdapterError, match=said):
        graft.adapt(model, method)
    assert not any("graft" in name for name, _ in model.named_modules())


def test_detaching_twice_is_detaching_once():
    model = tiny("llama")
    adapted = graft.adapt(model, graft.LoRA(r=2))
    assert adapted.detach() is adapted.detach() is model
    other = graft.adapt(model, graft.IA3())
    assert adapted.detach() is model
    assert other.adapter().parts, "a second detaching takes off what another adapted since"


@pytest.mark.parametrize("method", [graft.LoRA(r=2), graft.Prefix(n=3), graft.Prompt(n=3)])
@pytest.mark.parametrize("names", [3, 8])
def test_names_that_do_not_fit_the_batch_are_said(method, names):
    model = tiny("llama")
    adapted = graft.adapt(model, method)
    adapted.route(["live"] * names)
    with pytest.raises(AdapterError, match=f"{names} names are routed and the batch has 4 rows"):
        model(torch.ones(4, 5, dtype=torch.long))
    adapted.route(["live", None])  # two rows a name
    assert len(model(torch.ones(4, 5, dtype=torch.long)).logits) == 4


def test_a_route_without_a_name_is_refused():
    adapted = graft.adapt(tiny("llama"), graft.LoRA(r=2))
    with pytest.raises(AdapterError, match=r"route takes a name for each row, and has none"):
        adapted.route([])


def test_every_method_of_the_list_is_usable():
    for method in graft.methods.METHODS.values():
        graft.adapt(tiny("llama"), method) if not isinstance(method, graft.Prompt | graft.Prefix) else None
    with pytest.raises(GraftError):
        graft.adapt(tiny("llama"), graft.Prompt(n=2.5))
