"""Time and memory of one training step of every method, beside the frozen limit, in one process on an otherwise idle machine.

    python benchmarks/step_time.py --model smollm2 --data train.jsonl [--steps 20] [--batch-size 16] [--output result.json]

The frozen limit is the same model with nothing trained and the gradient flowing to the embeddings' output: any method that trains
in the first block pays that. Median over the steps after the first five; peak memory is that of the device (or of the process).
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import torch

import graft
from graft import data
from graft.compare.machine import machine, versions
from graft.methods import METHODS
from graft.model.load import load
from graft.train import token_losses
from graft.train.meter import PeakMemory

WARM = 5


def timed(model, parameters, batches, device):
    """Median milliseconds of forward, loss, backward and AdamW, and the peak in bytes."""
    optimizer = torch.optim.AdamW(parameters, lr=1e-5, fused=True) if parameters else None
    times = []
    with PeakMemory(device) as peak:
        for batch in batches:
            if device.type == "cuda":
                torch.cuda.synchronize()
            started = time.perf_counter()
            losses, _ = token_losses(model, batch)
            losses.mean().backward()
            if optimizer:
                optimizer.step()
                optimizer.zero_grad()
            if device.type == "cuda":
                torch.cuda.synchronize()
            times.append(1000 * (time.perf_counter() - started))
    return statistics.median(times[WARM:]), peak.bytes


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--data", required=True)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    loaded = load(options.model)
    model = loaded.model
    device = next(model.parameters()).device
    examples = data.tokenise(data.read(options.data, limit=options.batch_size * 40).rows, loaded.tokenizer, 512).examples
    stream = data.epochs(examples, options.batch_size, 0)
    batches = [{k: v.to(device) for k, v in data.collate(next(stream), 0).items()} for _ in range(options.steps + WARM)]
    model.requires_grad_(False).train()
    handle = model.get_input_embeddings().register_forward_hook(lambda module, args, out: out.requires_grad_(True))
    limit, limit_peak = timed(model, [], batches, device)
    handle.remove()
    rows = {"frozen limit": {"ms": limit, "ratio": 1.0, "peak_bytes": limit_peak, "trained": 0}}
    for name, method in METHODS.items():
        adapted = graft.adapt(model, method)
        model.train()
        ms, peak = timed(model, adapted.parameters(), batches, device)
        rows[name] = {"ms": ms, "ratio": ms / limit, "peak_bytes": peak, "trained": sum(p.numel() for p in adapted.parameters())}
        adapted.detach()
    print(f"{'method':14}{'ms a step':>11}{'of limit':>10}{'peak MiB':>10}{'trained':>14}")
    for name, row in rows.items():
        print(f"{name:14}{row['ms']:11.1f}{row['ratio']:10.2f}{row['peak_bytes'] / 2**20:10.0f}{row['trained']:14,}")
    if options.output:
        facts = {"model": loaded.name, "note": loaded.note, "batch_size": options.batch_size, "machine": machine(), "versions": versions()}
        options.output.write_text(json.dumps(facts | {"rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
