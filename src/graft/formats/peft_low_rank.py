"""PEFT's LORA, with `use_rslora` and `use_dora`, as LoRA and DoRA.

Keys: `base_model.model.<path>.lora_A.weight` [r, in], `.lora_B.weight` [out, r], `.lora_magnitude_vector` [out]; at an embedding
`.lora_embedding_A` [r, vocabulary], `.lora_embedding_B` [d, r]. Their values and ours are the same, also where the base's weight
is stored [in, out].
"""

from collections.abc import Sequence
from typing import Any

from graft.errors import AdapterError
from graft.formats.codec import ALL, ANY, Codec
from graft.formats.ground import Ground, is_matrix
from graft.formats.keys import keys
from graft.formats.leaves import Leaf, shown
from graft.formats.names import cover, matched, names_of, naming
from graft.formats.peft_heads import excluded
from graft.method import Method
from graft.method import config as fields_of
from graft.methods import from_config
from graft.site import LINEAR, Site

ROOT = "base_model.model."
TENSORS = {"A": "lora_A.weight", "B": "lora_B.weight", "magnitude": "lora_magnitude_vector"}
EMBEDDING = {"A": "lora_embedding_A", "B": "lora_embedding_B"}
FIELDS = {"r": "r", "alpha": "lora_alpha", "dropout": "lora_dropout", "rslora": "use_rslora"}  # ours: PEFT's
STARTS: dict[Any, str] = {True: "kaiming", "gaussian": "gaussian", False: "kaiming", "orthogonal": "kaiming", "eva": "kaiming"}
KEYS = keys(
    used=(*ALL, *FIELDS.values(), "use_dora", "target_modules", "exclude_modules", "init_lora_weights"),
    neutral=(*ANY, "fan_in_fan_out", "megatron_core", "loftq_config", "corda_config", "lora_ga_config", "eva_config", "qalora_group_size"),
    off=(
        "bias",
        "lora_bias",
        "rank_pattern",
        "alpha_pattern",
        "layers_to_transform",
        "layers_pattern",
        "layer_replication",
        "trainable_token_indices",
        "target_parameters",
        "ensure_weight_tying",
        "megatron_config",
        "alora_invocation_tokens",
        "arrow_config",
        "use_bdlora",
        "use_qalora",
        "velora_config",
        "monteclora_config",
        "kasa_config",
    ),
)


def config(method: Method, sites: Sequence[Site], ground: Ground) -> dict[str, Any] | None:
    """The LORA config; None where a site is no whole linear map or embedding."""
    if not all(is_matrix(site) for site in sites):
        return None
    paths = [site.path for site in sites]
    own = fields_of(method)
    return {PEFT: whole(own[name]) for name, PEFT in FIELDS.items()} | {
        "use_dora": method.kind == "dora",
        "target_modules": cover(paths, [site.path for site in ground.modules]),
        "fan_in_fan_out": ground.transposed,
        "bias": "none",
        "init_lora_weights": "gaussian" if own["init_A"] == "gaussian" else True,
    }


def whole(value: Any) -> Any:
    """A float without a fraction as the int that PEFT's users write."""
    return int(value) if isinstance(value, float) and value.is_integer() and value else value


def method(config: dict[str, Any], ground: Ground, found: Sequence[str]) -> tuple[Method, list[Site]]:
    """The method and its sites. Raises AdapterError where targets match nothing, or modules that cannot be adapted."""
    sites = targeted(config, ground, found)
    start, dora = config.get("init_lora_weights", True), config.get("use_dora", False)
    if not isinstance(dora, bool):
        raise AdapterError(f"its config says use_dora = {str(dora)[:80]}, which is neither true nor false")
    if not isinstance(start, bool | str) or start not in STARTS:
        raise AdapterError(
            f"its config says init_lora_weights = {str(start)[:80]}, which changes the base's own weights: in peft, save it with "
            "path_initial_model_for_weight_conversion, which makes a plain LoRA of it"
        )
    own = {name: config[PEFT] for name, PEFT in FIELDS.items() if PEFT in config}
    own |= {"kind": "dora" if dora else "lora", "init_A": STARTS[start]}
    return naming(lambda targets: from_config(own | {"targets": list(targets)}), sites, ground.sites), sites


def targeted(config: dict[str, Any], ground: Ground, found: Sequence[str]) -> list[Site]:
    """The sites that `target_modules` name; "all-linear" takes what the file holds beside the layers' linear maps."""
    names, without = names_of(config, "target_modules"), names_of(config, "exclude_modules")
    if isinstance(names, str) and names.lower() == "all-linear":
        held = {key[len(ROOT) : -len(TENSORS["A"]) - 1] for key in found if key.endswith(f".{TENSORS['A']}")}
        named = {site.path for site in ground.modules if site.role in LINEAR or site.path in held}
    else:
        named = {site.path for site in ground.modules if matched(names, site.path)}
    sites = [site for site in ground.modules if site.path in named and is_matrix(site) and not matched(without, site.path)]
    sites = [site for site in sites if not excluded(config, site.path)]
    if not sites:
        raise AdapterError(f"its target_modules ({shown([names] if isinstance(names, str) else names)}) match no module of this model")
    return sites


def leaves(method: Method, sites: Sequence[Site], ground: Ground) -> list[Leaf]:
    """One leaf a tensor."""
    made = []
    for site in sites:
        names = EMBEDDING if site.role == "embedding" else TENSORS
        made += [Leaf(f"{ROOT}{site.path}.{names[name]}", shape, site, name) for name, shape in method.shapes(site).items()]
    return made


LOW_RANK = Codec("LORA", ROOT, KEYS, config, method, leaves)
