"""PEFT's `bias="lora_only"` and `bias="all"`: trained biases of the base, as a BiasOnly part beside LoRA.

Keys: `base_model.model.<path>.bias`, or `<path>.base_layer.bias` at an adapted module; the file holds the bias itself, b0 + b. We
write it in float64, so that b comes back to the bit.
"""

from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor

from graft.errors import AdapterError
from graft.formats.codec import Chosen
from graft.formats.ground import Ground
from graft.formats.leaves import Leaf
from graft.formats.names import naming
from graft.formats.peft_targets import ROOT
from graft.method import Method
from graft.methods.selective import BiasOnly
from graft.site import Site

CHOICES = ("none", "lora_only", "all")


def meant(choice: Any, adapted: Collection[Site], saved: Collection[Site], ground: Ground) -> list[Site]:
    """The modules whose biases the choice trains."""
    if choice == "lora_only":
        return [site for site in ground.modules if site.bias and site in adapted]
    return [site for site in ground.modules if site.bias and site not in saved] if choice == "all" else []


def part(config: dict[str, Any], adapted: Collection[Site], saved: Collection[Site], ground: Ground) -> Chosen | None:
    """The part that the config's `bias` stands for, if any."""
    choice = config.get("bias") or "none"
    if choice not in CHOICES:
        raise AdapterError(f"its config says bias = {str(choice)[:80]}: Graft knows {', '.join(CHOICES)}")
    sites = meant(choice, adapted, saved, ground)
    if not sites:
        return None
    if [site for site in ground.sites if BiasOnly().at(site)] == sites:
        return BiasOnly(), sites
    return naming(lambda targets: BiasOnly(targets=targets), sites, ground.sites), sites


def field(chosen: Sequence[Site], adapted: Collection[Site], saved: Collection[Site], ground: Ground) -> str | None:
    """The `bias` that trains just these sites' biases; None where none does, or where one is new."""
    for choice in ("lora_only", "all"):
        if set(meant(choice, adapted, saved, ground)) == set(chosen):
            return choice
    return None


def leaves(method: Method, sites: Sequence[Site], adapted: Collection[Site], ground: Ground) -> list[Leaf]:
    """One leaf a bias."""
    return [leaf(site, ".base_layer" if site in adapted else "", ground) for site in sites]


def leaf(site: Site, infix: str, ground: Ground) -> Leaf:
    """One bias, as the file has it and as the delta to the base's."""
    start = ground.value(f"{site.path}.bias")
    if start is None:
        raise AdapterError(f"{site.path} has no bias in this model")
    base = start.to(torch.float64)

    def outgoing(b: Tensor) -> Tensor:
        return base + b.to(base)

    def incoming(value: Tensor) -> Tensor:
        return value.to(base) - base

    return Leaf(f"{ROOT}{site.path}{infix}.bias", (site.outputs,), site, "b", outgoing, incoming)
