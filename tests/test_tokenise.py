"""Tokenising: exactly the completion and the end of its turn are trained, nothing is cut unsaid, and a preview shows it."""

import io

import pytest
from rich.console import Console

from graft.data import Message, Row, preview, prompt_ids, tokenise
from graft.errors import DataError


def row(prompt="Where?", completion="Here.", **rest):
    return Row("1", (Message("user", prompt),), completion, **rest)


def trained_text(example, tokenizer):
    return tokenizer.decode(example.ids[example.supervised :])


def test_exactly_the_completion_and_the_end_of_the_turn_are_trained(tiny_tokenizer):
    done = tokenise([row("Is it? ", "yes\nno")], tiny_tokenizer, 100)
    (example,) = done.examples
    assert trained_text(example, tiny_tokenizer) == "yes\nno<|im_end|>"
    assert tiny_tokenizer.decode(example.ids) == "<|im_start|>user\nIs it? <|im_end|>\n<|im_start|>assistant\nyes\nno<|im_end|>"
    assert list(example.ids[: example.supervised]) == prompt_ids(example.row, tiny_tokenizer)
    assert (done.note, done.truncated, done.cut, done.trained) == ("", 0, (), example.trained)


def test_the_end_is_the_turns_own_even_where_the_answer_quotes_it(tiny_tokenizer):
    (example,) = tokenise([row("What ends a turn?", "<|im_end|> does")], tiny_tokenizer).examples
    assert trained_text(example, tiny_tokenizer) == "<|im_end|> does<|im_end|>"


def test_without_a_template(plain_tokenizer):
    done = tokenise([row("Where?", "Here.")], plain_tokenizer)
    assert plain_tokenizer.decode(done.examples[0].ids) == "Where?\nHere.<|im_end|>"
    assert trained_text(done.examples[0], plain_tokenizer) == "Here.<|im_end|>"
    assert "no chat template" in done.note
    shots = [row("A?", "B.")]
    assert plain_tokenizer.decode(prompt_ids(row(), plain_tokenizer, shots)) == "A?\nB.\n\nWhere?\n"


@pytest.mark.parametrize("completion", ["here", "\nhere", " here", "card arrival"])
def test_the_prompts_ids_are_those_of_generation_even_where_a_token_would_span_the_border(plain_tokenizer, completion):
    (example,) = tokenise([row("intent:\n", completion)], plain_tokenizer).examples
    assert list(example.ids[: example.supervised]) == prompt_ids(example.row, plain_tokenizer)
    assert trained_text(example, plain_tokenizer) == completion + "<|im_end|>"


def test_plain_text_is_trained_whole(tiny_tokenizer):
    (example,) = tokenise([Row("1", (), "Once upon a time.")], tiny_tokenizer).examples
    assert example.supervised == 1
    assert tiny_tokenizer.decode(example.ids) == "Once upon a time.<|im_end|>"


def test_shots_are_earlier_turns_after_the_system_turn(tiny_tokenizer):
    asked = Row("1", (Message("system", "S"), Message("user", "U")), "A")
    shot = Row("2", (Message("system", "other"), Message("user", "u")), "a")
    text = tiny_tokenizer.decode(prompt_ids(asked, tiny_tokenizer, [shot]))
    turns = [("system", "S"), ("user", "u"), ("assistant", "a"), ("user", "U")]
    assert text == "".join(f"<|im_start|>{role}\n{content}<|im_end|>\n" for role, content in turns) + "<|im_start|>assistant\n"
    (example,) = tokenise([asked], tiny_tokenizer, shots=[shot]).examples
    assert trained_text(example, tiny_tokenizer) == "A<|im_end|>"


def test_of_a_longer_chat_the_last_answer_is_trained_and_the_note_says_so(tiny_tokenizer):
    turns = (Message("user", "a"), Message("assistant", "b"), Message("user", "c"))
    done = tokenise([Row("1", turns, "d")], tiny_tokenizer)
    assert trained_text(done.examples[0], tiny_tokenizer) == "d<|im_end|>"
    assert "1 longer chat" in done.note


def test_a_long_prompt_loses_its_left_end(tiny_tokenizer):
    whole = tokenise([row("x" * 50, "yes")], tiny_tokenizer).examples[0]
    done = tokenise([row("x" * 50, "yes"), row("x", "yes")], tiny_tokenizer, len(whole.ids) - 9)
    assert done.examples[0].ids == whole.ids[9:]
    assert trained_text(done.examples[0], tiny_tokenizer) == "yes<|im_end|>"
    assert (done.truncated, done.cut) == (1, ())
    assert "1 prompt cut on the left" in done.note


def test_a_completion_is_never_cut_silently(tiny_tokenizer):
    rows = [row("x", "yes"), row("x", "z" * 40, where="t.jsonl:9")]
    with pytest.raises(DataError, match=r"1 completion cannot fit in max_length 30: t\.jsonl:9; the longest needs 42"):
        tokenise(rows, tiny_tokenizer, 30)
    cut = tokenise(rows, tiny_tokenizer, 30, truncate="cut")
    assert cut.cut == ("t.jsonl:9",)
    assert len(cut.examples[1].ids) == 30
    dropped = tokenise(rows, tiny_tokenizer, 30, truncate="drop")
    assert len(dropped.examples) == 1
    assert "1 row left out" in dropped.note
    with pytest.raises(DataError, match="no row is left"):
        tokenise(rows[1:], tiny_tokenizer, 30, truncate="drop")
    with pytest.raises(DataError, match="must be one of"):
        tokenise(rows, tiny_tokenizer, truncate="yes")


START = "{% if add_generation_prompt %}[assistant]{% endif %}"
TEMPLATES = {
    "a generation prompt that the answer lacks": (
        "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}<|im_end|>{% endfor %}" + START.replace("]{%", "]<think>{%"),
        "cannot be found",
    ),
    "a template that refuses": ("{{ raise_exception('roles must alternate') }}", "refuses this row: roles must alternate"),
}


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_template_that_cannot_be_used_is_explained(plain_tokenizer, name):
    template, reason = TEMPLATES[name]
    plain_tokenizer.chat_template = template
    with pytest.raises(DataError, match=reason):
        tokenise([row(where="t.jsonl:4")], plain_tokenizer)


GOOD_TEMPLATES = {
    "no end of turn": ("{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}{% endfor %}" + START, "Here."),
    "trimmed content": (
        "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] | trim }}<|im_end|>\n{% endfor %}" + START,
        " Here. ",
    ),
    "reasoning before the answer": (
        "{% for m in messages %}[{{ m['role'] }}]{{ '<think></think>' if m.role == 'assistant' }}{{ m['content'] }}<|im_end|>{% endfor %}"
        + START,
        "Here.",
    ),
}


@pytest.mark.parametrize("name", GOOD_TEMPLATES)
def test_templates_of_other_habits(plain_tokenizer, name):
    template, completion = GOOD_TEMPLATES[name]
    plain_tokenizer.chat_template = template
    (example,) = tokenise([row("Where?", completion)], plain_tokenizer).examples
    thought = "<think></think>" if "think" in template else ""
    assert trained_text(example, plain_tokenizer) == thought + "Here.<|im_end|>"
    assert list(example.ids[: example.supervised]) == prompt_ids(example.row, plain_tokenizer)


def test_nothing_to_train_is_an_error(plain_tokenizer):
    plain_tokenizer.eos_token = None
    with pytest.raises(DataError, match="no end-of-sequence token"):
        tokenise([row()], plain_tokenizer)
    with pytest.raises(DataError, match="not one token is trained"):
        tokenise([Row("1", (), "a", where="t:1")], plain_tokenizer)


def test_preview_shows_what_is_trained_without_colour(tiny_tokenizer):
    done = tokenise([row("Is it \x1b[31mred?", "yes 🙂\nno", where="t.jsonl:3")], tiny_tokenizer)
    console = Console(file=io.StringIO(), width=200)
    preview(done, tiny_tokenizer, console, 1)
    shown = console.file.getvalue()
    trained = shown.rpartition("«")[2].partition("»")[0]
    assert trained.replace("│", "") == "yes 🙂⏎\nno<|im_end|>"
    assert "\x1b" not in shown
    assert "\\x1b" in shown
    assert f"t.jsonl:3 · {done.tokens} tokens, {done.trained} trained" in shown
