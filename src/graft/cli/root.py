"""What all commands share: the application they belong to, where they print, and how their values are found."""

import inspect
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer
from rich.console import Console

app = typer.Typer(
    name="graft",
    help="Plan, train, compare, merge and evaluate every parameter-efficient fine-tuning method on one frozen model.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
err = Console(stderr=True)
out = Console()


def version(value: bool) -> None:
    """Print the version and end."""
    if value:
        out.print(f"graft {metadata.version('graft-peft')}", highlight=False)
        raise typer.Exit


@app.callback()
def root(show: Annotated[bool, typer.Option("--version", callback=version, is_eager=True, help="Print the version.")] = False) -> None:
    """Plan, train, compare, merge and evaluate every parameter-efficient fine-tuning method on one frozen model."""


def settings(context: typer.Context, file: Path | None) -> dict[str, Any]:
    """The command's values: its defaults, then the file's, then the options given. Unknown keys of the file are an error."""
    from graft.config import merged_config

    given = {name for name in context.params if getattr(context.get_parameter_source(name), "name", "") == "COMMANDLINE"}
    hints = get_type_hints(inspect.unwrap(context.command.callback)) if context.command.callback else {}
    return merged_config({name: value for name, value in context.params.items() if name != "config"}, given, file, hints)


def required(values: dict[str, Any], *names: str) -> None:
    """Raise a usage error for an option that neither the command line nor the file gave."""
    for name in names:
        if not values[name]:
            raise typer.BadParameter(f"it is required, here or in --config, as {name}", param_hint=f"--{name.replace('_', '-')}")
