"""Row forms: each is recognised from its columns; a chat out of order and a misspelt column are named."""

import json

import pytest

from graft.data import read
from graft.errors import DataError

CHAT = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Where?"}, {"role": "assistant", "content": "Here."}]
SHAREGPT = [{"from": "human", "value": "Where?"}, {"from": "gpt", "value": "Here."}]
FORMS = {
    "messages": ({"messages": CHAT}, ("system", "user"), "Here."),
    "sharegpt": ({"conversations": SHAREGPT}, ("user",), "Here."),
    "texts": ({"prompt": "Where?", "completion": "Here."}, ("user",), "Here."),
    "lists": ({"prompt": CHAT[:2], "completion": CHAT[2:]}, ("system", "user"), "Here."),
    "alpaca": ({"instruction": "Add", "input": "1 2", "output": "3"}, ("user",), "3"),
    "alpaca without input": ({"instruction": "Add", "input": "", "output": "3"}, ("user",), "3"),
    "label": ({"text": "good", "label": "positive"}, ("user",), "positive"),
    "whole number label": ({"text": "good", "label": 1}, ("user",), "1"),
    "text": ({"text": "Once upon a time."}, (), "Once upon a time."),
}


def write(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


@pytest.mark.parametrize("name", FORMS)
def test_every_form_is_recognised(tmp_path, name):
    record, roles, completion = FORMS[name]
    table = read(write(tmp_path / "a.jsonl", [record]))
    assert [turn.role for turn in table.rows[0].messages] == list(roles)
    assert table.rows[0].completion == completion
    assert table.rows[0].where == "a.jsonl:1"


def test_alpaca_input_follows_the_instruction(tmp_path):
    assert read(write(tmp_path / "a.jsonl", [FORMS["alpaca"][0]])).rows[0].messages[0].content == "Add\n\n1 2"


def test_columns_for_scoring_are_kept(tmp_path):
    record = {
        "id": 7,
        "prompt": "p",
        "completion": "b",
        "choices": ["a", "b"],
        "gold": 1,
        "references": ["b", "B"],
        "answer": 3,
        "label": "x",
    }
    found = read(write(tmp_path / "a.jsonl", [record])).rows[0]
    assert (found.id, found.choices, found.gold, found.references, found.answer, found.label) == ("7", ("a", "b"), 1, ("b", "B"), "3", "x")


def test_gold_may_be_left_out_where_the_completion_is_a_choice(tmp_path):
    assert read(write(tmp_path / "a.jsonl", [{"prompt": "p", "completion": "b", "choices": ["a", "b"]}])).rows[0].gold == 1


CHAT_FAULTS = {
    "messages is text": ("oops", "is a text, must be a list"),
    "content is a list": ([{"role": "user", "content": ["a"]}, {"role": "assistant", "content": "b"}], "'content' is a list, must be text"),
    "content is missing": ([{"role": "user"}, {"role": "assistant", "content": "b"}], "'content' is missing"),
    "turn is text": (["a", "b"], "turn 1 is a text"),
    "two user turns": ([{"role": "user", "content": "a"}, {"role": "user", "content": "b"}], "turn 2 is user, must be assistant"),
    "system later": ([*CHAT[1:], CHAT[0]], "turn 3 is system, must be user"),
    "ends with user": (CHAT[:2], "end with the assistant"),
    "empty": ([], "end with the assistant"),
    "tool": ([{"role": "tool", "content": "a"}, {"role": "assistant", "content": "b"}], "has role 'tool'"),
}


@pytest.mark.parametrize("name", CHAT_FAULTS)
def test_a_bad_chat_is_named(tmp_path, name):
    value, reason = CHAT_FAULTS[name]
    with pytest.raises(DataError) as error:
        read(write(tmp_path / "t.jsonl", [{"messages": value}]))
    assert f"t.jsonl:1, column 'messages': {reason}" in str(error.value) or reason in str(error.value)


@pytest.mark.parametrize(
    ("record", "hint"), [({"text": "a", "lable": "b"}, "'label'"), ({"instruction": "a", "inptu": "b", "output": "c"}, "'input'")]
)
def test_a_typo_is_not_read_as_another_form(tmp_path, record, hint):
    with pytest.raises(DataError, match=f"did you mean {hint}"):
        read(write(tmp_path / "t.jsonl", [record]))
