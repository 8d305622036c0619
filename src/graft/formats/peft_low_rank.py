"""PEFT's LORA, with `use_rslora`, `use_dora` and `lora_bias`, as LoRA and DoRA; one part for each rank and alpha that patterns say.

Keys: `base_model.model.<path>.lora_A.weight` [r, in], `.lora_B.weight` [out, r], `.lora_B.bias` [out], `.lora_magnitude_vector`
[out]; at an embedding `.lora_embedding_A` [r, vocabulary], `.lora_embedding_B` [d, r]. Their values and ours are the same, also where
the base's weight is stored [in, out].
"""

from collections.abc import Sequence
from typing import Any

from graft.errors import AdapterError
from graft.formats.codec import ALL, ANY, Chosen, Codec
from graft.formats.ground import Ground, is_matrix
from graft.formats.keys import keys
from graft.formats.leaves import Leaf
from graft.formats.names import cover, naming
from graft.formats.peft_patterns import pattern, values
from graft.formats.peft_targets import LAYERS, ROOT, TARGETS, targeted
from graft.method import Method
from graft.method import config as fields_of
from graft.methods import from_config
from graft.site import Site

TENSORS = {"A": "lora_A.weight", "B": "lora_B.weight", "b": "lora_B.bias", "magnitude": "lora_magnitude_vector"}
EMBEDDING = TENSORS | {"A": "lora_embedding_A", "B": "lora_embedding_B"}
SIZES = {"r": "r", "alpha": "lora_alpha"}  # ours: PEFT's
FIELDS = {"dropout": "lora_dropout", "rslora": "use_rslora", "bias": "lora_bias"}
STARTS: dict[Any, str] = {True: "kaiming", "gaussian": "gaussian", False: "kaiming", "orthogonal": "kaiming", "eva": "kaiming"}
STARTERS = ("megatron_core", "loftq_config", "corda_config", "lora_ga_config", "eva_config", "qalora_group_size")
OFF = (
    "layer_replication",
    "trainable_token_indices",
    "target_parameters",
    "megatron_config",
    "alora_invocation_tokens",
    "arrow_config",
    "use_bdlora",
    "use_qalora",
    "velora_config",
    "monteclora_config",
    "kasa_config",
)
PATTERNS = ("rank_pattern", "alpha_pattern")
MORE = ("bias", "ensure_weight_tying", "use_dora", "init_lora_weights")
KEYS = keys(
    used=(*ALL, *SIZES.values(), *FIELDS.values(), *TARGETS, *LAYERS, *PATTERNS, *MORE),
    neutral=(*ANY, "fan_in_fan_out", *STARTERS),
    off=OFF,
)


def config(parts: Sequence[Chosen], ground: Ground) -> dict[str, Any] | None:
    """The LORA config; None where a site is no whole linear map or embedding, or parts differ in more than rank and alpha."""
    own = [fields_of(method) for method, _ in parts]
    sites = [site for _, chosen in parts for site in chosen]
    shared = [{name: value for name, value in one.items() if name not in (*SIZES, "targets")} for one in own]
    refused = own[0].get("bias") and own[0]["init_A"] == "gaussian"  # by PEFT
    apart = len(set(sites)) == len(sites) and all(one == shared[0] for one in shared)
    if refused or not apart or not all(is_matrix(site) for site in sites):
        return None
    largest = own[max(range(len(parts)), key=lambda number: len(parts[number][1]))]
    made = {PEFT: whole(largest[name]) for name, PEFT in (SIZES | FIELDS).items() if name in largest}
    for key, name in zip(PATTERNS, SIZES, strict=True):
        wanted = {site.path: whole(one[name]) for one, (_, chosen) in zip(own, parts, strict=True) for site in chosen}
        made[key] = pattern(wanted, whole(largest[name]))
    return made | {
        "use_dora": own[0]["kind"] == "dora",
        "target_modules": cover([site.path for site in sites], [site.path for site in ground.modules]),
        "fan_in_fan_out": ground.transposed,
        "bias": "none",
        "init_lora_weights": "gaussian" if own[0]["init_A"] == "gaussian" else True,
    }


def whole(value: Any) -> Any:
    """A float without a fraction as the int that PEFT's users write."""
    return int(value) if isinstance(value, float) and value.is_integer() and value else value


def parts(config: dict[str, Any], ground: Ground, found: Sequence[str]) -> list[Chosen]:
    """The methods and their sites. Raises AdapterError where targets match nothing, or modules that cannot be adapted."""
    sites = targeted(config, ground, found)
    start, dora = config.get("init_lora_weights", True), config.get("use_dora", False)
    if not isinstance(dora, bool):
        raise AdapterError(f"its config says use_dora = {str(dora)[:80]}, which is neither true nor false")
    if not isinstance(start, bool | str) or start not in STARTS:
        raise AdapterError(
            f"its config says init_lora_weights = {str(start)[:80]}, which changes the base's own weights: in peft, save it with "
            "path_initial_model_for_weight_conversion, which makes a plain LoRA of it"
        )
    own = {name: config[PEFT] for name, PEFT in (SIZES | FIELDS).items() if PEFT in config}
    own |= {"kind": "dora" if dora else "lora", "init_A": STARTS[start]}
    if dora and own.pop("bias", False):
        raise AdapterError("its config says both use_dora and lora_bias, which peft refuses")
    from_config(own)  # the config's own numbers are checked even where patterns say others
    paths = [site.path for site in sites]
    ranks, alphas = (values(config, key, paths, own.get(name)) for key, name in zip(PATTERNS, SIZES, strict=True))
    return grouped(sites, [own | given(r=r, alpha=alpha) for r, alpha in zip(ranks, alphas, strict=True)], ground)


def given(**named: Any) -> dict[str, Any]:
    """Those that are not None: what is absent in a config keeps its default."""
    return {name: value for name, value in named.items() if value is not None}


def grouped(sites: Sequence[Site], configs: Sequence[dict[str, Any]], ground: Ground) -> list[Chosen]:
    """One part for each different config, at the sites that have it."""
    groups: dict[tuple[Any, Any], list[Site]] = {}
    by_size = {}
    for site, own in zip(sites, configs, strict=True):
        size = own.get("r"), own.get("alpha")
        by_size[size] = own
        groups.setdefault(size, []).append(site)
    return [(named(by_size[size], chosen, ground), chosen) for size, chosen in groups.items()]


def named(own: dict[str, Any], sites: Sequence[Site], ground: Ground) -> Method:
    """The method of a config at exactly these sites."""
    return naming(lambda targets: from_config(own | {"targets": list(targets)}), sites, ground.sites)


def leaves(method: Method, sites: Sequence[Site], ground: Ground) -> list[Leaf]:
    """One leaf a tensor."""
    made = []
    for site in sites:
        names = EMBEDDING if site.role == "embedding" else TENSORS
        made += [Leaf(f"{ROOT}{site.path}.{names[name]}", shape, site, name) for name, shape in method.shapes(site).items()]
    return made


LOW_RANK = Codec("LORA", ROOT, KEYS, config, parts, leaves)
