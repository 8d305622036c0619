"""Merging: an adapter folded into the base's own weights, in float64 with one rounding to the base's dtype.

The base's parameters are exchanged for new ones and kept, so `unmerge` gives back the base bit for bit; it costs a second copy of the
merged weights (`merge_cost`, in bytes). A tied head that is merged is untied, and the config says so. A merged 4-bit linear map becomes a
dense one. One of several adapters can be merged; the others, which are changes of the bare base, wait until it is unmerged.
"""

from typing import Any
from weakref import WeakKeyDictionary, ref

import torch
import torch.nn as nn

from graft.adapter import Adapter
from graft.errors import AdapterError
from graft.kernels import nf4
from graft.method import Tensors
from graft.model import families
from graft.model.adapted import Adapted
from graft.model.base import dense, storage
from graft.model.fold import affine, fold, followers, stations, touched, whole, why_not
from graft.model.kept import Kept, remember
from graft.model.routes import LIVE

BIAS_FLAGS = {"attention_bias": ("query", "key", "value", "qkv", "attention_out"), "mlp_bias": ("gate", "up", "gate_up", "down")}
MERGES: WeakKeyDictionary[Any, list[ref[Kept]]] = WeakKeyDictionary()
"""The merges that a model carries, the latest last; what they kept belongs to the Adapted that can undo them."""


@torch.no_grad()
def merge(adapted: Adapted, name: str = LIVE) -> Any:
    """Fold an adapter into the model's weights and take all adapters off: the live one, or one that was loaded by `add` under `name`.

    Returns the model, a plain transformers one. Raises AdapterError, before anything is changed, where the adapter cannot be merged.
    """
    if adapted.undo is not None:
        raise AdapterError("an adapter is merged already: unmerge it first")
    model, found = adapted.model, stations(adapted.model, chosen(adapted, name))
    reason = why_not(found)
    if reason:
        raise AdapterError(f"{reason}. Serve it unmerged instead")
    planned = dict(fold(model, found, lambda module: target_dtype(model, module)))
    follows = {path: owner for path, owner in followers(model, found).items() if path not in planned}
    flags = flag_biases(model, planned)
    layout = None if adapted.fused is None else adapted.fused.layout
    adapted.detach()
    kept = remember(model, {(path, key) for path, made in planned.items() for key in made} | {(path, "weight") for path in follows})
    tied = is_tied(model)
    for path, made in planned.items():
        put(model, path, made, kept)
    for path, owner in follows.items():
        model.get_submodule(path)._parameters["weight"] = model.get_submodule(owner)._parameters["weight"]
    for flag, value in (flags | ({"tie_word_embeddings": False} if tied and not is_tied(model) else {})).items():
        kept.config[flag] = getattr(model.config, flag)
        setattr(model.config, flag, value)
    kept.bytes, kept.layout = size(planned), layout
    adapted.undo = kept
    MERGES.setdefault(model, []).append(ref(kept))
    return model


@torch.no_grad()
def unmerge(adapted: Adapted) -> Adapted:
    """Give the model its base back, bit for bit, and put the adapters on again.

    Raises AdapterError, and changes nothing, if there is nothing to unmerge or the base cannot be given back.
    """
    kept, model = adapted.undo, adapted.model
    if not isinstance(kept, Kept):
        raise AdapterError("no adapter is merged")
    if [one() for one in MERGES[model] if one() is not None][-1] is not kept:
        raise AdapterError("another adapter was merged into this model since: unmerge that one first")
    if any(name.rsplit(".", 1)[-1] == "graft" for name, _ in model.named_modules()):
        raise AdapterError("another adapter is attached to the merged model: detach() it first")
    kept.restore(model)
    MERGES[model] = [one for one in MERGES[model] if one() not in (None, kept)]
    adapted.undo = None
    for path, slot in adapted.wiring.slots.items():
        slot.to(device=next(model.get_submodule(path).parameters()).device)
    adapted.wiring.attach()
    if kept.layout is not None:
        adapted.fuse(layout=kept.layout)
    return adapted


@torch.no_grad()
def merge_cost(adapted: Adapted, name: str = LIVE) -> int:
    """The bytes that a merge takes until it is undone: those of the merged parameters, since the ones they replace are kept."""
    if isinstance(adapted.undo, Kept):
        return adapted.undo.bytes
    planned = {}
    for path, here in stations(adapted.model, chosen(adapted, name)).items():
        module = adapted.model.get_submodule(path)
        shapes = {key: families.logical_shape(value) for key, value in module.named_parameters(recurse=False)}
        form = affine(adapted.model, path, here)
        names = set(whole(here)) | (set() if form is None else touched(form, shapes))
        bias = {"bias": (here[0][0].base.whole().shape[0],)} if "bias" in names - set(shapes) else {}
        into = target_dtype(adapted.model, module)
        planned[path] = {key: torch.empty((shapes | bias)[key], dtype=into, device="meta") for key in names}
    flag_biases(adapted.model, planned)
    return size(planned)


def size(planned: dict[str, Tensors]) -> int:
    """The bytes of planned parameters."""
    return sum(value.numel() * value.element_size() for made in planned.values() for value in made.values())


def chosen(adapted: Adapted, name: str) -> Adapter:
    """The adapter of this name. Raises AdapterError where there is none."""
    known = {LIVE: None, **adapted.routes.loaded}
    if name not in known:
        raise AdapterError(f"no adapter is called {name!r}: there are {', '.join(known)}")
    return adapted.routes.loaded[name] if name != LIVE else adapted.adapter()


def target_dtype(model: Any, module: Any) -> torch.dtype:
    """The dtype that merged parameters are rounded to: the module's own, or that of the embeddings where it is stored in 4 bits."""
    own = next((value for value in module.parameters(recurse=False) if value.is_floating_point()), None)
    packed = any(nf4.is_packed(value) for value in module.parameters(recurse=False))
    dtype: torch.dtype = model.get_input_embeddings().weight.dtype if packed or own is None else own.dtype
    return dtype


def put(model: Any, path: str, made: Tensors, kept: Kept) -> None:
    """Exchange a module's parameters; a 4-bit module is exchanged itself."""
    module = model.get_submodule(path)
    if nf4.is_packed(getattr(module, "weight", None)):
        kept.modules.append((path, module))
        module = dense_twin(module)
        model.set_submodule(path, module)
    for name, value in made.items():
        before = module._parameters.get(name)
        if before is None:
            kept.added.append((module, name))
        module._parameters[name] = nn.Parameter(value, requires_grad=before is not None and before.requires_grad)


def dense_twin(module: Any) -> nn.Linear:
    """A 4-bit linear map's dense equal; the bias is the module's own."""
    made = nn.Linear(module.in_features, module.out_features, False, device="meta")
    made._parameters.update({"weight": nn.Parameter(dense(module.weight), requires_grad=False), "bias": module.bias})
    return made.train(module.training)


def is_tied(model: Any) -> bool:
    """Whether the head's weight is the input embeddings' own."""
    head = model.get_output_embeddings()
    return head is not None and head.weight is model.get_input_embeddings().weight


def flag_biases(model: Any, planned: dict[str, Tensors]) -> dict[str, bool]:
    """The config flags without which a saved model would lose its merged biases.

    A flag stands for several projections, so those that get no bias from the adapter get one of zeros.
    """
    bare = {site.path: site.role for site in families.sites(model) if site.primary and not site.bias}
    added = {bare[path] for path, made in planned.items() if "bias" in made and path in bare}
    flags = {flag for flag, roles in BIAS_FLAGS.items() if added & set(roles) and getattr(model.config, flag, True) is False}
    for path, role in bare.items():
        if any(role in BIAS_FLAGS[flag] for flag in flags):
            module = model.get_submodule(path)
            zeros = torch.zeros(module.out_features, dtype=target_dtype(model, module), device=module.weight.device)
            planned.setdefault(path, {}).setdefault("bias", zeros)
    return dict.fromkeys(flags, True)


def homeless(adapted: Adapted) -> list[str]:
    """Modules whose merged bias a saved checkpoint would lose: the architecture has neither a bias there nor a config flag for one."""
    kept, model = adapted.undo, adapted.model
    if not isinstance(kept, Kept):
        return []
    safe = {role for flag in set(kept.config) & set(BIAS_FLAGS) for role in BIAS_FLAGS[flag]}
    roles = {site.path: site.role for site in families.sites(model) if site.primary}
    added = {id(module) for module, name in kept.added if name == "bias"}
    return [path for path, module in model.named_modules() if id(module) in added and roles.get(path) not in safe]


def densified(model: Any) -> Any:
    """Make every 4-bit linear map of a model dense, for good, and its parameters bfloat16 where there was one. Returns the model.

    Buffers stay as they are: rotary frequencies must not be rounded.
    """
    if not storage(model) and getattr(model.config, "quantization_config", None) is None:
        return model
    for path, module in list(model.named_modules()):
        if nf4.is_packed(getattr(module, "weight", None)):
            model.set_submodule(path, dense_twin(module))
    for value in model.parameters():
        value.data = value.data.to(torch.bfloat16)
    if getattr(model.config, "quantization_config", None) is not None:
        del model.config.quantization_config
        model.is_quantized = model.is_loaded_in_4bit = False
        model.hf_quantizer = model.quantization_method = None
    model.config.dtype = torch.bfloat16
    return model
