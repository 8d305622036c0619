"""A thousand adapters of five methods behind one engine: are all right, is memory bounded, does the thousandth load as the first?

    python benchmarks/serve_thousand.py [--adapters 1000] [--slots 16] [--host-mb 256] [--folder DIR] [--output result.json]

The base is SmolLM2-135M in float32 on a CPU. Adapters are LoRA (rank 2, all linear maps), IA3, biases, prompts and prefixes in turn,
random, each in a folder of its own. All are registered, loaded one after another (timed), and asked in random order, some of them twice, by
as many callers at a time as `IN_FLIGHT` times the slots, so that nearly every request finds its adapter neither in a slot nor in host
memory. Every answer is compared with that of the same adapter alone, in a model that serves nothing, by one forward without a cache:
each token must be the likeliest after those before it.
"""

import argparse
import json
import random
import statistics
import tempfile
import time
from collections import deque
from dataclasses import replace
from pathlib import Path

import torch

import graft
from graft import formats
from graft.compare.machine import machine, versions
from graft.model.ground import ground
from graft.model.load import load
from graft.serve import Engine, Room, Sampling

METHODS = {
    "lora": graft.LoRA(r=2),
    "ia3": graft.IA3(),
    "bias": graft.BiasOnly(add=True),
    "prompt": graft.Prompt(n=8, init_embeds="random"),
    "prefix": graft.Prefix(n=8),
}
IN_FLIGHT = 2
TEXT = "The quick brown fox jumps over the lazy dog, and nobody in the whole of the village can say why it would do so"


def make(model, folder, count, std):
    """Write `count` random adapters of the methods in turn to folder/<method><number>; their names and bytes."""
    fresh = {}
    for name, method in METHODS.items():
        host = graft.adapt(model, method)
        fresh[name] = host.adapter()
        host.detach()
    names, here = [], ground(model)
    for number in range(count):
        method = list(METHODS)[number % len(METHODS)]
        rng = torch.Generator().manual_seed(number)
        parts = tuple(
            (kind, {site: {key: noisy(value, std, rng) for key, value in tensors.items()} for site, tensors in sites.items()})
            for kind, sites in fresh[method].parts
        )
        names.append(f"{method}{number}")
        formats.save(replace(fresh[method], parts=parts), Path(folder) / names[-1], here)
    return names, sum(file.stat().st_size for file in Path(folder).rglob("*") if file.is_file())


def noisy(value, std, rng):
    """The tensor, and noise."""
    return value + torch.empty_like(value).normal_(std=std, generator=rng)


def packed(engine):
    """Bytes that all slots hold on the device: packs, and rows of virtual tokens."""
    packs = [value for slot in engine.wiring.slots.values() for value in slot.buffers()]
    rows = [value for value in (engine.rows.kv.value, engine.rows.embeddings.value) if value is not None]
    return sum(value.numel() * value.element_size() for value in packs + rows)


def resident():
    """Megabytes of this process in memory."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return round(pages * 4096 / 1e6)


def ask(engine, names, prompts, new):
    """Every adapter, each with its prompt; answers by name, and the most bytes that host and device held meanwhile."""
    order = random.Random(0).sample(list(names), len(names))
    handles, answers, host, device = deque(), {}, 0, 0
    while order or handles:
        while order and len(handles) < IN_FLIGHT * engine.slots.count:
            name = order.pop()
            handles.append((name, engine.submit(prompts[name], name, Sampling(max_tokens=new, ignore_end=True))))
        name, handle = handles.popleft()
        answers[name] = handle.result(3600).ids
        host, device = max(host, engine.counts().host_bytes), max(device, packed(engine))
        if len(answers) % 50 == 0:
            print(f"{len(answers)} of {len(names)} are answered", flush=True)
    return answers, host, device


def wrong(model, folder, prompts, answers):
    """The names whose answer is not that of the adapter alone."""
    found = []
    for name, ids in answers.items():
        alone = graft.load(model, Path(folder) / name)
        with torch.no_grad():
            logits = alone.model(input_ids=torch.tensor([[*prompts[name], *ids]]), use_cache=False).logits[0]
        alone.detach()
        if logits[len(prompts[name]) - 1 : -1].argmax(-1).tolist() != ids:
            found.append(name)
    return found


def loads(engine, names):
    """Seconds of each load, in order."""
    times = []
    for name in names:
        began = time.perf_counter()
        engine.load(name)
        times.append(time.perf_counter() - began)
    return times


def first_and_last(names, times):
    """Milliseconds to load one of each method: the median of the first and of the last tenth."""
    own = {kind: [second for name, second in zip(names, times, strict=True) if name.startswith(kind)] for kind in METHODS}
    tenth = max(1, len(times) // len(METHODS) // 10)
    return {k: [round(1000 * statistics.median(v), 1) for v in (own[k][:tenth], own[k][-tenth:])] for k in own}


def main():
    """Measure, print and write."""
    parser = argparse.ArgumentParser()
    for name, default in {"adapters": 1000, "slots": 16, "host-mb": 256, "new": 4, "tokens": 12, "again": 10}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    for name in ("folder", "output"):
        parser.add_argument(f"--{name}")
    options = parser.parse_args()
    loaded = load("smollm2", dtype=torch.float32, device="cpu")
    model, tokenizer = loaded.model, loaded.tokenizer
    alone = load("smollm2", dtype=torch.float32, device="cpu").model
    words = tokenizer(TEXT)["input_ids"]
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        names, size = make(model, folder, options.adapters, std=0.03)
        print(f"{len(names)} adapters of {size >> 20} MiB are made", flush=True)
        before = resident()
        prompts = {name: (words * 2)[number % len(words) :][: options.tokens] for number, name in enumerate(names)}
        room = Room(cached=options.slots * 64 + 2048, batch=256, requests=options.slots)
        with Engine(model, tokenizer, slots=options.slots, room=room, host_bytes=options.host_mb * 1_000_000) as engine:
            for name in names:
                engine.register(name, Path(folder) / name)
            times = loads(engine, names)
            print(f"loaded in {sum(times):.0f} s", flush=True)
            filled, began = resident(), time.perf_counter()
            answers, host, device = ask(engine, names, prompts, options.new)
            again, *most = ask(engine, names[:: options.again], prompts, options.new)
            seconds, after, counts = time.perf_counter() - began, resident(), engine.counts()
        bad = wrong(alone, folder, prompts, answers)
        base = unlike(alone, prompts, answers)
    own = [one for name, one in counts.adapters.items() if name is not None]
    result = {
        "adapters": len(names),
        "methods": {kind: sum(name.startswith(kind) for name in names) for kind in METHODS},
        "megabytes_on_disk": round(size / 1e6),
        "slots": options.slots,
        "wrong": bad + [name for name in again if again[name] != answers[name]],
        "answers_unlike_the_base": base,
        "load_ms_first_and_last_tenth": first_and_last(names, times),
        "host_bytes_allowed_and_most": [options.host_mb * 1_000_000, max(host, most[0])],
        "device_megabytes_most": round(max(device, most[1]) / 1e6, 1),
        "process_megabytes_before_loading_loaded_after": [before, filled, after],
        "requests": len(answers) + len(again),
        "seconds": round(seconds),
        "evictions_slot": sum(one.evictions["slot"] for one in own),
        "evictions_host": sum(one.evictions["host"] for one in own),
        "tokens_shared": sum(one.tokens["shared"] for one in own),
        "machine": machine(),
        "versions": versions(),
    }
    text = json.dumps(result, indent=1)
    print(text)
    if options.output:
        Path(options.output).write_text(text + "\n")


def unlike(model, prompts, answers):
    """How many answers are not the bare base's: that many adapters can be told from it."""
    found = 0
    for name, ids in answers.items():
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([[*prompts[name], *ids]])).logits[0]
        found += logits[len(prompts[name]) - 1 : -1].argmax(-1).tolist() != ids
    return found


if __name__ == "__main__":
    main()
