"""Keys: which keys a foreign config may have, and what each may say. Nothing that changes numbers is ever ignored."""

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from graft.errors import AdapterError
from graft.formats.leaves import shown

log = logging.getLogger("graft")


@dataclass(frozen=True)
class Keys:
    """`used` are read; `neutral` say nothing about the numbers; `off` change them in ways Graft has not, so they must be off."""

    used: frozenset[str]
    neutral: frozenset[str]
    off: frozenset[str]

    def check(self, config: dict[str, Any]) -> None:
        """Raise AdapterError, naming the key, at one that is unknown or asks for what Graft has not.

        An unknown key that is off (null, false, empty) is let pass: newer versions of PEFT write every option they have.
        """
        for key, value in config.items():
            if key in self.used or key in self.neutral or is_off(value):
                if key not in self.used | self.neutral | self.off:
                    log.info("adapter config: unknown key %s is off", shown([key]))
                continue
            known = key in self.off
            why = "which Graft cannot run" if known else "a key that Graft does not know, so that what it means would be lost"
            raise AdapterError(f"its config says {shown([key])} = {str(value)[:80]}, {why}")


def is_off(value: Any) -> bool:
    """Whether an option's value means that it is not used."""
    return value is None or value is False or value in ("", "none") or (isinstance(value, dict | list) and not value)


def keys(used: Iterable[str], neutral: Iterable[str] = (), off: Iterable[str] = ()) -> Keys:
    """Keys from anything that can be iterated over."""
    return Keys(frozenset(used), frozenset(neutral), frozenset(off))
