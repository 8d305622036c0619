"""What the command line and training do with a plan: print it, write it, and say what to change when a card was too small."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from graft.errors import DataError
from graft.files import atomic_write, no_place
from graft.method import Method
from graft.model import families
from graft.model.skeleton import skeleton
from graft.plan import advice
from graft.plan.job import Job, job
from graft.plan.memory import Memory, memory
from graft.plan.page import page
from graft.plan.plain import plain
from graft.plan.plan import command, plan
from graft.plan.rows import Rows
from graft.plan.search import fitting, room
from graft.plan.setup import Setup
from graft.plan.show import show

LESS = 0.9  # of the predicted peak of what did not fit: what is proposed instead must be predicted to need no more


def plan_and_show(
    model: str, console: Console, *, need: str = "", why_not: str = "", json: bool = False, html: Path | None = None, **known: Any
) -> None:
    """Plan as `plan` does (`known` are its arguments, `need` words with commas), print it, as JSON if asked; also as a page."""
    if why_not:
        advice.why_not(advice.Situation(), why_not)  # an unknown method is refused before anything is printed
    if html:
        check_file(html)
    found = plan(model, need=[word.strip() for word in need.split(",") if word.strip()], **known)
    if html:
        atomic_write(html, page(found, why_not))
    if json:
        console.print_json(data=plain(found, why_not))
    else:
        show(found, console, why_not)


def check_file(html: Path) -> None:
    """Raise DataError where no page can be written."""
    if html.is_dir():
        raise DataError(f"--html names a file, and {html} is a folder")
    if why := no_place(html.parent, beside=False):
        raise DataError(f"--html {html}: {why}")


def after_oom(
    config: Any, name: str, method: Method, setup: Setup, lengths: Sequence[int], *, card: int, held: int, model: str, source: str
) -> str:
    """What to say after an out-of-memory: plan against actual, and the next way to train that fits.

    `config` is the transformers config, `name` the method's on the command line, `setup` what was tried (its `supervised` of the longest
    answer), `lengths` the rows' in tokens; `card` are the bytes that the card has, `held` those that tensors had at most; `model` and
    `source` as the command line named them.
    """
    empty = skeleton(config)
    sites = families.sites(empty)

    def makes(method: Method, setup: Setup) -> Job:
        return job(empty, sites, method, setup)

    said = memory(makes(method, setup))
    rows = Rows(len(lengths), tuple(sorted(lengths)), setup.supervised, round(setup.supervised * setup.tokens), source)
    limit = min(room(card), round(LESS * said.peak))
    found = fitting(makes, method, setup, rows, limit, None)
    against = (
        f"the card was too small: {held / 1e9:.1f} of its {card / 1e9:.1f} GB were held by tensors when more was asked for; {told(said)}"
    )
    if said.peak <= room(card):
        against += ", which fits: something else holds memory there, or the plan is wrong"
    if found is None:
        return (
            f"{against}. No smaller way to train this method is known: `graft plan --model {model} --memory {card / 1e9:.0f}GB` has others"
        )
    gave = f" (with {', '.join(found.given_up)})" if found.given_up else ""
    instead = f"This is predicted to need {found.memory.peak / 1e9:.1f} GB{gave}, your other options beside it"
    return f"{against}. {instead}: {command(name, found, rows, model)}"


def told(said: Memory) -> str:
    """A predicted peak in words, its large parts first."""
    parts = sorted(((held, part) for part, held in said.parts.items() if held >= said.peak / 50), reverse=True)
    return f"the plan is {said.peak / 1e9:.1f} GB ({', '.join(f'{part} {held / 1e9:.1f}' for held, part in parts)})"
