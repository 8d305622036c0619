"""AdapterHub's LoRA, and its IA3, which it keeps as a LoRA that scales.

LoRA: y + (alpha / r) B A x. IA3: c * y, at outputs only: on BERT and GPT-2 that of the MLP's first map, before the activation; on Llama
that of `down_proj`. Keys: `<path>.loras.<name>.lora_A` [r, in] and `.lora_B` [out, r] (IA3: [out, 1]). Where query, key and value are one
map (GPT-2), the tensors of those in use stand in one, in that order.
"""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, cat

from graft.errors import AdapterError
from graft.formats.adapterhub_places import Chosen, House, Kind, bare, flag, layers_in, left_out, number, targets
from graft.formats.ground import Ground
from graft.formats.keys import keys
from graft.formats.leaves import Leaf
from graft.formats.peft_low_rank import whole
from graft.method import Method, Tensors, select
from graft.methods import from_config
from graft.methods.ia3 import IA3
from graft.methods.lora import LoRA, scale
from graft.site import Site

TENSORS = {"A": "lora_A", "B": "lora_B", "c": "lora_B"}
MATRICES = {"q": "query", "k": "key", "v": "value"}
FUSED = "|"  # parts a fused map's key from the role whose share of the tensor is meant
KEYS = keys(
    used=("selfattn_lora", "intermediate_lora", "output_lora", "leave_out", "r", "alpha", "dropout", "attn_matrices", "composition_mode"),
    neutral=("architecture", "init_weights", "init_weights_seed", "dtype"),
    off=("use_gating", "use_dora", "vera_d", "vera_b"),
)


def roles(config: dict[str, Any], house: House) -> list[str]:
    """Our roles at the places that the config names."""
    names = config.get("attn_matrices", ["q", "v"])
    if not isinstance(names, list) or any(name not in list(MATRICES) for name in names):
        raise AdapterError(f"its config says attn_matrices = {str(names)[:80]}: Graft reads q, k and v")
    found = [MATRICES[name] for name in MATRICES if name in names] if flag(config, "selfattn_lora", True) else []
    found += [house.intermediate] * flag(config, "intermediate_lora", False)
    return found + [house.output] * flag(config, "output_lora", False)


def chosen(config: dict[str, Any], ground: Ground, house: House) -> Chosen:
    """LoRA, or IA3 for a scale."""
    named = targets(roles(config, house), layers_in(config, ground), ground)
    mode, r, alpha = config.get("composition_mode", "add"), config.get("r", 8), number(config, "alpha", 8)
    if mode == "scale":
        if (r, alpha, number(config, "dropout", 0.0)) != (1, 1, 0):
            raise AdapterError("its config scales outputs (composition_mode = scale) with an r or alpha that is not 1, or with dropout")
        method: Method = IA3(named)
    elif mode == "add":
        own = {"r": r, "alpha": alpha, "dropout": number(config, "dropout", 0.0), "targets": list(named)}
        method = from_config({"kind": "lora"} | own)
    else:
        raise AdapterError(f"its config says composition_mode = {str(mode)[:80]}: it is add or scale")
    return [(method, select(method, ground.sites))]


def config(parts: Chosen, ground: Ground, house: House) -> dict[str, Any]:
    """The config of a LoRA or an IA3."""
    ((method, sites), *more) = parts
    places = {**{role: name for name, role in MATRICES.items()}, house.intermediate: "intermediate_lora", house.output: "output_lora"}
    other = sorted({site.role for site in sites} - set(places))
    if more or other:
        where = f"at {' and '.join(other)}" if other else "of several parts"
        raise AdapterError(f"AdapterHub has no {method.kind} {where}: its places are query, key, value, up and down")
    if any(set(method.shapes(site)) - set(TENSORS) for site in sites):
        raise AdapterError(
            f"AdapterHub's {method.kind} has no {'scale of an input: it scales outputs' if method.kind == 'ia3' else 'bias'}"
        )
    found = {places[site.role] for site in sites}
    return common(method) | {
        "architecture": "lora",
        "attn_matrices": [name for name in MATRICES if name in found] or ["k", "v"],
        "selfattn_lora": bool(found & set(MATRICES)),
        "intermediate_lora": "intermediate_lora" in found,
        "output_lora": "output_lora" in found,
        "leave_out": left_out(sites, ground),
        "dtype": None,
        "init_weights_seed": None,
        **dict.fromkeys(("use_dora", "use_gating"), False),
        **dict.fromkeys(("vera_b", "vera_d")),
    }


def common(method: Method) -> dict[str, Any]:
    """What LoRA and IA3 say differently."""
    if isinstance(method, LoRA):
        alpha = whole(scale(method) * method.r if method.rslora else method.alpha)
        return {"r": method.r, "alpha": alpha, "dropout": method.dropout, "composition_mode": "add", "init_weights": "lora"}
    return {"r": 1, "alpha": 1, "dropout": 0.0, "composition_mode": "scale", "init_weights": "ia3"}


def leaves(method: Method, sites: Sequence[Site], house: House, name: str) -> list[Leaf]:
    """One leaf a tensor; that of some rows of a fused map has the role in its key."""
    made = []
    for site in sites:
        root, share = f"{bare(site.path, house)}.loras.{name}.", "" if site.rows is None else FUSED + site.role
        for tensor, shape in method.shapes(site).items():
            made.append(Leaf(root + TENSORS[tensor] + share, shape if len(shape) > 1 else (*shape, 1), site, tensor))
    return made


def shares(wanted: Sequence[str]) -> dict[str, list[str]]:
    """The fused tensors among the leaves' keys: the file's key, and the keys of its shares in order."""
    found: dict[str, list[str]] = {}
    for key in wanted:
        if FUSED in key:
            found.setdefault(key.split(FUSED)[0], []).append(key)
    return found


def parted(tensors: Tensors, wanted: Sequence[str]) -> Tensors:
    """A file's tensors with the fused ones cut into shares. Raises AdapterError where they do not come out even."""
    made = dict(tensors)
    for key, parts in shares(wanted).items():
        if key in made:
            value = made.pop(key)
            if value.dim() != 2 or value.shape[0] % len(parts):
                raise AdapterError(f"{key} is {tuple(value.shape)}, which does not part into {len(parts)} projections")
            made |= dict(zip(parts, value.chunk(len(parts)), strict=True))
    return made


def joined(tensors: Tensors, wanted: Sequence[str]) -> Tensors:
    """The other way round."""
    made: dict[str, Tensor] = dict(tensors)
    for key, parts in shares(wanted).items():
        made[key] = cat([made.pop(share) for share in parts])
    return made


LOW_RANK = Kind(KEYS, chosen, config, leaves)
