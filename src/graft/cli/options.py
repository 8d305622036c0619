"""Options that several commands share."""

from pathlib import Path
from typing import Annotated

import typer

Model = Annotated[str, typer.Option("--model", help="Hub id, local folder, .gguf file, or the alias smollm2.")]
Data = Annotated[str, typer.Option("--data", help="Training rows: .jsonl[.gz], .json, .csv, .parquet, or a hub data set id.")]
EvalData = Annotated[str | None, typer.Option("--eval-data", help="Rows to score on.")]
Output = Annotated[str, typer.Option("--output-dir", help="Folder to write to.")]
BadRows = Annotated[str, typer.Option("--bad-rows", help="What to do with a row that cannot be read: fail or skip.")]
Metric = Annotated[str, typer.Option(help="exact_match, final_answer, accuracy, rouge1, rouge2, rougeL, bleu, chrf, loss, or auto.")]
Nf4 = Annotated[bool, typer.Option("--nf4", help="Hold the base's linear maps in 4 bits (QLoRA).")]
Dtype = Annotated[str, typer.Option("--dtype", help="What the base is held and computed in: auto, float32, bfloat16 or float16.")]
BatchSize = Annotated[int, typer.Option("--batch-size", help="Rows a forward.")]
GradAccum = Annotated[int, typer.Option("--grad-accum", help="Batches an optimizer step.")]
MaxLength = Annotated[int, typer.Option("--max-length", help="Tokens a row; longer prompts lose their beginning.")]
Checkpointing = Annotated[bool, typer.Option("--checkpointing", help="Recompute activations in the backward pass to save memory.")]
CudaGraphs = Annotated[
    str,
    typer.Option("--cuda-graphs", help="Record steps as CUDA graphs: auto (where the host is slow and the GPU has room), on or off."),
]
Compile = Annotated[str, typer.Option("--compile", help="Compile the transformer's blocks: auto (where it pays), on or off.")]
Rows = Annotated[int, typer.Option("--rows", help="Rows of the data whose logits are compared.")]
MaxGap = Annotated[float | None, typer.Option("--max-gap", help="Largest logit gap allowed; what rounding explains when left out.")]
ConfigFile = Annotated[Path | None, typer.Option("--config", help="YAML file with the same names as the options; options given here win.")]
