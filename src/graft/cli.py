"""The command line: arguments to one function call each, no logic.

Our own modules are imported inside the commands, and only here, so that `graft --help` needs no torch. One of Graft's own errors is
printed as one sentence and exits with 2, as is the system's (a full disk); Ctrl-C exits with 130.
"""

import os
import shlex
import sys
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from graft.errors import GraftError

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

Model = Annotated[str, typer.Option("--model", help="Hub id, local folder, .gguf file, or the alias smollm2.")]
Data = Annotated[str, typer.Option("--data", help="Training rows: .jsonl[.gz], .json, .csv, .parquet, or a hub data set id.")]
EvalData = Annotated[str | None, typer.Option("--eval-data", help="Rows to score on.")]
Output = Annotated[str, typer.Option("--output-dir", help="Folder to write to.")]
BadRows = Annotated[str, typer.Option("--bad-rows", help="What to do with a row that cannot be read: fail or skip.")]
Metric = Annotated[str, typer.Option(help="exact_match, final_answer, accuracy, rouge1, rouge2, rougeL, bleu, chrf, loss, or auto.")]
Nf4 = Annotated[bool, typer.Option("--nf4", help="Hold the base's linear maps in 4 bits (QLoRA).")]
BatchSize = Annotated[int, typer.Option("--batch-size", help="Rows a forward.")]
GradAccum = Annotated[int, typer.Option("--grad-accum", help="Batches an optimizer step.")]
MaxLength = Annotated[int, typer.Option("--max-length", help="Tokens a row; longer prompts lose their beginning.")]
Checkpointing = Annotated[bool, typer.Option("--checkpointing", help="Recompute activations in the backward pass to save memory.")]
Compile = Annotated[str, typer.Option("--compile", help="Compile the transformer's blocks: auto (where it pays), on or off.")]
Rows = Annotated[int, typer.Option("--rows", help="Rows of the data whose logits are compared.")]
MaxGap = Annotated[float | None, typer.Option("--max-gap", help="Largest logit gap allowed; what rounding explains when left out.")]
ConfigFile = Annotated[Path | None, typer.Option("--config", help="YAML file with the same names as the options; options given here win.")]


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
    return merged_config({name: value for name, value in context.params.items() if name != "config"}, given, file)


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
    seed: Annotated[int, typer.Option(help="Seed of the adapter, the order of rows and dropout.")] = 42,
    metric: Metric = "auto",
    bad_rows: BadRows = "fail",
    nf4: Nf4 = False,
    checkpointing: Checkpointing = False,
    compile: Compile = "auto",
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


@app.command()
def plan(
    model: Model,
    data: Annotated[str | None, typer.Option("--data", help="Rows, whose lengths count; 512 tokens each when left out.")] = None,
    memory: Annotated[str | None, typer.Option(help="What must be enough, such as 24GB; the card's when left out.")] = None,
    gpu: Annotated[str | None, typer.Option(help="The card, such as h100 or 4090: its memory, and times on it.")] = None,
    examples: Annotated[int | None, typer.Option(help="How many rows there are; those of --data when left out.")] = None,
    need: Annotated[str, typer.Option(help="quality,knowledge,form,latency,adapters,context,untouched,storage,speed: any.")] = "",
    why_not: Annotated[str, typer.Option("--why-not", help="A method of which to say why it is not advised.")] = "",
    json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
    html: Annotated[Path | None, typer.Option(help="Also write a page to this file.")] = None,
) -> None:
    """Say what every method costs on a model, how to train it in a memory, and which to take, from the model's config alone."""
    from graft.plan import plan_and_show

    plan_and_show(model, out, data=data, memory=memory, gpu=gpu, examples=examples, need=need, why_not=why_not, json=json, html=html)


@app.command()
def doctor() -> None:
    """Check this machine and its installation."""
    from graft.doctor import doctor as examine
    from graft.doctor import healthy, show

    checks = examine()
    show(checks, out)
    raise typer.Exit(0 if healthy(checks) else 1)


def required(values: dict[str, Any], *names: str) -> None:
    """Raise a usage error for an option that neither the command line nor the file gave."""
    for name in names:
        if not values[name]:
            raise typer.BadParameter(f"it is required, here or in --config, as {name}", param_hint=f"--{name.replace('_', '-')}")


def main() -> None:
    """Run the command line and exit."""
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # threads that wait sleep: beside other work spinning costs tenfold
    try:
        app()
    except (GraftError, OSError) as error:
        err.print(f"Error: {error}", style="red", highlight=False, markup=False)
        sys.exit(2)


if __name__ == "__main__":
    main()
