"""From one record (a dictionary out of a file) to a `Row`: the form is recognised from the columns, no registry file is needed.

    form               columns                                    becomes
    messages           messages [{role, content}]                 turns before the last, the last assistant turn
    sharegpt           conversations [{from, value}]              the same
    prompt/completion  prompt, completion (both texts or both     the prompt's turns, the completion
                       lists of messages)
    alpaca             instruction, output, input (optional)      instruction + blank line + input, output
    text/label         text, label                                text, label
    text               text                                       no turns: the text itself is learned

The first form in this order whose columns are all there is the row's. Of a chat, the last assistant turn is the completion.
Columns for scoring may stand beside any form: id, label, choices + gold, options + gold, references, answer. Others are ignored,
unless they look like a misspelt column of the form.
"""

import difflib
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from graft.data.rows import Message, Row

Record = Mapping[str, Any]
LIST_COLUMNS = ("messages", "conversations", "choices", "options", "references")
SHAREGPT_ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}


class RowFault(Exception):
    """Why one row cannot be used; `read` adds the file and line."""

    def __init__(self, column: str, reason: str) -> None:
        super().__init__(reason)
        self.column = f"column '{column}'" if column else ""
        self.reason = reason


@dataclass(frozen=True)
class Form:
    """A row form: its name, the columns it needs, those it may have, and how turns are made of them (the last is the completion)."""

    name: str
    needs: tuple[str, ...]
    may: tuple[str, ...]
    turns: Callable[[Record], list[Message]]


def from_messages(record: Record) -> list[Message]:
    """Turns of {messages: [{role, content}]}."""
    return chat(record["messages"], "messages")


def from_conversations(record: Record) -> list[Message]:
    """Turns of sharegpt's {conversations: [{from, value}]}."""
    turns = message_list(record["conversations"], "conversations", "from", "value")
    for index, turn in enumerate(turns):
        if turn.role not in SHAREGPT_ROLES:
            raise RowFault("conversations", f"turn {index + 1} is from '{turn.role}', must be human, gpt or system")
    return in_order([Message(SHAREGPT_ROLES[turn.role], turn.content) for turn in turns], "conversations")


def from_prompt(record: Record) -> list[Message]:
    """Turns of {prompt, completion}: both texts, or both lists of messages with one assistant turn as the completion."""
    prompt, completion = record["prompt"], record["completion"]
    if not isinstance(prompt, list) and not isinstance(completion, list):
        return [Message("user", text(prompt, "prompt")), Message("assistant", text(completion, "completion"))]
    if not isinstance(prompt, list) or not isinstance(completion, list):
        wrong, other = ("prompt", "completion") if isinstance(completion, list) else ("completion", "prompt")
        raise RowFault(wrong, f"is {kind(record[wrong])}, but '{other}' is a list of messages: both must be texts or both lists")
    before = message_list(prompt, "prompt", "role", "content")
    after = message_list(completion, "completion", "role", "content")
    if len(after) != 1:
        raise RowFault("completion", f"has {len(after)} messages, must have one")
    if after[0].role != "assistant":
        raise RowFault("completion", f"its message has role '{after[0].role}', must be assistant")
    if not before or before[-1].role != "user":
        raise RowFault("prompt", "must end with a user turn")
    return in_order([*before, *after], "prompt")


def from_alpaca(record: Record) -> list[Message]:
    """Turns of {instruction, input, output}; an empty, null or missing input adds nothing."""
    instruction = text(record["instruction"], "instruction")
    extra = record.get("input")
    if extra is not None and not isinstance(extra, str):
        raise RowFault("input", f"is {kind(extra)}, must be text")
    prompt = f"{instruction}\n\n{text(extra, 'input')}" if extra and extra.strip() else instruction
    return [Message("user", prompt), Message("assistant", text(record["output"], "output"))]


def from_label(record: Record) -> list[Message]:
    """Turns of {text, label}: the text is asked, the label is the answer."""
    return [Message("user", text(record["text"], "text")), Message("assistant", word(record["label"], "label"))]


def from_text(record: Record) -> list[Message]:
    """Plain text: no turn before, all of it is learned."""
    return [Message("assistant", text(record["text"], "text"))]


FORMS = (
    Form("messages", ("messages",), (), from_messages),
    Form("sharegpt", ("conversations",), (), from_conversations),
    Form("prompt/completion", ("prompt", "completion"), (), from_prompt),
    Form("alpaca", ("instruction", "output"), ("input",), from_alpaca),
    Form("text/label", ("text", "label"), (), from_label),
    Form("text", ("text",), ("label",), from_text),
)


def recognise(record: Record) -> Form:
    """The form of a record. Raises RowFault where no form fits, or where a column looks like a misspelt one of the form."""
    fitting = [form for form in FORMS if all(column in record for column in form.needs)]
    if not fitting:
        raise RowFault("", missing(record))
    form = fitting[0]
    for column in (*form.needs, *form.may):
        typo = close(column, record) if column not in record else None
        if typo:
            raise RowFault(typo, f"is not a column of {form.name} rows: did you mean '{column}'?")
    return form


def missing(record: Record) -> str:
    """The sentence for a record of no form: the nearest misspelling, else the nearest form, else all of them."""
    for form in FORMS:
        typos = {column: close(column, record) for column in form.needs if column not in record}
        if typos and all(typos.values()):
            wrong = "; ".join(f"'{typo}': did you mean '{column}'?" for column, typo in typos.items())
            return f"unknown column {wrong}"
    for form in FORMS:
        absent = [column for column in form.needs if column not in record]
        if len(absent) < len(form.needs):
            return f"a row of the form {form.name} needs column '{absent[0]}' too"
    known = ", ".join("{" + ", ".join(form.needs) + "}" for form in FORMS)
    return f"columns {sorted(map(str, record))[:8]} are no known row form; known are {known}"


def close(column: str, record: Record) -> str | None:
    """A key of the record that is probably `column` misspelt."""
    known = {name for form in FORMS for name in (*form.needs, *form.may)}
    found = difflib.get_close_matches(column, [str(key) for key in record if key not in known], n=1, cutoff=0.75)
    return found[0] if found else None


def build(record: Record, form: Form, name: str, where: str) -> Row:
    """The row of a record in its form; `name` is the id where the record has none. Raises RowFault."""
    *before, last = form.turns(record)
    choices, gold = ranking(record, last.content)
    label, answer = record.get("label"), record.get("answer")
    return Row(
        id=name if record.get("id") is None else word(record["id"], "id"),
        messages=tuple(before),
        completion=last.content,
        choices=choices,
        gold=gold,
        references=texts(record.get("references"), "references"),
        answer=None if answer is None else word(answer, "answer"),
        label=None if label is None else word(label, "label"),
        where=where,
    )


def ranking(record: Record, completion: str) -> tuple[tuple[str, ...], int | None]:
    """The candidates of a row and which is right; without `choices`, `gold` may still point into `options` and is only checked."""
    choices, options = texts(record.get("choices"), "choices"), texts(record.get("options"), "options")
    gold = record.get("gold")
    if gold is None:
        if choices and completion not in choices:
            raise RowFault("choices", "does not hold the completion, and there is no 'gold' that says which choice is right")
        return choices, choices.index(completion) if choices else None
    if isinstance(gold, bool) or not isinstance(gold, int):
        raise RowFault("gold", f"is {kind(gold)}, must be a whole number")
    count = len(choices) or len(options)
    if not count:
        raise RowFault("gold", "points into 'choices', which this row has not")
    if not 0 <= gold < count:
        raise RowFault("gold", f"is {gold}, must be 0 to {count - 1}")
    if choices and choices[gold].strip() != completion.strip():
        raise RowFault("gold", f"says '{choices[gold][:40]}' is right, the completion says '{completion[:40]}'")
    return choices, gold if choices else None


def chat(value: Any, column: str) -> list[Message]:
    """A whole conversation that ends with the assistant."""
    return in_order(message_list(value, column, "role", "content"), column)


def message_list(value: Any, column: str, role: str, content: str) -> list[Message]:
    """The turns of a list of {role, content} objects; only a system turn may be empty."""
    if not isinstance(value, list):
        raise RowFault(column, f"is {kind(value)}, must be a list of messages")
    turns = []
    for index, item in enumerate(value):
        if not isinstance(item, Mapping):
            raise RowFault(column, f"turn {index + 1} is {kind(item)}, must be an object with '{role}' and '{content}'")
        for key in (role, content):
            if not isinstance(item.get(key), str):
                raise RowFault(column, f"turn {index + 1}: '{key}' is {kind(item[key]) if key in item else 'missing'}, must be text")
        empty_allowed = item[role] == "system"
        turns.append(Message(item[role], item[content] if empty_allowed and not item[content] else text(item[content], column, index)))
    return turns


def in_order(turns: list[Message], column: str) -> list[Message]:
    """Checks the roles: one system turn at most, first; then user and assistant in turn; the assistant last."""
    rest = turns[1:] if turns and turns[0].role == "system" else turns
    first = len(turns) - len(rest) + 1
    for index, turn in enumerate(rest):
        if turn.role not in ("system", "user", "assistant"):
            raise RowFault(column, f"turn {first + index} has role '{turn.role}', must be system, user or assistant")
        expected = ("user", "assistant")[index % 2]
        if turn.role != expected:
            raise RowFault(column, f"roles are out of order: turn {first + index} is {turn.role}, must be {expected}")
    if len(rest) < 2 or len(rest) % 2:
        raise RowFault(column, "must hold a user turn and end with the assistant's")
    return turns


def text(value: Any, column: str, turn: int | None = None) -> str:
    """A text that is not blank and can be written as UTF-8."""
    place = "" if turn is None else f"turn {turn + 1} "
    if not isinstance(value, str):
        raise RowFault(column, f"{place}is {kind(value)}, must be text")
    if not value.strip():
        raise RowFault(column, f"{place}is empty")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise RowFault(column, f"{place}holds half of a character (a lone surrogate) at position {error.start + 1}") from None
    return value


def texts(value: Any, column: str) -> tuple[str, ...]:
    """A list of texts; null or missing is none. Two equal choices cannot be told apart, two equal references are one too many."""
    if value is None:
        return ()
    if not isinstance(value, list):
        raise RowFault(column, f"is {kind(value)}, must be a list of texts")
    items = tuple(text(item, column, None) for item in value)
    if column == "choices" and len(set(items)) < len(items):
        raise RowFault(column, "holds the same choice twice")
    return items


def word(value: Any, column: str) -> str:
    """A label, id or answer: a text, or a whole number, truth value or finite number written as JSON writes it."""
    if isinstance(value, bool | int) or (isinstance(value, float) and math.isfinite(value)):
        return json.dumps(value)
    return text(value, column)


def kind(value: Any) -> str:
    """What a value is, in words for an error."""
    if value is None:
        return "null"
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    names = {bool: "true or false", int: "a number", float: "a number", str: "a text", list: "a list", dict: "an object"}
    return names.get(type(value), f"a {type(value).__name__}")
