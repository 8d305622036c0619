r"""From rows to token ids: the tokenizer's own chat template, the completion trained, the prompt ignored, the end of the turn learned.

The template renders the prompt (with its generation prompt) and the whole chat; the first must begin the second, and what follows
it is what the model learns to write, up to and with the token that ends the turn. Whatever the template puts after that token
(a newline, often) is left out. The ids of the prompt are always those the model will be given when it generates.

    <|im_start|>user\nIs it spam?<|im_end|>\n<|im_start|>assistant\nham<|im_end|>\n
    `--------------- ignored ------------------------------------' `-- trained --' dropped

Without a template a row is "{prompt}\n{completion}<eos>", and `Tokenised.note` says so. Plain text is trained whole, with <eos>;
its first token has nothing before it that could predict it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import jinja2

from graft.data.rows import Message, Row
from graft.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CUTS = ("error", "cut", "drop")


@dataclass(frozen=True)
class Example:
    """One tokenised row: `ids`, of which everything from index `supervised` on is trained, the end token included."""

    ids: tuple[int, ...]
    supervised: int
    row: Row

    @property
    def trained(self) -> int:
        """How many tokens are trained."""
        return len(self.ids) - self.supervised


@dataclass(frozen=True)
class Tokenised:
    """Examples, and what had to be done to fit them: `truncated` prompts lost their left end, rows in `cut` part of their answer. `changed`
    says of each example whether it is one of them.
    """

    examples: tuple[Example, ...]
    truncated: int = 0
    cut: tuple[str, ...] = ()
    note: str = ""
    changed: tuple[bool, ...] = ()

    @property
    def tokens(self) -> int:
        """All tokens of all examples."""
        return sum(len(example.ids) for example in self.examples)

    @property
    def trained(self) -> int:
        """The trained tokens of all examples."""
        return sum(example.trained for example in self.examples)


@dataclass(frozen=True)
class Chat:
    """A tokenizer and what of it decides where a prompt begins and a turn ends."""

    tokenizer: "PreTrainedTokenizerBase"
    bos: tuple[int, ...]
    specials: tuple[str, ...]

    @property
    def templated(self) -> bool:
        """Whether the tokenizer has a chat template."""
        return bool(self.tokenizer.chat_template)

    def encode(self, texts: list[str]) -> list[list[int]]:
        """Token ids of texts that already hold their special tokens."""
        if not texts:
            return []
        ids: list[list[int]] = self.tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
        return ids


def chat_of(tokenizer: "PreTrainedTokenizerBase") -> Chat:
    """Looks once at what costs too much to look at for every row."""
    specials = {str(token) for token in tokenizer.all_special_tokens}
    specials.update(token.content for token in tokenizer.added_tokens_decoder.values() if token.special)
    start = list(tokenizer("a")["input_ids"])[:1]
    bos = tuple(start) if start == [tokenizer.bos_token_id] else ()
    return Chat(tokenizer, bos, tuple(sorted(specials)))


def tokenise(
    rows: Sequence[Row],
    tokenizer: "PreTrainedTokenizerBase",
    max_length: int | None = None,
    *,
    truncate: str = "error",
    shots: Sequence[Row] = (),
) -> Tokenised:
    """Tokenise rows, each after the in-context examples `shots`; no example is longer than `max_length` tokens.

    A prompt that is too long loses its left end (counted in `truncated`). A completion that does not fit is an error that names the
    rows; with `truncate="cut"` it loses its right end, with `"drop"` the row is left out, and either way it is listed in `cut`.
    Raises DataError for these, for a template that cannot render a row, and for a row with nothing to train.
    """
    if truncate not in CUTS:
        raise DataError(f"truncate is '{truncate}', must be one of {', '.join(CUTS)}")
    chat = chat_of(tokenizer)
    whole = [learnable(example) for example in assemble(rows, chat, shots)]
    fitted = [fit(example, max_length, len(chat.bos)) for example in whole]
    cut = tuple(one.row.where or one.row.id for one, done in zip(whole, fitted, strict=True) if done.trained < one.trained)
    if cut and truncate == "error":
        raise DataError(too_long(cut, whole, max_length))
    pairs = [(one, done) for one, done in zip(whole, fitted, strict=True) if truncate != "drop" or done.trained == one.trained]
    if rows and not pairs:
        raise DataError(f"no row is left: all {len(rows)} completions are longer than max_length {max_length}")
    truncated = sum(done.supervised < one.supervised for one, done in pairs)
    said, changed = note(rows, chat, truncated, cut, truncate), tuple(len(done.ids) < len(one.ids) for one, done in pairs)
    return Tokenised(tuple(done for _, done in pairs), truncated, cut, said, changed)


def prompt_ids(row: Row, tokenizer: "PreTrainedTokenizerBase", shots: Sequence[Row] = ()) -> list[int]:
    """The ids a model is given to answer `row`: the in-context examples as earlier turns, its prompt, the generation prompt."""
    return prompts([row], tokenizer, shots)[0]


def prompts(rows: Sequence[Row], tokenizer: "PreTrainedTokenizerBase", shots: Sequence[Row] = ()) -> list[list[int]]:
    """`prompt_ids` of many rows at once."""
    chat = chat_of(tokenizer)
    start = [] if chat.templated else list(chat.bos)
    return [start + ids for ids in chat.encode([prompt_text(row, chat, shots) for row in rows])]


def assemble(rows: Sequence[Row], chat: Chat, shots: Sequence[Row]) -> list[Example]:
    """Examples of any length: ids of the prompt, then of the answer."""
    before = [prompt_text(row, chat, shots) for row in rows]
    after = [answer_text(row, prompt, chat, shots) for row, prompt in zip(rows, before, strict=True)]
    heads = chat.encode(before)
    wholes = chat.encode([prompt + answer for prompt, answer in zip(before, after, strict=True)])
    examples = []
    for row, head, whole, answer in zip(rows, heads, wholes, after, strict=True):
        # Where a token spans the border, the prompt's own ids win: they are what the model will see when it generates.
        ids = whole if whole[: len(head)] == head else head + chat.encode([answer])[0]
        start = () if chat.templated and row.messages else chat.bos
        supervised = len(start) + len(head)
        examples.append(Example((*start, *ids), supervised if row.messages else 1, row))
    return examples


def prompt_text(row: Row, chat: Chat, shots: Sequence[Row]) -> str:
    """The text before the answer: "" for plain text."""
    if not row.messages:
        return ""
    turns = turns_before(row, shots)
    if chat.templated:
        return rendered(row, turns, chat, add_generation_prompt=True)
    return "".join(turn.content + ("\n\n" if turn.role == "assistant" else "\n") for turn in turns)


def answer_text(row: Row, prompt: str, chat: Chat, shots: Sequence[Row]) -> str:
    """The text to learn, up to and with the token that ends it. Raises DataError where the template does not continue the prompt."""
    if not row.messages or not chat.templated:
        return row.completion + end_of_sequence(chat, needed=bool(row.messages))
    full = rendered(row, [*turns_before(row, shots), Message("assistant", row.completion)], chat)
    if not full.startswith(prompt):
        raise DataError(
            f"{row.where or row.id}: the chat template renders the prompt differently once an answer follows it, so the answer's start "
            f"cannot be found; use a template whose generation prompt begins its rendering of the whole chat"
        )
    rest = full[len(prompt) :]
    spoken = row.completion.strip()
    at = rest.find(spoken)
    ends = first_special(rest, at + len(spoken), chat) if at >= 0 else last_special(rest, chat)
    if ends is not None:
        return rest[:ends]
    return rest.rstrip() + end_of_sequence(chat, needed=True)


def turns_before(row: Row, shots: Sequence[Row]) -> list[Message]:
    """The row's own system turn, the shots as earlier user and assistant turns, then the row's turns."""
    system = [turn for turn in row.messages if turn.role == "system"]
    earlier: list[Message] = []
    for shot in shots:
        earlier += [turn for turn in shot.messages if turn.role != "system"]
        earlier.append(Message("assistant", shot.completion))
    return system + earlier + [turn for turn in row.messages if turn.role != "system"]


def rendered(row: Row, turns: Sequence[Message], chat: Chat, **options: Any) -> str:
    """The template's text for some turns."""
    conversation = [{"role": turn.role, "content": turn.content} for turn in turns]
    try:
        return str(chat.tokenizer.apply_chat_template(conversation, tokenize=False, **options))
    except jinja2.TemplateError as error:
        raise DataError(f"{row.where or row.id}: the chat template refuses this row: {error}") from error


def first_special(text: str, start: int, chat: Chat) -> int | None:
    """Where the first special token at or after `start` ends."""
    found = [(at, -len(token)) for token in chat.specials if (at := text.find(token, start)) >= 0]
    at, length = min(found, default=(-1, 0))
    return at - length if found else None


def last_special(text: str, chat: Chat) -> int | None:
    """Where the last special token ends: the turn's end where the template rewrote the completion (took reasoning apart, say)."""
    return max((at + len(token) for token in chat.specials if (at := text.rfind(token)) >= 0), default=None)


def end_of_sequence(chat: Chat, *, needed: bool) -> str:
    """The tokenizer's end token; an answer that never ends cannot be learned, a plain text can."""
    token = chat.tokenizer.eos_token
    if token is None and needed:
        raise DataError("the tokenizer has no end-of-sequence token and no chat template that ends a turn: set tokenizer.eos_token")
    return token or ""


def learnable(example: Example) -> Example:
    """Raises DataError where not one token would be trained."""
    if example.trained < 1:
        raise DataError(f"{example.row.where or example.row.id}: not one token is trained: the completion has no tokens of its own")
    return example


def fit(example: Example, max_length: int | None, start: int) -> Example:
    """At most `max_length` ids: first the prompt's left end goes (a start token and the last token stay), then the answer's right end."""
    over = len(example.ids) - max_length if max_length is not None else 0
    if over <= 0:
        return example
    keep = min(start, example.supervised - 1)
    drop = min(over, example.supervised - keep - 1)
    ids = (example.ids[:keep] + example.ids[keep + drop :])[:max_length]
    return replace(example, ids=ids, supervised=example.supervised - drop)


def too_long(cut: tuple[str, ...], whole: list[Example], max_length: int | None) -> str:
    """The error for completions that do not fit."""
    names = ", ".join(cut[:5]) + (f" and {len(cut) - 5} more" if len(cut) > 5 else "")
    needed = max(example.trained + 1 for example in whole)
    return (
        f"{counted(len(cut), 'completion')} cannot fit in max_length {max_length}: {names}; the longest needs {needed}. "
        f"Raise max_length or shorten the rows (Python has truncate='cut' and 'drop' besides)"
    )


def note(rows: Sequence[Row], chat: Chat, truncated: int, cut: tuple[str, ...], truncate: str) -> str:
    """What a reader should know of how the rows were tokenised, in one line."""
    parts = []
    if not chat.templated and any(row.messages for row in rows):
        parts.append("the tokenizer has no chat template: rows are written as prompt, newline, completion, end token")
    if truncated:
        parts.append(f"{counted(truncated, 'prompt')} cut on the left to fit")
    if cut and truncate == "drop":
        parts.append(f"{counted(len(cut), 'row')} left out, whose completion does not fit")
    elif cut:
        parts.append(f"{counted(len(cut), 'completion')} cut")
    chats = sum(any(turn.role == "assistant" for turn in row.messages) for row in rows)
    if chats:
        parts.append(f"{counted(chats, 'longer chat')}, of which only the last answer is trained")
    return "; ".join(parts)


def counted(number: int, noun: str) -> str:
    """A number with its noun in the right form."""
    return f"{number:,} {noun}" + "s" * (number != 1)
