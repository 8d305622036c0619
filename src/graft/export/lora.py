"""`peft-lora`: a LoRA that every engine reads: the scale is in B (alpha = r), all sites have one rank, no key that is often misread.

vLLM, SGLang, TGI, LoRAX and llama.cpp's converter all read `lora_alpha / r`; some ignore rsLoRA, patterns of ranks, biases, DoRA's
magnitudes and saved modules, and some refuse them. vLLM wants its `max_lora_rank` to be one of a few numbers, hence the padding.
"""

import json
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from graft import formats
from graft.adapter import Adapter
from graft.errors import AdapterError
from graft.evaluate.gap import logits
from graft.export.parcel import Batch, Order, Parcel, kinds, parts_of, why_no_weights
from graft.formats.folder import CONFIG
from graft.formats.names import naming
from graft.forms import Affine, Replacement
from graft.method import Tensors
from graft.methods import LoRA
from graft.model import families
from graft.model.fold import Here, affine, stations
from graft.model.ground import ground
from graft.model.load_adapter import load as load_adapter
from graft.site import LINEAR, Site

RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # those that vLLM permits
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "use_dora": (False,),
    "use_rslora": (False,),
    "bias": ("none",),
    "lora_bias": (False,),
    "modules_to_save": (None, []),
    "rank_pattern": (None, {}),
    "alpha_pattern": (None, {}),
}


@torch.no_grad()
def peft_lora(order: Order, folder: Path) -> Parcel:
    """Write the adapter's folder. Raises AdapterError where the adapter is no plain LoRA of linear maps."""
    model, adapter = order.base.model, order.only
    found = stations(model, adapter)
    if reason := why_no_lora(adapter, found):
        raise AdapterError(f"{kinds(adapter)} cannot be exported as peft-lora: {reason}")
    sites = [site for site in families.sites(model) if site.primary and site.path in found]
    pairs = {site: affine(model, site.path, found[site.path]) for site in sites}
    made = padded({site: form for site, form in pairs.items() if form is not None})
    rank = next(iter(made.values()))["A"].shape[0]
    method = naming(lambda targets: LoRA(r=rank, alpha=float(rank), targets=targets), sites, families.sites(model))
    formats.save(Adapter(((method, made),), adapter.fingerprint, adapter.base, adapter.notes), folder, ground(model))
    check_config(json.loads((folder / CONFIG).read_text()), rank)
    facts = {"rank": rank, "sites": len(made), "serve": f"vLLM: --enable-lora --max-lora-rank {rank}"}
    return Parcel(
        "the same product, its scale in B and its ranks padded with zeros: exact", "graft", model.dtype, runner(order, folder), facts
    )


def runner(order: Order, folder: Path) -> Any:
    """Runs rows through the folder as loaded back onto the base."""
    adapted = None

    def run(number: int, batch: Batch) -> torch.Tensor:
        nonlocal adapted
        adapted = adapted or load_adapter(order.base.model, folder)
        return logits(order.base.model, batch)

    return run


def why_no_lora(adapter: Adapter, found: dict[str, Here]) -> str:
    """Why an adapter is no plain LoRA, and what to do instead; "" if it is."""
    if reason := why_no_weights(adapter, found):
        return reason
    for site, form in parts_of(found):
        if isinstance(form, Replacement):
            return "it trains whole modules: export it with `--to merged`, or `--to shards`, which keeps what did not change"
        if isinstance(form, Affine) and (form.c is not None or form.i is not None):
            return "it scales outputs or inputs, which changes weights in full rank: export it with `--to merged`"
        if isinstance(form, Affine) and (form.b is not None or form.a is not None):
            return "it trains biases, which engines refuse or drop from a LoRA: export it with `--to merged`"
        if isinstance(form, Affine) and site.role not in LINEAR:
            return f"it adapts {site.path}, and engines agree only on linear maps inside layers: export it with `--to merged`"
    return ""


def padded(forms: dict[Site, Affine]) -> dict[Site, Tensors]:
    """A and B of every site with the smallest permitted rank that holds them all. Raises AdapterError where there is none."""
    largest = max(len(form.A) for form in forms.values() if form.A is not None)
    rank = next((rank for rank in RANKS if rank >= largest), None)
    if rank is None:
        raise AdapterError(f"rank {largest} is over {RANKS[-1]}, the largest that vLLM permits: cut it with `graft combine --rank`")
    made = {}
    for site, form in forms.items():
        if form.A is not None and form.B is not None:
            more = rank - len(form.A)
            made[site] = {"A": F.pad(form.A, (0, 0, 0, more)), "B": F.pad(form.B, (0, more))}
    return made


def check_config(config: dict[str, Any], rank: int) -> None:
    """Raise AdapterError unless the written config says nothing that an engine could misread."""
    odd = [key for key, allowed in NEUTRAL.items() if key in config and config[key] not in allowed]
    if odd or config["r"] != rank or config["lora_alpha"] != rank or not isinstance(config["target_modules"], list):
        raise AdapterError(
            f"the written config has {', '.join(odd) or 'another scale than 1'}, which engines misread: this is a bug of Graft"
        )
