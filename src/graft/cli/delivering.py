"""Commands that hand an adapter on."""

from typing import Annotated

import typer

from graft.cli.options import Data, MaxGap, Model, Nf4, Output, Rows
from graft.cli.root import out

app = typer.Typer()


@app.command()
def merge(
    model: Model,
    adapter: Annotated[str, typer.Option(help="The adapter's folder.")],
    data: Data,
    output_dir: Output,
    rows: Rows = 16,
    max_gap: MaxGap = None,
    nf4: Nf4 = False,
    into: Annotated[str | None, typer.Option(help="With --nf4: the 16-bit base to merge into instead of the dequantised weights.")] = None,
    requantise: Annotated[bool, typer.Option("--requantise", help="Save the result in 4 bits (NF4), and say what is lost.")] = False,
) -> None:
    """Merge an adapter into its base, and prove on real rows that the saved model is the one that was trained."""
    from graft.deliver import merge_job

    merge_job(model, adapter, data, output_dir, out, rows=rows, max_gap=max_gap, nf4=nf4, into=into, requantise=requantise)


@app.command()
def combine(
    model: Model,
    adapter: Annotated[list[str], typer.Option(help="An adapter's folder; repeat it.")],
    weight: Annotated[list[float], typer.Option(help="Its weight; repeat it in the same order.")],
    output_dir: Output,
    rank: Annotated[int | None, typer.Option(help="Cut every change to a LoRA of this rank; exact when left out.")] = None,
) -> None:
    """Combine adapters of one base into one, the weighted sum of what they change."""
    from graft.deliver import combine_job

    combine_job(model, adapter, weight, output_dir, out, rank=rank)


@app.command()
def export(
    model: Model,
    adapter: Annotated[list[str], typer.Option(help="The adapter's folder; vocabulary takes several.")],
    to: Annotated[str, typer.Option(help="peft-lora, merged, vocabulary or shards.")],
    data: Data,
    output_dir: Output,
    rows: Rows = 16,
    max_gap: MaxGap = None,
    nf4: Nf4 = False,
) -> None:
    """Export an adapter to what other engines serve: exact, measured on real rows, or refused with the reason."""
    from graft.deliver import export_job

    export_job(model, adapter, to, data, output_dir, out, rows=rows, max_gap=max_gap, nf4=nf4)
