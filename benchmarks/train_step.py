"""One training step of every method beside the frozen limit and HF PEFT, each row in a process of its own, on one idle card.

    python benchmarks/train_step.py [--shape 7b] [--tokens 2048] [--batch 2] [--rank 16] [--rows limit lora peft-lora ...] [--output FILE]

A step is forward, loss and backward on random ids; every weight is random. The frozen limit is the same base with nothing trained and
the gradient flowing to the embeddings' output: what any method trained in the first block must pay. `-eager` rows run without compiling,
all others with each block compiled (`layer.compile(fullgraph=True)`). PEFT's rows: `peft-lora` as it is by default (float32 adapters,
eager), `peft-lora-best` with adapters in the base's dtype and each block compiled. Medians by device events, peak memory after warm-up.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
import transformers

SHAPES = {
    "7b": {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32, "vocab_size": 32000},
    "1b": {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32, "num_key_value_heads": 8},
    "tiny": {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 512},
}
WARM, TIMED = 3, 8


def base_model(shape, device, dtype):
    """A Llama of the shape with random weights."""
    config = transformers.LlamaConfig(**SHAPES[shape], max_position_embeddings=8192)
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    with torch.device(device):
        model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")
    torch.set_default_dtype(before)
    return model.train()


def graft_row(model, name, rank, dropout):
    """The model adapted by one of Graft's methods; the parameters trained."""
    import graft
    from graft.methods import METHODS

    made = {
        "lora": graft.LoRA(r=rank, dropout=dropout),
        "dora": graft.DoRA(r=rank, dropout=dropout),
        "bottleneck": graft.Bottleneck(size=64),
        "prefix": graft.Prefix(n=20),
        "prompt": graft.Prompt(n=20, init_embeds="random"),
        "bias": graft.BiasOnly(add=True),
        "last-k": graft.Selective("last", k=2),
    }
    method = made.get(name) or METHODS[name]
    return graft.adapt(model, method).parameters()


def peft_row(model, name, rank, dropout, best):
    """The model adapted by HF PEFT; the parameters trained."""
    import peft

    linears = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    low_rank = {"r": rank, "lora_alpha": 16, "lora_dropout": dropout, "target_modules": linears}
    configs = {
        "lora": lambda: peft.LoraConfig(**low_rank),
        "dora": lambda: peft.LoraConfig(**low_rank, use_dora=True),
        "ia3": lambda: peft.IA3Config(target_modules=["k_proj", "v_proj", "down_proj"], feedforward_modules=["down_proj"]),
        "prefix": lambda: peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=20),
        "prompt": lambda: peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=20),
    }
    adapted = peft.get_peft_model(model, configs[name](), autocast_adapter_dtype=not best)
    return adapted, [value for value in adapted.parameters() if value.requires_grad]


def prepared(options):
    """(callable model, base model, trained parameters) of one row."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = base_model(options.shape, device, torch.bfloat16)
    name = options.row.removesuffix("-eager")
    runs, trained = model, []
    if name == "limit":
        model.requires_grad_(False)
        model.get_input_embeddings().register_forward_hook(lambda module, args, out: out.requires_grad_(True))
    elif name == "full":
        trained = list(model.parameters())
    elif name.startswith("peft-"):
        best = name.endswith("-best")
        runs, trained = peft_row(model, name.removeprefix("peft-").removesuffix("-best"), options.rank, options.dropout, best)
    else:
        trained = graft_row(model, name, options.rank, options.dropout)
    if options.checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    compiles = not options.row.endswith("-eager") and (not name.startswith("peft-") or name.endswith("-best"))
    if compiles:
        for layer in model.model.layers:
            layer.compile(fullgraph=True)
    return runs.train(), model, trained


def measure(options):
    """Milliseconds of each timed step, the peak in bytes, and the seconds of the first step."""
    runs, model, trained = prepared(options)
    device = next(model.parameters()).device
    cuda = device.type == "cuda"
    vocabulary = model.config.vocab_size
    generator = torch.Generator().manual_seed(1)
    batches = [torch.randint(vocabulary, (options.batch, options.tokens), generator=generator).to(device) for _ in range(WARM + TIMED)]
    times, cold = [], 0.0
    for number, ids in enumerate(batches):
        if cuda and number == WARM:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
        started = time.perf_counter()
        marks = [torch.cuda.Event(enable_timing=True) for _ in range(2)] if cuda else []
        marks[0].record() if cuda else None
        loss = runs(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()
        marks[1].record() if cuda else None
        torch.cuda.synchronize() if cuda else None
        took = marks[0].elapsed_time(marks[1]) if cuda else 1000 * (time.perf_counter() - started)
        cold = cold or time.perf_counter() - started
        times.append(took)
        for value in trained:
            value.grad = None
    peak = torch.cuda.max_memory_allocated() if cuda else 0
    kernels = profiled(runs, batches[-1], trained) if options.profile and cuda else {}
    return {
        "ms": statistics.median(times[WARM:]),
        "all_ms": times[WARM:],
        "peak_bytes": peak,
        "cold_s": cold,
        "trained": sum(v.numel() for v in trained),
    } | kernels


def profiled(runs, ids, trained):
    """Where the time of one step goes: milliseconds and calls of each kernel, the longest first, and the sum of all."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        runs(input_ids=ids, labels=ids, use_cache=False).loss.backward()
        torch.cuda.synchronize()
    for value in trained:
        value.grad = None
    found = sorted(((e.self_device_time_total / 1000, e.count, e.key[:120]) for e in profile.key_averages()), reverse=True)
    return {"kernels": [entry for entry in found[:40] if entry[0] > 0], "kernels_ms": sum(entry[0] for entry in found)}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="7b")
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--dropout", type=float, default=0.0)
    parser.add_argument("--checkpointing", action="store_true")
    parser.add_argument("--profile", action="store_true", help="also say where the time goes, kernel by kernel")
    parser.add_argument(
        "--rows",
        nargs="+",
        default=[
            "limit",
            "lora",
            "dora",
            "bottleneck",
            "ia3",
            "bias",
            "prefix",
            "prompt",
            "last-k",
            "peft-lora",
            "peft-lora-best",
            "peft-dora-best",
            "peft-ia3-best",
        ],
    )
    parser.add_argument("--row", help=argparse.SUPPRESS)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    if options.row:
        print(json.dumps(measure(options)))
        return
    own = [
        "--shape",
        options.shape,
        "--tokens",
        options.tokens,
        "--batch",
        options.batch,
        "--rank",
        options.rank,
        "--dropout",
        options.dropout,
    ]
    own += [f"--{name}" for name in ("checkpointing", "profile") if getattr(options, name)]
    rows = {}
    for name in options.rows:
        done = subprocess.run([sys.executable, __file__, *map(str, own), "--row", name], capture_output=True, text=True)
        last = done.stdout.strip().splitlines()[-1:] if done.returncode == 0 else []
        rows[name] = json.loads(last[0]) if last else {"failed": done.stderr.strip().splitlines()[-1:]}
        show(name, rows)
        if options.output:
            facts = {
                "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
                "torch": torch.__version__,
                "transformers": transformers.__version__,
            }
            asked = {key: value for key, value in vars(options).items() if key not in ("row", "rows", "output")}
            options.output.write_text(json.dumps(facts | asked | {"rows": rows}, indent=1) + "\n")


def show(name, rows):
    """One line of the table."""
    row, limit = rows[name], rows.get("limit", {})
    if "failed" in row:
        print(f"{name:20} failed: {row['failed']}", flush=True)
        return
    ratio = row["ms"] / limit["ms"] if limit else float("nan")
    memory = row["peak_bytes"] / limit["peak_bytes"] if limit.get("peak_bytes") else float("nan")
    peak = row["peak_bytes"] / 2**30
    print(
        f"{name:20}{row['ms']:9.1f} ms{ratio:7.3f} of the limit{peak:8.1f} GiB{memory:7.3f}   first step {row['cold_s']:.0f} s", flush=True
    )


if __name__ == "__main__":
    main()
