"""Answer: a model's greedy answers to rows, in batches padded on the left, whatever the model's own generation settings say."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from transformers import GenerationConfig

from graft.data import Row, prompts, tokenise
from graft.model.positions import beside
from graft.model.virtual_tokens import taken

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Progress = Callable[[int, int], None]


def generate(
    model: Any,
    tokenizer: "PreTrainedTokenizerBase",
    rows: Sequence[Row],
    batch_size: int = 16,
    shots: Sequence[Row] = (),
    max_new_tokens: int | None = None,
    progress: Progress | None = None,
) -> tuple[list[str], int]:
    """The greedy answer to every row, in the rows' order, and how many prompts lost their left end to fit in the model's context.

    `max_new_tokens` left out is a fifth more than the longest completion of the rows, and four; where both do not fit, prompts keep half of
    the context, if they need it. Batches go longest first, so that
    memory runs out at once or never. An answer ends at its turn's end; a leading block of <think> is not part of it.
    """
    examples = tokenise(rows, tokenizer).examples
    new = max_new_tokens or math.ceil(1.2 * max(example.trained for example in examples)) + 4
    stops = sorted({example.ids[-1] for example in examples} | ({tokenizer.eos_token_id} - {None}))
    asked, limit = prompts(rows, tokenizer, shots), text_positions(model)
    if limit is not None:  # one long completion must not take the prompts' room
        new = min(new, limit - min(max(map(len, asked)), limit // 2))
    asked, cut = fitted(asked, None if limit is None else limit - new)
    texts, done = [""] * len(rows), 0
    with evaluating(model), greedily(model, padding(tokenizer), stops, new):
        for batch in by_length([len(ids) for ids in asked], batch_size):
            written = write(model, [asked[index] for index in batch], padding(tokenizer))
            for index, ids in zip(batch, written, strict=True):
                texts[index] = spoken(str(tokenizer.decode(until(ids, stops), skip_special_tokens=True)))
            done += len(batch)
            tell(progress, done, len(rows))
    return texts, cut


def write(model: Any, asked: list[list[int]], pad_id: int) -> list[list[int]]:
    """The ids a model writes after each prompt, its padding and whatever follows the end of a turn included."""
    width = max(len(ids) for ids in asked)
    ids = torch.tensor([[pad_id] * (width - len(one)) + one for one in asked], device=model.device)
    mask = torch.tensor([[0] * (width - len(one)) + [1] * len(one) for one in asked], device=model.device)
    output = model.generate(input_ids=ids, attention_mask=mask)
    written: list[list[int]] = output[:, width:].tolist()
    return written


@contextmanager
def greedily(model: Any, pad_id: int, stops: list[int], new: int) -> Iterator[None]:
    """The model's own generation settings (sampling, penalties, limits) exchanged for plain greedy ones, and put back."""
    own = model.generation_config
    model.generation_config = GenerationConfig(do_sample=False, num_beams=1, max_new_tokens=new, pad_token_id=pad_id, eos_token_id=stops)
    try:
        yield
    finally:
        model.generation_config = own


@contextmanager
def evaluating(model: Any) -> Iterator[None]:
    """No gradients, no dropout; each module's mode is put back afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training


def text_positions(model: Any) -> int | None:
    """How many positions the model has for text, beside an adapter's virtual tokens; None where its config does not say."""
    return beside(model, taken(model))


def fitted(asked: list[list[int]], room: int | None) -> tuple[list[list[int]], int]:
    """Prompts of at most `room` ids, their ends kept, and how many were cut."""
    if room is None:
        return asked, 0
    return [ids[-room:] for ids in asked], sum(len(ids) > room for ids in asked)


def padding(tokenizer: "PreTrainedTokenizerBase") -> int:
    """An id to pad with; what it is does not matter, it is masked."""
    for token in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if token is not None:
            return int(token)
    return 0


def by_length(lengths: Sequence[int], batch_size: int) -> list[list[int]]:
    """Indices in batches of like length, the longest first."""
    order = sorted(range(len(lengths)), key=lambda index: -lengths[index])
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


def until(ids: list[int], stops: Sequence[int]) -> list[int]:
    """The ids before the first that ends a turn."""
    return ids[: next((index for index, token in enumerate(ids) if token in stops), len(ids))]


def spoken(text: str) -> str:
    """An answer without a leading block of reasoning, which some templates make a part of every answer."""
    if text.lstrip().startswith("<think>") and "</think>" in text:
        text = text.partition("</think>")[2]
    return text.strip()


def tell(progress: Progress | None, done: int, total: int) -> None:
    """Report progress, if anyone asked."""
    if progress is not None:
        progress(done, total)
