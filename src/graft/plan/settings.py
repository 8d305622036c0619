"""The settings that a plan shows unless it is asked for others: every method as `graft train` starts it, and the sizes that papers use.

A name is what stands on the command line: `lora r=16` is `--method lora --set r=16`.
"""

from graft.method import Method
from graft.methods import METHODS, Bottleneck, DoRA, LoRA, Prefix, Prompt

USUAL: dict[str, Method] = {
    "lora r=8": LoRA(),
    "lora r=16": LoRA(r=16),
    "lora r=64": LoRA(r=64),
    "dora r=8": DoRA(),
    "dora r=16": DoRA(r=16),
    "bottleneck": Bottleneck(),
    "prefix n=20": Prefix(),
    "prompt n=20": Prompt(),
    **{name: METHODS[name] for name in ("ia3", "bias", "norms", "last-k", "full")},
}


def flags(name: str) -> str:
    """The options of `graft train` that a name stands for."""
    method, *fields = name.split()
    return " ".join([f"--method {method}", *(f"--set {field}" for field in fields)])
