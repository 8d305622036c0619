"""Commands that compare methods."""

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from graft.cli.options import (
    BadRows,
    BatchSize,
    Checkpointing,
    Compile,
    ConfigFile,
    CudaGraphs,
    Data,
    GradAccum,
    MaxLength,
    Metric,
    Model,
    Nf4,
    Output,
)
from graft.cli.root import err, out, required, settings

app = typer.Typer()


@app.command()
def compare(
    context: typer.Context,
    model: Model = "",
    data: Data = "",
    output_dir: Output = "",
    eval_data: Annotated[str | None, typer.Option(help="Rows to score on; held out of --data when left out.")] = None,
    methods: Annotated[
        str, typer.Option(help="all, or names with commas: lora,dora,bottleneck,prefix,prompt,ia3,bias,last-k,norms.")
    ] = "all",
    full: Annotated[bool, typer.Option("--full", help="Also full fine-tuning, as the yardstick.")] = False,
    budget: Annotated[str | None, typer.Option(help="Time for the whole comparison, such as 30m or 2h.")] = None,
    trials: Annotated[int | None, typer.Option(help="Learning rates tried for each method.")] = None,
    seeds: Annotated[int | None, typer.Option(help="Final runs of each method.")] = None,
    max_steps: Annotated[int | None, typer.Option(help="Optimizer steps a run.")] = None,
    eval_limit: Annotated[int | None, typer.Option(help="Test rows scored; 0 for all.")] = None,
    metric: Metric = "auto",
    batch_size: BatchSize = 16,
    grad_accum: GradAccum = 1,
    max_length: MaxLength = 512,
    bad_rows: BadRows = "fail",
    nf4: Nf4 = False,
    checkpointing: Checkpointing = False,
    compile: Compile = "auto",
    cuda_graphs: CudaGraphs = "auto",
    seed: Annotated[int, typer.Option(help="Seed of the split and the first run.")] = 0,
    config: ConfigFile = None,
) -> None:
    """Compare methods on your data: tune each one's learning rate, train, score, time, and write a report."""
    from graft.compare import CompareConfig, run_and_report

    values = settings(context, config)
    required(values, "model", "data", "output_dir")
    values["methods"] = tuple(name.strip() for name in str(values["methods"]).split(","))
    run_and_report(CompareConfig(**values, command=shlex.join(["graft", *sys.argv[1:]])), err, out)


@app.command()
def report(folder: Annotated[Path, typer.Argument(help="A comparison's folder.")]) -> None:
    """Rebuild a comparison's report from its records alone."""
    from graft.compare import write_report

    out.print(f"Wrote {write_report(folder)}", highlight=False)


@app.command()
def demo(output_dir: Output = "runs/demo") -> None:
    """Compare five methods on the embedded model and a small generated data set, in a few minutes."""
    from graft.compare import demo_and_report

    demo_and_report(Path(output_dir), err, out)
