"""Prompts: what a request brings, as token ids. For threads: a long text takes its time.

A chat is written by the template that lies in the adapter's folder, else by the base's. Templates run in Jinja's sandbox, as transformers
runs them; one that fails is the request's fate.
"""

from collections.abc import Sequence
from typing import Any

from jinja2 import TemplateError

from graft.serve.engine import Engine
from graft.serve.http.refusals import Refused
from graft.serve.http.schemas import Message


class Prompts:
    """Token ids of texts and chats."""

    def __init__(self, engine: Engine) -> None:
        self.engine, self.tokenizer = engine, engine.tokenizer

    def ids(self, prompt: str | list[int]) -> list[int]:
        """The ids of a text, or those given. Raises Refused where they are none of this vocabulary."""
        if isinstance(prompt, str):
            return [int(number) for number in self.tokenizer(prompt)["input_ids"]]
        vocabulary = self.engine.limits.vocabulary
        wrong = next((number for number in prompt if number >= vocabulary), None)
        if wrong is not None:
            raise Refused(400, f"the token id {wrong} is not below {vocabulary}, the size of the vocabulary", param="prompt")
        return prompt

    def chat(self, messages: Sequence[Message], adapter: str | None) -> list[int]:
        """The ids of a chat, up to where the answer begins. Raises Refused where there is no template, or it refuses the messages."""
        template = self.engine.voice(adapter).template
        if template is None and not self.tokenizer.chat_template:
            raise Refused(400, "there is no chat template here: use /v1/completions", code="no_chat_template")
        own: dict[str, Any] = {} if template is None else {"chat_template": template}
        try:
            found = self.tokenizer.apply_chat_template(
                [message.plain() for message in messages], add_generation_prompt=True, tokenize=True, return_dict=False, **own
            )
        except (TemplateError, ValueError, TypeError, KeyError, ArithmeticError, AttributeError, RecursionError) as error:
            whose = "the base's" if template is None else f"the adapter {adapter!r}'s"
            said = str(error).splitlines()[0][:300] if str(error) else type(error).__name__
            raise Refused(400, f"{whose} chat template refuses these messages: {said}", param="messages") from error
        return [int(number) for number in found]

    def speaks(self, adapter: str | None) -> bool:
        """Whether there is a template for an adapter's chats; of one that was not read yet, whether the base has one."""
        entry = None if adapter is None else self.engine.library.entries.get(adapter)
        return bool(self.tokenizer.chat_template) or (entry is not None and entry.voice.template is not None)
