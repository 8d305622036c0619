"""PEFT's ADALORA, read as LoRA: y + s B (E ∘ A) x with s = alpha / (init_r + 1e-5), E [r, 1] folded into A.

`rank_pattern` says for each module which of its `init_r` directions were kept; the scale stays that of `init_r`.
"""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, float32, float64, promote_types

from graft.errors import AdapterError
from graft.formats.codec import ALL, ANY, Chosen, Codec, read_only
from graft.formats.ground import Ground
from graft.formats.keys import keys
from graft.formats.leaves import shown
from graft.formats.peft_low_rank import OFF, STARTERS, grouped, leaves
from graft.formats.peft_targets import LAYERS, ROOT, TARGETS, targeted
from graft.method import Tensors

SCHEDULE = ("target_r", "tinit", "tfinal", "deltaT", "beta1", "beta2", "orth_reg_weight", "total_step")
KEYS = keys(
    used=(*ALL, *TARGETS, *LAYERS, "init_r", "lora_alpha", "lora_dropout", "rank_pattern", "bias", "ensure_weight_tying"),
    neutral=(*ANY, "r", "fan_in_fan_out", "init_lora_weights", *SCHEDULE, *STARTERS),
    off=(*OFF, "use_dora", "use_rslora", "lora_bias", "alpha_pattern"),
)
E = ".lora_E"


def sizes(config: dict[str, Any]) -> tuple[int, float]:
    """init_r and alpha. Raises AdapterError where they are no numbers of a usable size."""
    r, alpha = config.get("init_r", 12), config.get("lora_alpha", 8)
    if not isinstance(r, int) or isinstance(r, bool) or not 0 < r < 2**31:
        raise AdapterError(f"its config says init_r = {str(r)[:80]}, which is no rank")
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not abs(alpha) < 2**53:
        raise AdapterError(f"its config says lora_alpha = {str(alpha)[:80]}, which is no number of a usable size")
    return r, float(alpha)


def ranks(config: dict[str, Any]) -> dict[str, int]:
    """How many directions each module in `rank_pattern` kept, by path."""
    r, pattern = sizes(config)[0], config.get("rank_pattern") or {}
    if not isinstance(pattern, dict):
        raise AdapterError("rank_pattern is no object")
    for name, kept in pattern.items():
        if not name.endswith(E) or not isinstance(kept, list) or len(kept) != r or not all(isinstance(one, bool) for one in kept):
            raise AdapterError(f"rank_pattern says of {shown([name])} something else than which of {r} directions were kept")
    return {name.removesuffix(E): sum(kept) for name, kept in pattern.items()}


def parts(config: dict[str, Any], ground: Ground, found: Sequence[str]) -> list[Chosen]:
    """LoRA for each rank, at the modules that have it; those of rank 0 are as the base has them."""
    r, alpha = sizes(config)
    kept = ranks(config)
    sites = [site for site in targeted(config, ground, found) if site.role != "embedding" and kept.get(site.path, r)]
    lost = sorted(set(kept) - {site.path for site in ground.modules})
    if lost or not sites:
        raise AdapterError(f"rank_pattern names {shown(lost)}, no module of this model" if lost else "it adapts no module: every rank is 0")
    own = {"kind": "lora", "alpha": alpha if alpha > 0 else 1.0, "dropout": config.get("lora_dropout", 0.0)}
    return grouped(sites, [own | {"r": kept.get(site.path, r)} for site in sites], ground)


def prepare(config: dict[str, Any], tensors: Tensors) -> Tensors:
    """The file's tensors as those of a LORA. Raises AdapterError where A, E and B of a module do not fit each other."""
    r, alpha = sizes(config)
    made = dict(tensors)
    for key in [key for key in tensors if key.endswith(E)]:
        path = key.removesuffix(E)
        A, B, values = made.pop(f"{path}.lora_A", None), made.pop(f"{path}.lora_B", None), made.pop(key)
        if A is None or B is None or values.shape != (len(A), 1) or A.dim() != 2:
            raise AdapterError(f"{shown([key])} does not fit the lora_A and lora_B of its module")
        if len(A):
            made[f"{path}.lora_A.weight"], made[f"{path}.lora_B.weight"] = folded(A, values, r, alpha), B
    return made


def folded(A: Tensor, values: Tensor, r: int, alpha: float) -> Tensor:
    """A [k, in] with the singular values and PEFT's scale in it, relative to LoRA's own scale alpha / k."""
    scale = (alpha if alpha > 0 else len(A)) / (r + 1e-5)
    own = (alpha if alpha > 0 else 1.0) / len(A)
    return (A.to(float64) * values.to(float64) * (scale / own)).to(promote_types(A.dtype, float32))


ADALORA = Codec("ADALORA", ROOT, KEYS, read_only, parts, leaves, prepare)
