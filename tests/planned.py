"""What tests of plans share: models that are planned for, and how a plan is read."""

import io

import transformers
from rich.console import Console

from graft.plan import USUAL, show

FEW = {name: USUAL[name] for name in ("lora r=16", "dora r=16", "bottleneck", "prompt n=20", "last-k", "full")}


def llama(width=4096, layers=32, mlp=11008):
    heads = width // 128
    return transformers.LlamaConfig(
        hidden_size=width, num_hidden_layers=layers, num_attention_heads=heads, intermediate_size=mlp, vocab_size=32000
    )


SMALL = llama(2048, 16, 8192)


def by_name(found):
    return {each.counted.name: each for each in found.entries}


def printed(found, width=160, asked=""):
    console = Console(width=width, record=True, force_terminal=False, file=io.StringIO())
    show(found, console, asked)
    return console.export_text()
