"""Does the fast way train what the plain one does? Two hundred steps of every method on real rows, each way, with one seed.

    python benchmarks/loss_curves.py --data banking77/train.jsonl.gz --output curves.jsonl [--model smollm2] [--methods lora dora ...]

The rows, their order and the initial tensors are the same in all ways, so that in exact arithmetic all curves would be one:

    reference      bfloat16, eager, every form by itself, as `graft.adapt` leaves a model
    fast           bfloat16, low-rank branches fused with their products, each block compiled, steps recorded as CUDA graphs
    accumulated    the reference, each step in two halves whose gradients are added: another order of the same sums
    float32        the reference in float32: what bfloat16 itself does to a curve

The last two are the measure of the second: training multiplies the smallest differences (steps.agreement says how they are compared).
Each run is a process of its own; `--workers` of them share the cards; runs that the output already has are not run again.
"""

import argparse
import datetime
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

import graft
from graft.compare.grids import DEFAULT_RATES
from graft.compare.machine import machine, versions
from graft.compare.material import gather
from graft.compare.settings import CompareConfig
from graft.compare.starts import start
from graft.methods import METHODS
from graft.model.load import load, resolve
from graft.train import TrainConfig, train
from steps.agreement import WAYS, table

HALVES = 2


def run(options: argparse.Namespace, method: str, way: str) -> dict[str, Any]:
    """One curve: the loss of every training step, and the validation loss at the end."""
    loaded = load(options.model, dtype=torch.float32 if way == "float32" else torch.bfloat16)
    config = CompareConfig(model=options.model, data=options.data, output_dir="", batch_size=options.batch, seed=options.seed)
    material = gather(config, loaded.tokenizer)
    adapted = graft.adapt(loaded.model, start(method, material.text), tokenizer=loaded.tokenizer, seed=options.seed)
    parts = HALVES if way == "accumulated" else 1
    how = TrainConfig(
        learning_rate=DEFAULT_RATES[method],
        max_steps=options.steps,
        batch_size=options.batch // parts,
        grad_accum=parts,
        seed=options.seed,
        fuse=way == "fast",
        compile="on" if way == "fast" else "off",
        cuda_graphs="auto" if way == "fast" else "off",
        strict=True,
    )
    losses: list[float] = []
    held_out = material.validation_examples
    result = train(
        adapted, loaded.tokenizer, material.examples, held_out, how, on_step=lambda step: losses.append(step.loss), progress=False
    )
    return {
        "method": method,
        "way": way,
        "steps": options.steps,
        "losses": losses,
        "validation_loss": result.validation_loss,
        "fused": result.fused,
        "graphs": result.compiled.graphs if result.compiled else 0,
        "played": result.recorded.times if result.recorded else 0,
        "seconds_per_step": result.seconds_per_step,
        "peak_memory_bytes": result.peak_memory_bytes,
        "config": {
            "batch": options.batch,
            "seed": options.seed,
            "learning_rate": how.learning_rate,
            "data": Path(options.data).parent.name,
        },
        "machine": machine(),
        "versions": versions(),
        "date": datetime.date.today().isoformat(),
    }


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--output", type=Path, required=True, help="a JSON-lines file to append to")
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=1, help="runs at a time")
    parser.add_argument("--timeout", type=float, default=600.0, help="seconds that end a run")
    parser.add_argument("--run", nargs=2, help=argparse.SUPPRESS)
    return parser.parse_args()


def done(output: Path) -> list[dict[str, Any]]:
    """The runs that the output has."""
    return [json.loads(line) for line in output.read_text().splitlines()] if output.exists() else []


def ask(options: argparse.Namespace, method: str, way: str, number: int) -> None:
    """One run in a process of its own, on a card in turn; its line goes to the output."""
    command = [sys.executable, *sys.argv, "--run", method, way]
    cards = torch.cuda.device_count()
    env = os.environ | ({"CUDA_VISIBLE_DEVICES": str(number % cards)} if cards > 1 else {})
    try:
        ended = subprocess.run(command, capture_output=True, text=True, env=env, timeout=options.timeout, check=False)
    except subprocess.TimeoutExpired:
        print(f"{method} {way}: not done after {options.timeout:.0f} s", flush=True)
        return
    said = [line for line in ended.stdout.splitlines() if line.startswith('{"method"')]
    if not said:
        print(f"{method} {way}: failed: {' | '.join(ended.stderr.strip().splitlines()[-3:])}", flush=True)
        return
    with options.output.open("a") as file:
        file.write(said[0] + "\n")
    line = json.loads(said[0])
    print(f"{method} {way}: validation loss {line['validation_loss']:.4f}, {line['seconds_per_step'] * 1000:.0f} ms a step", flush=True)


def main() -> None:
    """Run what is missing, then say how well the ways agree."""
    options = parsed()
    if options.run:
        print(json.dumps(run(options, *options.run)), flush=True)
        return
    resolve(options.model)  # a GGUF file is converted once, before the runs ask for it at the same time
    known = {(line["method"], line["way"]) for line in done(options.output)}
    wanted = [(method, way) for method in options.methods for way in options.ways if (method, way) not in known]
    with ThreadPoolExecutor(options.workers) as workers:
        list(workers.map(lambda job: ask(options, *job[1], job[0]), enumerate(wanted)))
    print("\n".join(table(done(options.output))))


if __name__ == "__main__":
    main()
