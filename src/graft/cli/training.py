"""Commands that train one method, and score or verify what came of it."""

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
    EvalData,
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
def preview(
    model: Model,
    data: Data,
    rows: Annotated[int, typer.Option(help="Rows shown.")] = 3,
    max_length: MaxLength = 512,
    bad_rows: BadRows = "fail",
) -> None:
    """Print rows as the model will see them, each token marked as trained or ignored."""
    from graft.jobs import preview as show

    show(model, data, out, rows=rows, max_length=max_length, bad_rows=bad_rows)


@app.command()
def train(
    context: typer.Context,
    model: Model = "",
    data: Data = "",
    output_dir: Output = "",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an adapter that is in --output-dir.")] = False,
    method: Annotated[str, typer.Option(help="lora, dora, bottleneck, prefix, prompt, ia3, bias, last-k, norms or full.")] = "lora",
    set: Annotated[list[str], typer.Option("--set", help="A field of the method, FIELD=VALUE; may be repeated.")] = [],  # noqa: B006
    eval_data: EvalData = None,
    learning_rate: Annotated[float | None, typer.Option(help="Peak learning rate; the method's own when left out.")] = None,
    max_steps: Annotated[int | None, typer.Option(help="Optimizer steps; --epochs decides when left out.")] = None,
    epochs: Annotated[float, typer.Option(help="Passes over the rows.")] = 3.0,
    batch_size: BatchSize = 16,
    grad_accum: GradAccum = 1,
    max_length: MaxLength = 512,
    warmup: Annotated[float, typer.Option(help="Fraction of the steps in which the learning rate rises.")] = 0.05,
    schedule: Annotated[str, typer.Option(help="linear, cosine or constant.")] = "linear",
    weight_decay: Annotated[float, typer.Option(help="AdamW's weight decay.")] = 0.0,
    clip: Annotated[float, typer.Option(help="Largest gradient norm; 0 for none.")] = 1.0,
    eval_every: Annotated[int, typer.Option(help="Steps between evaluations of the loss on --eval-data; 0 for none.")] = 0,
    patience: Annotated[int, typer.Option(help="Evaluations without a better loss before stopping; 0 for never.")] = 0,
    save_every: Annotated[int, typer.Option(help="Steps between saves of the run, from which the same command goes on; 0 for none.")] = 0,
    seed: Annotated[int, typer.Option(help="Seed of the adapter, the order of rows and dropout.")] = 42,
    metric: Metric = "auto",
    bad_rows: BadRows = "fail",
    nf4: Nf4 = False,
    checkpointing: Checkpointing = False,
    compile: Compile = "auto",
    cuda_graphs: CudaGraphs = "auto",
    strict: Annotated[bool, typer.Option("--strict", help="Stop where a block cannot be compiled or a branch fused.")] = False,
    optimizer: Annotated[str, typer.Option(help="adamw, or bitsandbytes' adamw8bit, paged_adamw or paged_adamw8bit.")] = "adamw",
    tracker: Annotated[str, typer.Option(help="An experiment tracker that accelerate knows, such as tensorboard.")] = "none",
    config: ConfigFile = None,
) -> None:
    """Train one method and save its adapter."""
    from graft.jobs import TrainJob, train_job

    values = settings(context, config)
    required(values, "model", "data", "output_dir")
    folder = train_job(TrainJob(**values | {"set": tuple(values["set"])}), err)
    out.print(f"Saved to {folder}", highlight=False)


@app.command(name="eval")
def evaluate(
    model: Model,
    data: Data,
    adapter: Annotated[str | None, typer.Option(help="An adapter's folder; the bare base when left out.")] = None,
    metric: Metric = "auto",
    eval_limit: Annotated[int, typer.Option(help="Rows scored; 0 for all.")] = 0,
    batch_size: BatchSize = 16,
    nf4: Nf4 = False,
) -> None:
    """Score a model, or an adapter on it, on the rows of a file."""
    from graft.jobs import evaluate_job

    evaluate_job(model, data, out, adapter=adapter, metric=metric, limit=eval_limit, batch_size=batch_size, nf4=nf4)


@app.command()
def verify(
    model: Model,
    adapter: Annotated[str, typer.Option(help="The adapter's folder.")],
    data: Annotated[str | None, typer.Option(help="Rows to run; random ids when left out.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Load an adapter of another base all the same.")] = False,
    nf4: Nf4 = False,
) -> None:
    """Prove that an adapter leaves its base untouched: run, train, route, merge, unmerge, detach, and compare every byte."""
    from graft.jobs import verify_job

    raise typer.Exit(0 if verify_job(model, adapter, data, out, force=force, nf4=nf4) else 1)
