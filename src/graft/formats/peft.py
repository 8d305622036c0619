"""HF PEFT's own files, for the methods it has. Real `peft` loads what is written here, and what it wrote is read.

One table, by our method's kind and by PEFT's type; a config key that means what Graft has not is an error that names it. An adapter
is a main part (or several, of different ranks), the base's own biases, and modules trained as a whole.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from graft.adapter import Adapter, Part
from graft.errors import AdapterError
from graft.formats import peft_bias, peft_saved
from graft.formats.codec import Chosen, Codec
from graft.formats.ground import Ground
from graft.formats.leaves import Branch, drain, fill, shown
from graft.formats.peft_adalora import ADALORA
from graft.formats.peft_low_rank import LOW_RANK
from graft.formats.peft_norms import NORMS
from graft.formats.peft_saved import CLASSIFIERS
from graft.formats.peft_scales import SCALES
from graft.formats.peft_tokens import ENCODED, PREFIXES, PROMPTS
from graft.method import Tensors
from graft.site import Site

KINDS: dict[str, Codec] = {"lora": LOW_RANK, "dora": LOW_RANK, "ia3": SCALES, "prompt": PROMPTS, "prefix": PREFIXES}
TYPES: dict[str, Codec] = {codec.peft_type: codec for codec in (*KINDS.values(), NORMS, ADALORA, ENCODED)}
TOKENS = (PROMPTS, PREFIXES, ENCODED)
TASKS = ("CAUSAL_LM", "SEQ_CLS", "TOKEN_CLS", "FEATURE_EXTRACTION", None)


def write(adapter: Adapter, ground: Ground) -> tuple[dict[str, Any], Tensors] | None:
    """PEFT's config and tensors; None where PEFT has no form for this adapter."""
    codec, main, biases, saved = sorted_parts(adapter)
    if codec is None or len(biases) > 1 or len(saved) > 1 or (biases and codec is not LOW_RANK):
        return None
    own = codec.config(chosen(main), ground)
    adapted, whole, shifted = sites_of(main), sites_of(saved), sites_of(biases)
    rest = peft_saved.fields(whole, adapted, ground, tying=codec is LOW_RANK) if saved else {}
    bias = peft_bias.field(shifted, adapted, whole, ground) if biases else "none"
    if own is None or rest is None or bias is None or (codec in TOKENS and saved and not all(site.role == "head" for site in whole)):
        return None
    common = {"peft_type": codec.peft_type, "task_type": task(codec, whole, ground), "base_model_name_or_path": adapter.base or None}
    config = common | {"inference_mode": True, "modules_to_save": None} | own | rest | ({"bias": bias} if biases else {})
    made = branches(codec, chosen(main), chosen(biases), chosen(saved), config, ground)
    return config, drain(made, replace(adapter, parts=(*main, *biases, *saved)))


def sorted_parts(adapter: Adapter) -> tuple[Codec | None, list[Part], list[Part], list[Part]]:
    """The codec, and an adapter's parts as PEFT sees them: main ones, biases, modules that are saved."""
    biases = [part for part in adapter.parts if part[0].kind == "bias"]
    saved = [part for part in adapter.parts if part[0].kind == "selective"]
    main = [part for part in adapter.parts if part[0].kind not in ("bias", "selective")]
    if not main and not biases:  # norms alone are a method of their own
        saved.sort(key=lambda part: any(site.role != "norm" for site in part[1]))
        return NORMS, saved[:1], [], saved[1:]
    codecs = {KINDS.get(method.kind) for method, _ in main}
    return codecs.pop() if len(codecs) == 1 else None, main, biases, saved


def chosen(parts: Sequence[Part]) -> list[Chosen]:
    """Parts without their tensors."""
    return [(method, list(sites)) for method, sites in parts]


def sites_of(parts: Sequence[Part] | Sequence[Chosen]) -> list[Site]:
    """All sites of some parts."""
    return [site for _, sites in parts for site in sites]


def branches(
    codec: Codec, main: Sequence[Chosen], biases: Sequence[Chosen], saved: Sequence[Chosen], config: dict[str, Any], ground: Ground
) -> list[Branch]:
    """The leaves of all parts, in their order."""
    following = bool(config.get("ensure_weight_tying"))
    return [
        *((method, codec.leaves(method, sites, ground)) for method, sites in main),
        *((method, peft_bias.leaves(method, sites, sites_of(main), ground)) for method, sites in biases),
        *((method, peft_saved.leaves(codec.root, method, sites, ground, following=following)) for method, sites in saved),
    ]


def task(codec: Codec, saved: Sequence[Site], ground: Ground) -> str | None:
    """PEFT's task: of a classifier SEQ_CLS only if its head is trained, since PEFT then wants the head in the file."""
    heads = [site for site in ground.modules if site.role == "head"]
    if heads and {site.path.split(".")[0] for site in heads}.isdisjoint(CLASSIFIERS):
        return "CAUSAL_LM"
    if heads and set(heads) <= set(saved):
        return "SEQ_CLS"
    return "FEATURE_EXTRACTION" if codec in TOKENS else None


def read(config: dict[str, Any], tensors: Tensors, ground: Ground) -> tuple[Part, ...]:
    """The parts of a PEFT adapter. Raises AdapterError where anything of it would be lost."""
    codec = TYPES[config["peft_type"]]
    codec.keys.check(config)
    if config.get("task_type") not in TASKS:
        raise AdapterError(f"its task_type is {str(config['task_type'])[:80]}: Graft runs causal language models and classifiers")
    tensors = codec.prepare(config, tensors)
    main = codec.parts(config, ground, list(tensors))
    saved = peft_saved.part(config, ground)
    biases = peft_bias.part(config, sites_of(main), saved[1] if saved else [], ground) if "bias" in codec.keys.used else None
    made = branches(codec, main, [biases] if biases else [], [saved] if saved else [], config, ground)
    wanted = {leaf.key for _, leaves in made for leaf in leaves}
    copies = [key for key in tensors if key not in wanted and is_copy(key, codec.root, tensors, ground)]
    return fill(made, {key: value for key, value in tensors.items() if key not in copies})


def is_copy(key: str, root: str, tensors: Tensors, ground: Ground) -> bool:
    """Whether a tensor is a copy of the base's own parameter, which PEFT saves beside an adapted or resized embedding, or of another
    tensor of the file, as biases of saved modules are.

    Raises AdapterError where it is such a parameter, and not the one that this base has.
    """
    for infix in (".modules_to_save.default.", ".modules_to_save."):
        twin = tensors.get(key.replace(infix, ".")) if infix in key else None
        if twin is not None:
            return bool(torch.equal(twin, tensors[key]))
    plain = key.removeprefix(root).replace(".base_layer.", ".").replace(".original_module.", ".")
    own, value = ground.value(plain) if key.startswith(root) else None, tensors[key]
    if own is None:
        return False
    if own.shape != value.shape or not torch.equal(own.to(torch.bfloat16), value.to(torch.bfloat16)):
        raise AdapterError(
            f"it carries {shown([key])}, which is not the base's: the base was changed (resized or trained) with the adapter"
        )
    return True
