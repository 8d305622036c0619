"""The methods of a comparison, each with the start that lets it show what it can do.

Prefix and prompt tuning live or die by where they start: from random values both look far worse than they are, so a comparison
starts them from real text, the first training prompts in chat form. Every other method starts as its default does.
"""

from collections.abc import Callable, Sequence

from graft.errors import TrainingError
from graft.method import Method
from graft.methods import METHODS
from graft.methods.prefix import Prefix
from graft.methods.prompt import Prompt

FULL = "full"
TEXT_LENGTH = 400  # characters; a start needs as many tokens as there are virtual ones, and the text is kept in the config

STARTS: dict[str, Callable[[str], Method]] = {
    "prefix": lambda text: Prefix(init_kv="text", text=text),
    "prompt": lambda text: Prompt(init_embeds="text", text=text),
}


def start(name: str, text: str) -> Method:
    """The method called `name`, started from `text` if it is one that starts from text and there is any."""
    return STARTS[name](text[:TEXT_LENGTH]) if name in STARTS and text.strip() else METHODS[name]


def chosen(names: Sequence[str], full: bool = False) -> tuple[str, ...]:
    """Method names, in the list's order, for what was asked: names, or "all", which is every method but full fine-tuning.

    `full` adds that. Raises TrainingError for a name that is not in the list.
    """
    wanted: set[str] = set()
    for name in names:
        if name != "all" and name not in METHODS:
            raise TrainingError(f"there is no method {name!r}; choose from all, {', '.join(METHODS)}.")
        wanted |= set(METHODS) - {FULL} if name == "all" else {name}
    if full:
        wanted.add(FULL)
    if not wanted:
        raise TrainingError(f"no method was named; choose from all, {', '.join(METHODS)}.")
    return tuple(name for name in METHODS if name in wanted)
