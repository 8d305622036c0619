"""How many positions a model has for text: just so many run, whatever families count them from; one more is an error of the model's own."""

import pytest
import torch
from transformers import BloomConfig, BloomForCausalLM

import graft
from graft.evaluate.answer import text_positions
from graft.model.positions import context, room_for_text
from tiny import inputs, tiny

LEARNED = ("gpt2", "opt", "bert", "roberta")  # a table of positions ends; rotations go on


def run(model, name, length):
    with torch.no_grad():
        return model(**inputs(name, 2, length)).logits


@pytest.mark.parametrize("name", LEARNED)
@pytest.mark.parametrize("virtual", [0, 5])
def test_a_text_of_all_positions_runs_and_one_more_token_does_not(name, virtual):
    model, method = tiny(name), graft.Prompt(n=virtual or 1, init_embeds="random")
    assert context(model) == (62 if name == "roberta" else 64)  # whose positions begin behind that of padding
    room = context(model) - virtual
    if virtual:
        assert room_for_text(model, [method, graft.LoRA()]) == room
        graft.adapt(model, method)
    assert text_positions(model) == room
    assert run(model, name, room).isfinite().all()
    with pytest.raises((IndexError, RuntimeError)):
        run(model, name, room + 1)


def test_a_model_that_names_no_end_has_none():
    model = BloomForCausalLM(BloomConfig(hidden_size=32, n_layer=1, n_head=4, vocab_size=64))
    assert context(model) is None
    assert text_positions(model) is None
    assert room_for_text(model, [graft.Prompt(n=5)]) > 10**9
