"""Commands that look and say, and change nothing."""

from pathlib import Path
from typing import Annotated

import typer

from graft.cli.options import Model
from graft.cli.root import out

app = typer.Typer()


@app.command()
def plan(
    model: Model,
    data: Annotated[str | None, typer.Option("--data", help="Rows, whose lengths count; 512 tokens each when left out.")] = None,
    memory: Annotated[str | None, typer.Option(help="What must be enough, such as 24GB; the card's when left out.")] = None,
    gpu: Annotated[str | None, typer.Option(help="The card, such as h100 or 4090: its memory, and times on it; or cpu.")] = None,
    examples: Annotated[int | None, typer.Option(help="How many rows there are; those of --data when left out.")] = None,
    need: Annotated[str, typer.Option(help="quality,knowledge,form,latency,adapters,context,untouched,storage,speed: any.")] = "",
    why_not: Annotated[str, typer.Option("--why-not", help="A method of which to say why it is not advised.")] = "",
    json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
    html: Annotated[Path | None, typer.Option(help="Also write a page to this file.")] = None,
) -> None:
    """Say what every method costs on a model, how to train it in a memory, and which to take, from the model's config alone."""
    from graft.deferred import defer

    defer()
    from graft.plan import plan_and_show

    plan_and_show(model, out, data=data, memory=memory, gpu=gpu, examples=examples, need=need, why_not=why_not, json=json, html=html)


@app.command()
def doctor(
    kernels: Annotated[bool, typer.Option("--kernels", help="Also run every method here and compare it with plain torch.")] = False,
) -> None:
    """Check this machine and its installation."""
    from graft.doctor import doctor as examine
    from graft.doctor import healthy, show

    checks = examine()
    if kernels:
        from graft.checkup import checkup

        checks += tuple(checkup())
    show(checks, out)
    raise typer.Exit(0 if healthy(checks) else 1)
