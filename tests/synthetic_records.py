"""Records of a comparison that never ran: twelve methods, baselines, trials, seeds, one failure, one skip, hostile strings."""

import json
from pathlib import Path
from typing import Any

import numpy as np

HOSTILE = "<script>alert(1)</script>$x_1$ & \"q\" 'a' | `b` --> ]]> </svg>"
BASE = 134_515_008
AFFINE = "affine"
# the least that a records file may hold
PLAN = {"schema": 1, "kind": "plan", "model": {"name": "tiny"}, "data": {}}
RUN = {"kind": "run", "run": "lora/seed-0", "method": "lora", "role": "final", "status": "done", "score": 0.5}


def site(role: str, note: str, form: str = AFFINE) -> dict[str, str]:
    return {"role": role, "form": form, "note": note}


LINEAR = ("query", "key", "value", "attention_out", "gate", "up", "down")
WEIGHTS = [site(role, "weight 576x576", "replacement") for role in (*LINEAR, "norm")]
# name: (skill, trainable parameters, learning rate, mergeable, context positions, memory, sites)
METHODS: dict[str, tuple[float, int, float, bool, int, float, list[dict[str, str]]]] = {
    "lora": (1.55, 2_442_240, 1e-3, True, 0, 1.98e9, [site(role, "A 8x576, B 576x8") for role in LINEAR]),
    "dora": (1.60, 2_523_456, 1e-3, True, 0, 2.31e9, [site(role, "A 8x576, B 576x8, magnitude 576") for role in LINEAR]),
    "bottleneck": (
        1.42,
        4_462_080,
        1e-3,
        False,
        0,
        1.93e9,
        [site(role, "A 64x576, a 64, B 576x64, b 576") for role in ("attention", "mlp")],
    ),
    "prefix": (0.95, 345_600, 1e-2, False, 30, 1.81e9, [site("cache", "kv 30x2x30x3x64", "virtualtokens")]),
    "prompt": (0.25, 11_520, 3e-2, False, 20, 1.86e9, [site("embedding", "embeds 20x576", "virtualtokens")]),
    "ia3": (1.52, 57_600, 1e-2, True, 0, 1.74e9, [site("key", "c 192"), site("value", "c 192"), site("up", "c 1536")]),
    "bias": (1.20, 157_440, 3e-3, True, 0, 1.70e9, [site(role, "b 576") for role in LINEAR]),
    "last-k": (1.00, 7_080_192, 3e-4, True, 0, 1.62e9, WEIGHTS),
    "norms": (0.80, 35_136, 1e-2, True, 0, 1.71e9, [site("norm", "weight 576", "replacement")]),
    "full": (1.58, BASE, 5e-5, True, 0, 3.92e9, [*WEIGHTS, site("embedding", "weight 49152x576", "replacement")]),
    "lora-r32": (1.57, 9_768_960, 1e-3, True, 0, 2.12e9, [site(role, "A 32x576, B 576x32") for role in LINEAR]),
    HOSTILE: (0.60, 88_000, 2e-3, False, 0, 1.9e9, [site(HOSTILE, HOSTILE), site("qkv", HOSTILE)]),
}


def plan(items: int = 500, **changes: Any) -> dict[str, Any]:
    record = {
        "schema": 1, "kind": "plan",
        "command": "graft compare --model smollm2 --data train.jsonl --eval-data test.jsonl --methods all --full --trials 3 --seeds 2 "
                   "--output-dir runs/banking",
        "model": {"name": "SmolLM2-135M-Instruct", "note": "dequantised from Q4_1", "fingerprint": "5f1c9a3e", "parameters": BASE},
        "data": {"train": "train.jsonl", "eval": "test.jsonl", "sha256": {"train": "9f" * 32, "eval": "c4" * 32}, "rows_train": 4000,
                 "rows_validation": 200, "rows_eval": items, "metric": "exact_match",
                 "notes": ["3 test rows ask what a training row asks"]},
        "machine": "2 cores, Intel Xeon, 24 GB", "versions": {"graft": "0.1.0", "python": "3.11.2", "torch": "2.13.0"},
        "budget": None, "methods": ["zero-shot", "in-context", *METHODS, "loftq"], "trials": 3, "seeds": 2, "max_steps": 300,
        "demo": False, "started": "2026-11-24T09:14:03+00:00", "full_command": "",
    }  # fmt: skip
    return record | changes


def curve(rng: np.random.Generator, skill: float) -> list[dict[str, Any]]:
    tokens = np.arange(0, 11) * 48_000
    loss = 0.32 + 0.28 * (1.7 - skill) + 3.4 * np.exp(-np.arange(11) * (0.25 + 0.28 * skill)) + rng.normal(0, 0.01, 11)
    return [
        {"step": int(step * 30), "tokens": int(token), "train_loss": float(value * 0.96), "validation_loss": float(value)}
        for step, (token, value) in enumerate(zip(tokens, loss, strict=True))
    ]


def trials(rng: np.random.Generator, name: str) -> list[dict[str, Any]]:
    skill, count, rate, *_ = METHODS[name]
    records = []
    for number, factor in enumerate((1 / 3, 1, 3)):
        loss = 0.34 + 0.28 * (1.7 - skill) + 0.12 * abs(number - 1) * (1 + number / 2) + float(rng.uniform(0, 0.03))
        record = {"kind": "run", "run": f"{name}/trial-{number}", "method": name, "role": "trial", "status": "done", "seed": 1000,
                  "learning_rate": rate * factor, "trainable_parameters": count, "validation_loss": loss}  # fmt: skip
        if name == "full" and number == 2:
            record |= {
                "status": "failed",
                "reason": "the loss is not finite at step 41 (rows train.jsonl:12, train.jsonl:977)",
                "validation_loss": None,
            }
        records.append(record)
    return records


def final(rng: np.random.Generator, name: str, seed: int, ease: np.ndarray) -> dict[str, Any]:
    skill, count, rate, mergeable, positions, memory, sites = METHODS[name]
    right = (rng.logistic(size=len(ease)) * 0.7 < ease + 2.4 * (skill - 0.9) + rng.normal(0, 0.08)).astype(float)
    slow = 1 + 0.12 * (count > 1e6) + 0.35 * (name == "dora") + 0.2 * (name == "full")
    beside = 1.0 if name == "full" else 1.18 if mergeable else 1.09
    plain = float(40.8 + rng.normal(0, 0.3))
    return {
        "kind": "run", "run": f"{name}/seed-{seed}", "method": name, "role": "final", "status": "done", "reason": "",
        "config": {"kind": name}, "seed": seed, "learning_rate": rate, "trainable_parameters": count, "adapter_bytes": count * 4 + 1180,
        "peak_memory_bytes": int(memory + seed * 1e6), "seconds_per_step": 2.31 * slow, "tokens_per_second": 690 / slow,
        "train_tokens": 480_000, "train_seconds": 693.0 * slow, "steps": 300, "curve": curve(rng, skill), "metric": "exact_match",
        "score": float(right.mean()), "others": {}, "validation_loss": 0.4, "per_item": right.tolist(),
        "latency_ms": {"unmerged": plain * beside, "merged": plain if mergeable else None},
        "mergeable": mergeable, "context_positions": positions, "sites": sites, "gated": True,
    }  # fmt: skip


def baseline(rng: np.random.Generator, name: str, skill: float, ease: np.ndarray, **more: Any) -> dict[str, Any]:
    right = (rng.logistic(size=len(ease)) * 0.7 < ease + 2.4 * (skill - 0.9)).astype(float)
    return {"kind": "run", "run": name, "method": name, "role": "baseline", "status": "done", "seed": 0, "metric": "exact_match",
            "trainable_parameters": 0, "adapter_bytes": 0, "score": float(right.mean()), "per_item": right.tolist(),
            "latency_ms": {"unmerged": 40.7, "merged": None}, "context_positions": 0} | more  # fmt: skip


def records(seeds: int = 2, items: int = 500, **changes: Any) -> list[dict[str, Any]]:
    """Return every record, the plan first; `changes` go into the plan."""
    rng = np.random.default_rng(3)
    ease = rng.normal(0, 1.1, items)
    out = [plan(seeds=seeds, items=items, **changes), baseline(rng, "zero-shot", -0.35, ease),
           baseline(rng, "in-context", 0.42, ease, shots=8, context_positions=286, latency_ms={"unmerged": 118.3})]  # fmt: skip
    for name in METHODS:
        out += trials(rng, name)
        out += [final(rng, name, seed, ease) for seed in range(seeds)]
    reason = f"out of memory: tried to allocate 2.1 GB {HOSTILE}"
    out.append({"kind": "run", "run": "loftq/seed-0", "method": "loftq", "role": "final", "status": "failed", "reason": reason})
    skipped = "this model's attention does not use the attention registry"
    out.append({"kind": "run", "run": "head/seed-0", "method": "head", "role": "final", "status": "skipped", "reason": skipped})
    return out


def write(folder: Path, found: list[dict[str, Any]]) -> Path:
    """Write records into a run's folder and return the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "records.jsonl").write_text("".join(json.dumps(record) + "\n" for record in found))
    return folder
