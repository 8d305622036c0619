"""What a request brings: a prompt in one of three forms, and how much of it fits."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from graft.errors import ServeError
from graft.model.positions import context

Prompt = str | Sequence[int] | Sequence[Mapping[str, str]]


@dataclass(frozen=True)
class Limits:
    """Ids below `vocabulary`; `context` positions of the model, `cached` tokens of the engine."""

    vocabulary: int
    context: int
    cached: int

    def check(self, ids: list[int], virtual: int, new: int, adapter: str) -> None:
        """Raise ServeError where a prompt with so many virtual tokens before and new ones after it cannot be answered."""
        if not ids:
            raise ServeError("a prompt has at least one token")
        if not all(0 <= number < self.vocabulary for number in ids):
            raise ServeError(f"a prompt's ids lie between 0 and {self.vocabulary - 1}")
        if len(ids) + virtual + new > min(self.context, self.cached):
            own = f" and {virtual} virtual ones of {adapter!r}" if virtual else ""
            raise ServeError(
                f"{len(ids)} tokens{own} and max_tokens = {new} are more than fit: the model has {self.context} positions, and the cache "
                f"{self.cached} tokens"
            )


def limits_of(model: Any, cached: int) -> Limits:
    """A model's limits, with so many tokens in the cache."""
    return Limits(int(model.get_input_embeddings().weight.shape[0]), context(model) or cached, cached)


def is_chat(prompt: Prompt) -> bool:
    """Whether it is a chat's messages."""
    return not isinstance(prompt, str) and not all(isinstance(one, int) for one in prompt)


def ids_of(prompt: Prompt, tokenizer: Any, template: str | None = None) -> list[int]:
    """The ids of a text, of ids, or of a chat's messages, by the template (None: the tokenizer's).

    Raises ServeError where a tokenizer is needed, or the template.
    """
    items: list[Any] = [] if isinstance(prompt, str) else list(prompt)
    if not isinstance(prompt, str) and not is_chat(items):
        return items
    if tokenizer is None:
        raise ServeError("a prompt as text or messages needs a tokenizer: Engine(model, tokenizer), or give token ids")
    if isinstance(prompt, str):
        return list(tokenizer(prompt)["input_ids"])
    if not (template or tokenizer.chat_template):
        raise ServeError("a chat needs a template, and neither the tokenizer nor the adapter has one: give a text")
    own = {"chat_template": template} if template else {}
    return list(tokenizer.apply_chat_template(items, add_generation_prompt=True, tokenize=True, return_dict=False, **own))
