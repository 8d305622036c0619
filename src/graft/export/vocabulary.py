"""`vocabulary`: a prompt as special tokens of a plain checkpoint, whose embeddings are the trained ones.

n tokens a prompt, put before everything else (also before a beginning-of-sequence token). They are never generated: their logits come
from rows of zeros (a bias of -1e4 where the head has one), and the generation settings suppress them. A tied head is untied. Where the
adapter has other parts that can be merged, they are.
"""

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn as nn
from tokenizers import AddedToken
from torch import Tensor

from graft.adapter import Adapter
from graft.errors import AdapterError
from graft.evaluate.gap import logits
from graft.export.merged import merged_into
from graft.export.parcel import NO_PREFIX, Batch, Order, Parcel, is_virtual, kinds
from graft.model.fold import gain_of, own_dtype, stations
from graft.model.load import load
from graft.model.merge import densified

NEVER = -1e4


@torch.no_grad()
def vocabulary(order: Order, folder: Path) -> Parcel:
    """Write the checkpoint with every adapter's tokens. Raises AdapterError where one is no prompt."""
    model, tokenizer = order.base.model, copy.deepcopy(order.base.tokenizer)
    prompts = {name: prompt_of(model, adapter, len(order.adapters)) for name, adapter in order.adapters.items()}
    if model.get_output_embeddings() is None:
        raise AdapterError(f"{type(model).__name__} has no language head: a prompt is exported for causal models only")
    if len(order.adapters) == 1 and (rest := without_prompt(order.only)) is not None:
        merged_into(order, "vocabulary", rest)
    densified(model)
    names = {name: [f"<|{name}_{k}|>" for k in range(len(embeds))] for name, embeds in prompts.items()}
    ids = {name: added(tokenizer, tokens) for name, tokens in names.items()}
    rows = torch.cat(list(prompts.values())) / gain_of(model.get_input_embeddings(), own_dtype(model.get_input_embeddings()))
    extend(model, [token for own in ids.values() for token in own], rows)
    strings = {name: "".join(tokens) for name, tokens in names.items()}
    if len(strings) == 1 and isinstance(tokenizer.chat_template, str):
        tokenizer.chat_template = next(iter(strings.values())) + tokenizer.chat_template
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    facts = {
        "prepend": strings,
        "ids": ids,
        "how": "put the string (or the ids) before everything else, a beginning-of-sequence token too"
        + ("; the chat template does so itself" if len(strings) == 1 and tokenizer.chat_template else ""),
        "never_generated": "generation_config.json suppresses the tokens; an engine that ignores it needs logit_bias -100 for the ids",
    }
    promise = "the prompt's embeddings are rows of the embedding, so its tokens before a text are the prompt before it: exact"
    return Parcel(promise, "transformers", model.dtype, runner(folder, model.dtype, list(ids.values())), facts)


def prompt_of(model: Any, adapter: Adapter, among: int) -> Tensor:
    """An adapter's prompt [n, d]. Raises AdapterError where it has none, or other parts beside other adapters."""
    virtual = [form for form in virtual_forms(model, adapter) if is_virtual(form)]
    if any(form.kv is not None for form in virtual):
        raise AdapterError(f"{kinds(adapter)} cannot be exported as vocabulary: {NO_PREFIX}")
    if not virtual:
        raise AdapterError(f"{kinds(adapter)} has no prompt to export as vocabulary: what merges is exported with `--to merged`")
    if among > 1 and len(adapter.parts) > 1:
        raise AdapterError(f"{kinds(adapter)} changes weights too, which other prompts would share: export it alone")
    if not virtual[0].shift:
        raise AdapterError(f"{kinds(adapter)} leaves the text's positions where they are, which tokens before it would shift")
    embeds: Tensor = virtual[0].embeds
    return embeds


def virtual_forms(model: Any, adapter: Adapter) -> list[Any]:
    """The forms of an adapter's parts."""
    return [station.method.form(own, station.base) for here in stations(model, adapter).values() for station, own in here]


def without_prompt(adapter: Adapter) -> Adapter | None:
    """The adapter's other parts, if it has any."""
    parts = tuple(part for part in adapter.parts if part[0].kind != "prompt")
    return Adapter(parts, adapter.fingerprint, adapter.base, adapter.notes) if parts else None


def added(tokenizer: Any, tokens: Sequence[str]) -> list[int]:
    """The ids of new special tokens. Raises AdapterError where the tokenizer has them already, or splits their string."""
    if set(tokens) & set(tokenizer.get_vocab()):
        raise AdapterError(f"the tokenizer has {tokens[0]} already: rename the adapter's folder")
    tokenizer.add_tokens([AddedToken(token, special=True, normalized=False) for token in tokens], special_tokens=True)
    ids: list[int] = tokenizer.convert_tokens_to_ids(list(tokens))
    if tokenizer("".join(tokens) + "a", add_special_tokens=False)["input_ids"][: len(ids)] != ids:
        raise AdapterError(f"the tokenizer does not read {tokens[0]} as one token")
    return ids


def extend(model: Any, ids: Sequence[int], rows: Tensor) -> None:
    """Give the model embeddings `rows` [n, d] for `ids` and a head that never says them, untied from the embeddings."""
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    size = max(max(ids) + 1, embedding.weight.shape[0])
    where = torch.tensor(ids, device=embedding.weight.device)
    head_weight = grown(head.weight, size)
    embedding.weight = nn.Parameter(grown(embedding.weight, size).index_copy(0, where, rows.to(embedding.weight)), requires_grad=False)
    head.weight = nn.Parameter(head_weight, requires_grad=False)
    if getattr(head, "bias", None) is not None:
        head.bias = nn.Parameter(grown(head.bias, size).index_fill(0, where, NEVER), requires_grad=False)
    embedding.num_embeddings = head.out_features = size
    model.config.vocab_size, model.config.tie_word_embeddings = size, False
    before = list(model.generation_config.suppress_tokens or [])
    model.generation_config.suppress_tokens = before + list(ids)


def grown(value: Tensor, size: int) -> Tensor:
    """A copy with `size` rows, those that are new zero."""
    made = value.new_zeros(size, *value.shape[1:])
    made[: len(value)] = value.detach()
    return made


def runner(folder: Path, dtype: Any, ids: Sequence[Sequence[int]]) -> Any:
    """Runs rows, an adapter's tokens in front, through the checkpoint as transformers loads it back."""
    again = None

    def run(number: int, batch: Batch) -> Tensor:
        nonlocal again
        again = again or load(str(folder), dtype=dtype)
        return logits(again.model, batch, front=ids[number])

    return run
