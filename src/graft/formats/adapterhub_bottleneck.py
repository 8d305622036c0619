"""AdapterHub's bottleneck adapters (`seq_bn`, `double_seq_bn`, `par_bn` and what lies between) as Bottleneck.

With y what the sublayer gives, r the residual, f the adapter and LN the norm that ends a sublayer (post-norm models):

    original_ln_before = false    y + r + f(y)                        attention and mlp, sequential
    original_ln_before = true     z + f(z), z = y + r                 block
                                  LN(y + r + f(LN(y + r)))            block of a post-norm model
    is_parallel                   y + r + f(r)                        parallel at residual (BERT: at what the sublayer reads, which is r)

Keys: `<layer>.<place>.adapters.<name>.adapter_down.0.{weight,bias}` and `adapter_up.{weight,bias}`. Layers with another
`reduction_factor` are parts of their own.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from graft.errors import AdapterError
from graft.formats.adapterhub_places import (
    Chosen,
    House,
    Kind,
    flag,
    is_number,
    layer_path,
    layers_in,
    left_out,
    not_in_use,
    number,
    targets,
)
from graft.formats.ground import Ground
from graft.formats.keys import keys
from graft.formats.leaves import Leaf
from graft.method import Method, select
from graft.methods import LARGEST
from graft.methods.bottleneck import Bottleneck
from graft.site import Site

TENSORS = {"A": "adapter_down.0.weight", "a": "adapter_down.0.bias", "B": "adapter_up.weight", "b": "adapter_up.bias"}
ACTS = {
    "relu": "relu",
    "gelu": "gelu",
    "gelu_tanh": "gelu_new",
    "silu": "swish",
    "tanh": "tanh",
    "leaky_relu": "leakyrelu",
    "identity": "linear",
}  # ours: AdapterHub's
OTHERS = {"silu": "silu", "gelu_pytorch_tanh": "gelu_tanh"}  # more names of theirs: ours
LEGACY = {"gelu": "gelu_new", "gelu_orig": "gelu"}  # in files without a version
PLAIN: dict[str, Any] = {
    "adapter_residual_before_ln": False,
    "cross_adapter": False,
    "dropout": 0.0,
    "factorized_phm_W": True,
    "factorized_phm_rule": False,
    "hypercomplex_nonlinearity": "glorot-uniform",
    "init_weights_seed": None,
    "inv_adapter": None,
    "inv_adapter_reduction_factor": None,
    "learn_phm": True,
    "ln_after": False,
    "ln_before": False,
    "original_ln_after": True,
    "phm_bias": True,
    "phm_c_init": "normal",
    "phm_dim": 4,
    "phm_init_range": 0.0001,
    "phm_layer": False,
    "phm_rank": 1,
    "residual_before_ln": True,
    "shared_W_phm": False,
    "shared_phm_rule": True,
    "stochastic_depth": 0.0,
    "use_gating": False,
}
OFF = ("ln_before", "ln_after", "phm_layer", "inv_adapter", "invertible_adapter", "use_gating")
NEUTRAL = (
    *(key for key in PLAIN if "phm" in key and key != "phm_layer"),
    "hypercomplex_nonlinearity",
    "architecture",
    "cross_adapter",  # in encoder-decoders only
    "adapter_residual_before_ln",  # with ln_after only
    "inv_adapter_reduction_factor",
    "init_weights",
    "init_weights_seed",
)
USED = (
    *("mh_adapter", "output_adapter", "reduction_factor", "non_linearity", "original_ln_before", "original_ln_after"),
    *("residual_before_ln", "is_parallel", "scaling", "leave_out", "dropout", "stochastic_depth"),
)


def chosen(config: dict[str, Any], ground: Ground, house: House) -> Chosen:
    """One part for each size that layers have. Raises AdapterError where Graft has no such form."""
    for key in ("dropout", "stochastic_depth"):
        not_in_use(config, key, "which acts on what the adapter gives in training, and not otherwise: set it to 0 to load the adapter")
    roles, act = places(config, house), str(config.get("non_linearity")).lower()
    act = {theirs: ours for ours, theirs in ACTS.items()}.get(act, OTHERS.get(act, ""))
    if not act:
        raise AdapterError(f"its config says non_linearity = {str(config.get('non_linearity'))[:80]}: Graft has {', '.join(ACTS.values())}")
    sizes: dict[int, list[int]] = {}
    for layer in layers_in(config, ground):
        sizes.setdefault(size(config.get("reduction_factor"), layer, width(ground)), []).append(layer)
    parallel, scale = flag(config, "is_parallel", False), float(number(config, "scaling", 1.0))
    made: Chosen = []
    for wide, layers in sizes.items():
        placement = "parallel" if parallel else "houlsby"
        method = Bottleneck(wide, act, placement, scale, targets(roles, layers, ground))
        made.append((method, select(method, ground.sites)))
    return made


def width(ground: Ground) -> int:
    """The hidden size."""
    return ground.sites[-1].outputs


def size(factor: Any, layer: int, hidden: int) -> int:
    """The middle's width in a layer: hidden // factor, which may be one for all layers or a table with a default."""
    own = factor.get(str(layer), factor.get("default")) if isinstance(factor, Mapping) else factor
    if not is_number(own) or not own > 1 / LARGEST:
        raise AdapterError(f"its config says reduction_factor = {str(factor)[:80]}, which gives layer {layer} no width")
    return max(1, int(hidden // own))


def places(config: dict[str, Any], house: House) -> list[str]:
    """Our roles. Raises AdapterError for an order of residuals and norms that Graft has no form for."""
    attention, mlp = flag(config, "mh_adapter", False), flag(config, "output_adapter", False)
    before, after = flag(config, "original_ln_before", False), flag(config, "original_ln_after", True)
    inner, kept = flag(config, "is_parallel", False), config.get("residual_before_ln", True)
    pair = ["attention"] * attention + ["mlp"] * mlp
    if inner and after and (house.encoder or not attention):
        return ["attention"] * attention + ["residual"] * mlp
    if not inner and not before and after and isinstance(kept, bool):
        return pair
    if not inner and before and not attention and ((kept is True and after) or (kept is False and not after and not house.encoder)):
        return ["block"] * mlp
    names = ("mh_adapter", "is_parallel", "original_ln_before", "original_ln_after", "residual_before_ln")
    said = ", ".join(f"{name} = {config.get(name)}" for name in names)
    raise AdapterError(f"its config says {said}: Graft has no adapter at that place of a layer")


def config(parts: Chosen, ground: Ground, house: House) -> dict[str, Any]:
    """The config. Raises AdapterError where AdapterHub has no adapter at the places of ours."""
    methods = [method for method, _ in parts if isinstance(method, Bottleneck)]
    first, sites = methods[0], [site for _, found in parts for site in found]
    if len({(method.act, method.placement == "parallel", method.scale) for method in methods}) > 1:
        raise AdapterError("AdapterHub's adapters have one activation, one placement and one scale: this one's parts differ")
    roles, parallel = {site.role for site in sites}, first.placement == "parallel"
    allowed = [{"attention", "mlp"}, {"block"}] if not parallel else [{"attention", "residual"}] if house.encoder else [{"residual"}]
    roles = {"residual" if parallel and house.encoder and role == "mlp" else role for role in roles}
    if not any(roles <= those for those in allowed):
        raise AdapterError(
            f"AdapterHub has no {'parallel' if parallel else 'sequential'} adapter at {' and '.join(sorted(roles))} here: its parallel "
            "one reads the residual (targets=('residual',))"
        )
    made = {
        "is_parallel": parallel,
        "init_weights": "mam_adapter" if parallel else "bert",
        "leave_out": left_out(sites, ground),
        "mh_adapter": "attention" in roles,
        "output_adapter": bool(roles - {"attention"}),
        "original_ln_before": "block" in roles,
        "non_linearity": ACTS[first.act],
        "scaling": float(first.scale),
        "reduction_factor": factors(parts, ground),
    }
    return PLAIN | made


def factors(parts: Chosen, ground: Ground) -> Any:
    """`reduction_factor`: one number, or one for each layer."""
    sizes = {str(site.layer): method.size for method, sites in parts if isinstance(method, Bottleneck) for site in sites}
    if any(method.size != sizes[str(site.layer)] for method, sites in parts if isinstance(method, Bottleneck) for site in sites):
        raise AdapterError("AdapterHub's adapters have one width in a layer: this one has two")
    found = {layer: factor(width(ground), wide) for layer, wide in sizes.items()}
    return next(iter(found.values())) if len(set(found.values())) == 1 else found


def factor(hidden: int, wide: int) -> float:
    """A factor by which hidden // factor is the width."""
    return hidden // wide if hidden % wide == 0 else hidden / (wide + 0.5)


def leaves(method: Method, sites: Sequence[Site], house: House, name: str) -> list[Leaf]:
    """Four tensors a site."""
    made = []
    for site in sites:
        place = house.attention if site.role == "attention" else house.mlp
        root = f"{layer_path(site, house)}.{place}.adapters.{name}."
        made += [Leaf(root + TENSORS[tensor], shape, site, tensor) for tensor, shape in method.shapes(site).items()]
    return made


KEYS = keys(used=USED, neutral=NEUTRAL, off=OFF)
BOTTLENECKS = Kind(KEYS, chosen, config, leaves)
