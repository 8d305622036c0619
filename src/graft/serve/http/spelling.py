"""Spelling: the text of single tokens, as log-probabilities tell them.

A token is decoded behind another one and that one's text cut off, since decoders drop the space before a text's first word. A token that
is a part of a character has no text and no bytes: it is called as the vocabulary calls it, so that no two are called alike.
"""

from functools import lru_cache
from typing import Any

UNKNOWN = "\ufffd"
LEAST = -9999.0


class Spelling:
    """Texts of token ids."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.before = next((number for number in range(len(tokenizer)) if self.decoded([number]).strip().isalnum()), None)
        self.text = lru_cache(maxsize=1 << 16)(self.spelt)

    def spelt(self, number: int) -> str:
        """A token's text."""
        if self.before is None:
            return self.decoded([number])
        first, both = self.decoded([self.before]), self.decoded([self.before, number])
        return both[len(first) :] if both.startswith(first) else self.decoded([number])

    def decoded(self, ids: list[int]) -> str:
        """The text of tokens, special ones too."""
        return str(self.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))

    def name(self, number: int) -> str:
        """A token's text, or what the vocabulary calls it."""
        text = self.text(number)
        return str(self.tokenizer.convert_ids_to_tokens(number)) if UNKNOWN in text else text

    def bytes(self, number: int) -> list[int] | None:
        """The bytes of a token's text; None of a part of a character."""
        text = self.text(number)
        return None if UNKNOWN in text else list(text.encode())


def finite(logprob: float) -> float:
    """A log-probability as JSON can say it: what cannot be is very unlikely."""
    return max(logprob, LEAST)
