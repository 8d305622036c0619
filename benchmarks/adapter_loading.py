"""Time to load adapter number n into a model that holds n - 1 others, from its folder, beside HF PEFT in the same process.

    python benchmarks/adapter_loading.py [--adapters 100] [--layers 32] [--width 64] [--output result.json]

The model is a Llama of so many layers and small width: 32 layers have 224 adapted linear maps, and what is timed is the bookkeeping.
`add` reads the folder, checks it, computes the forms and fills the packs; PEFT's `load_adapter` reads the folder and makes modules.
The second part adds and removes adapters of changing rank and says how many bytes the packs hold after each round.
"""

import argparse
import json
import statistics
import tempfile
import time
import warnings
from pathlib import Path

import torch
import transformers
from peft import PeftModel

import graft
from graft.compare.machine import machine, versions

AT = (1, 10, 30, 100)


def tiny(layers, width):
    """A random Llama whose seven linear maps a layer are all small."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=64,
    )
    return transformers.LlamaForCausalLM(config).eval()


def loads(load, adapters):
    """Seconds of each load."""
    times = []
    for number in range(1, adapters + 1):
        started = time.perf_counter()
        load(number)
        times.append(time.perf_counter() - started)
    return times


def at(times):
    """Milliseconds of the chosen loads: the median of each and its two neighbours, since one alone may have met another's work."""
    return {str(n): round(1000 * statistics.median(times[max(0, n - 2) : n + 1]), 1) for n in AT if n <= len(times)}


def held(model):
    """Bytes in the model's packs."""
    return sum(value.numel() * value.element_size() for name, value in model.named_buffers() if ".graft.packs." in name)


def main():
    """Measure and print."""
    parser = argparse.ArgumentParser()
    for name, default in {"adapters": 100, "layers": 32, "width": 64, "rounds": 200}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--output")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model = tiny(options.layers, options.width)
        adapted = graft.adapt(model, graft.LoRA(r=8))
        with torch.no_grad():
            for value in adapted.parameters():
                value.normal_(std=0.1)
        adapted.save(folder)
        ours = loads(lambda n: adapted.add(f"a{n}", folder), options.adapters)
        bytes_after = []
        for name in adapted.names[1:]:
            adapted.remove(name)
        small = {r: graft.adapt(tiny(options.layers, options.width), graft.LoRA(r=r)).adapter() for r in (2, 4, 8)}
        for number in range(options.rounds):
            adapted.add("coming", small[(2, 4, 8)[number % 3]])
            adapted.remove("coming")
            bytes_after.append(held(model))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            theirs_model = PeftModel.from_pretrained(tiny(options.layers, options.width), folder, adapter_name="a0")
            theirs = loads(lambda n: theirs_model.load_adapter(folder, adapter_name=f"a{n}"), options.adapters)
    result = {
        "linears": 7 * options.layers,
        "graft_ms": at(ours),
        "peft_ms": at(theirs),
        "pack_bytes_first_and_last_of_rounds": [bytes_after[0], bytes_after[-1]],
        "rounds": options.rounds,
        "machine": machine(),
        "versions": versions(),
    }
    print(json.dumps(result, indent=1))
    if options.output:
        Path(options.output).write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
