"""Voice: how an adapter is spoken to. Its own chat template and generation settings, where its folder has them, else the base's.

Of the settings those are used that a request may state, and the tokens that end an answer; what else a file asks for (beams, penalties) is
said once and left out.
"""

import logging
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from graft import formats
from graft.formats.folder import GENERATION, TEMPLATE
from graft.model import speech

log = logging.getLogger("graft")
ENDS = "eos_token_id"
USED = (ENDS, "bos_token_id", "pad_token_id", "do_sample", "temperature", "top_p", "top_k", "max_length", "max_new_tokens")


@dataclass(frozen=True)
class Voice:
    """`template` for chats (None: the tokenizer's own), the tokens that end an answer, and `sampling`: what its settings state of
    temperature (0 where they say to be greedy), top_p and top_k, for requests that state nothing.
    """

    template: str | None
    ends: frozenset[int]
    sampling: Mapping[str, float] = field(default_factory=dict)


class Voices:
    """Those of one base."""

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self.model, self.tokenizer = model, tokenizer
        self.template = speech.template_of(tokenizer).strip()
        self.said: set[str] = set()
        config = getattr(model, "generation_config", None)
        self.settings: dict[str, Any] = {} if config is None else config.to_diff_dict()
        self.base = self.made(None, {})

    def of(self, folder: Path) -> Voice:
        """The voice of the adapter in a folder. Raises AdapterError where a file beside it cannot be used."""
        texts = formats.beside(folder)
        template = texts.get(TEMPLATE, "").strip()
        settings = speech.parsed(folder, texts[GENERATION]) if GENERATION in texts else {}
        left = ", ".join(sorted(set(settings) - set(USED)))
        if left and left not in self.said:
            self.said.add(left)
            log.warning("generation settings that serving does not have are left out: %s", left)
        own = sys.intern(texts[TEMPLATE]) if template and template != self.template else None
        made = self.made(own, settings)
        return self.base if made == self.base else made  # a thousand that differ in nothing hold nothing

    def made(self, template: str | None, settings: Mapping[str, Any]) -> Voice:
        """A voice of the base's settings with others in their place."""
        whole = self.settings | dict(settings)
        found = whole.get(ENDS)
        ends = [*(found if isinstance(found, list) else [found]), getattr(self.tokenizer, ENDS, None)]
        sampling = {name: whole[name] for name in ("temperature", "top_p", "top_k") if whole.get(name) is not None}
        if whole.get("do_sample") is False:
            sampling = {"temperature": 0.0}
        return Voice(template, frozenset(number for number in ends if number is not None), sampling)
