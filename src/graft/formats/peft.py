"""HF PEFT's own files, for the methods it has. Real `peft` loads what is written here, and what it wrote is read.

One table, by our method's kind and by PEFT's type; a config key that means what Graft has not is an error that names it.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from graft.adapter import Adapter, Part
from graft.errors import AdapterError
from graft.formats import peft_heads
from graft.formats.codec import Codec
from graft.formats.ground import Ground
from graft.formats.leaves import Branch, drain, fill, shown
from graft.formats.peft_heads import CLASSIFIERS
from graft.formats.peft_low_rank import LOW_RANK
from graft.formats.peft_scales import SCALES
from graft.formats.peft_tokens import PREFIXES, PROMPTS
from graft.method import Tensors

KINDS: dict[str, Codec] = {"lora": LOW_RANK, "dora": LOW_RANK, "ia3": SCALES, "prompt": PROMPTS, "prefix": PREFIXES}
TYPES: dict[str, Codec] = {codec.peft_type: codec for codec in KINDS.values()}
TASKS = ("CAUSAL_LM", "SEQ_CLS", "TOKEN_CLS", "FEATURE_EXTRACTION", None)


def write(adapter: Adapter, ground: Ground) -> tuple[dict[str, Any], Tensors] | None:
    """PEFT's config and tensors; None where PEFT has no form for this adapter."""
    main, *rest = adapter.parts
    codec = KINDS.get(main[0].kind)
    own = None if codec is None or len(rest) > 1 else codec.config(main[0], list(main[1]), ground)
    saved = peft_heads.fields(rest[0], main, ground) if rest else {}
    if codec is None or own is None or saved is None:
        return None
    branches: list[Branch] = [(main[0], codec.leaves(main[0], list(main[1]), ground))]
    branches += [(method, peft_heads.leaves(codec.root, method, list(sites))) for method, sites in rest]
    common = {"peft_type": codec.peft_type, "task_type": task(codec, rest, ground), "base_model_name_or_path": adapter.base or None}
    return common | {"inference_mode": True, "modules_to_save": None} | own | saved, drain(branches, adapter)


def task(codec: Codec, rest: Sequence[Part], ground: Ground) -> str | None:
    """PEFT's task: of a classifier SEQ_CLS only if its head is trained, since PEFT then wants the head in the file."""
    heads = {site.path.split(".")[0] for site in ground.modules if site.role == "head"}
    if heads and heads.isdisjoint(CLASSIFIERS):
        return "CAUSAL_LM"
    if rest:
        return "SEQ_CLS"
    return "FEATURE_EXTRACTION" if codec in (PROMPTS, PREFIXES) else None


def read(config: dict[str, Any], tensors: Tensors, ground: Ground) -> tuple[Part, ...]:
    """The parts of a PEFT adapter. Raises AdapterError where anything of it would be lost."""
    codec = TYPES[config["peft_type"]]
    codec.keys.check(config)
    if config.get("task_type") not in TASKS:
        raise AdapterError(f"its task_type is {str(config['task_type'])[:80]}: Graft runs causal language models and classifiers")
    method, sites = codec.method(config, ground, list(tensors))
    branches: list[Branch] = [(method, codec.leaves(method, sites, ground))]
    saved = peft_heads.head(config, ground)
    if saved is not None:
        branches.append((saved[0], peft_heads.leaves(codec.root, *saved)))
    wanted = {leaf.key for _, leaves in branches for leaf in leaves}
    copies = [key for key in tensors if key not in wanted and is_copy(key, codec.root, tensors[key], ground)]
    return fill(branches, {key: value for key, value in tensors.items() if key not in copies})


def is_copy(key: str, root: str, value: Tensor, ground: Ground) -> bool:
    """Whether a tensor is a copy of the base's own parameter, which PEFT saves beside an adapted or resized embedding.

    Raises AdapterError where it is such a parameter, and not the one that this base has.
    """
    own = ground.value(key.removeprefix(root).replace(".base_layer.", ".")) if key.startswith(root) else None
    if own is None:
        return False
    if own.shape != value.shape or not torch.equal(own.to(torch.bfloat16), value.to(torch.bfloat16)):
        raise AdapterError(
            f"it carries {shown([key])}, which is not the base's: the base was changed (resized or trained) with the adapter"
        )
    return True
