"""Merging: the adapter folded into the base's own weights, in float32 (or wider) with one rounding to the base's dtype.

The base's parameters are exchanged for new ones and kept, so `unmerge` gives back the base bit for bit; it costs a second copy of the
merged weights. A tied head that is merged is untied, and the config says so. A merged 4-bit linear map becomes a dense one.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn as nn

from graft.errors import AdapterError
from graft.forms import merged
from graft.kernels import nf4
from graft.model.adapted import Adapted
from graft.model.base import dense, master_dtype
from graft.model.slots import Slot
from graft.site import Site

BIAS_FLAGS = {"attention_bias": ("query", "key", "value", "qkv", "attention_out"), "mlp_bias": ("gate", "up", "gate_up", "down")}


@dataclass
class Undo:
    """What a merge replaced: parameters by (module, name), whole modules by path, config values by name."""

    parameters: list[tuple[nn.Module, str, Any]] = field(default_factory=list)
    modules: list[tuple[str, nn.Module]] = field(default_factory=list)
    config: dict[str, Any] = field(default_factory=dict)


@torch.no_grad()
def merge(adapted: Adapted) -> Any:
    """Fold the live adapter into the model's weights and take the adapter off. Returns the model, a plain transformers one.

    Raises AdapterError, before anything is changed, where the adapter cannot be merged.
    """
    if adapted.mergeable:
        raise AdapterError(f"{adapted.mergeable}. Serve it unmerged instead")
    if adapted.undo is not None:
        raise AdapterError("this adapter is merged already: unmerge it first")
    owned = {path: slot for path, slot in adapted.wiring.slots.items() if slot.stations}
    planned = {path: weights(adapted, path, slot) for path, slot in owned.items()}
    followers = {path: adapted.wiring.tied(path) for path, slot in owned.items() if hasattr(slot, "twin")}
    adapted.detach()
    undo = adapted.undo = Undo()
    tied = is_tied(adapted.model)
    for path, parameters in planned.items():
        put(adapted.model, path, parameters, undo)
    for path, names in followers.items():
        for name in set(names) - set(owned):
            put(adapted.model, name, {"weight": adapted.model.get_submodule(path).weight}, undo)
    flags = {"tie_word_embeddings": False} if tied and not is_tied(adapted.model) else {}
    for name, value in (flags | bias_flags(adapted)).items():
        undo.config[name] = getattr(adapted.model.config, name)
        setattr(adapted.model.config, name, value)
    return adapted.model


def unmerge(adapted: Adapted) -> Adapted:
    """Give the model its base back, bit for bit, and put the adapter on again. Raises AdapterError if it was not merged."""
    undo = adapted.undo
    if not isinstance(undo, Undo):
        raise AdapterError("this adapter is not merged")
    adapted.undo = None
    for path, module in undo.modules:
        adapted.model.set_submodule(path, module)
    for module, name, value in reversed(undo.parameters):
        module._parameters[name] = value
    for name, value in undo.config.items():
        setattr(adapted.model.config, name, value)
    adapted.wiring.attach()
    return adapted


def weights(adapted: Adapted, path: str, slot: Slot) -> dict[str, nn.Parameter]:
    """A module's new parameters, in its own layout and dtype: the twin's, with the affine form folded in."""
    module: Any = adapted.model.get_submodule(path)
    master = master_dtype(adapted.model)
    twin = getattr(slot, "twin", None)
    own = module.named_parameters(recurse=False) if twin is None else twin.named_parameters()
    values = {name: value if twin is not None else dense(value) for name, value in own}
    made = {} if twin is None else {name: value.detach() for name, value in values.items()}
    for _, form in slot.live():
        flipped = type(module).__name__ == "Conv1D" or embeds(slot)
        weight = values.get("weight")
        matrix = None if weight is None or weight.dim() != 2 else (weight.t() if flipped else weight).to(master)
        bias = values.get("bias")
        gain = float(getattr(module, "embed_scale", 1.0))
        W, b = merged(form, matrix if matrix is None or gain == 1 else matrix * gain, None if bias is None else bias.to(master))
        if W is not None and not (form.c is None and form.A is None and form.i is None):
            made["weight"] = (W.t() if flipped else W) / gain
        if b is not None:
            made["bias"] = b
    dtype = module_dtype(adapted.model, module)
    return {name: nn.Parameter(value.to(dtype).contiguous(), requires_grad=False) for name, value in made.items()}


def embeds(slot: Slot) -> bool:
    """Whether the slot's module is an embedding, whose weight is [in, out]."""
    return any(station.site.role == "embedding" for station in slot.stations)


def module_dtype(model: Any, module: Any) -> torch.dtype:
    """The dtype that merged parameters are rounded to: the module's own, or that of the embeddings where it is stored in 4 bits."""
    own = next((value for value in module.parameters(recurse=False) if value.is_floating_point()), None)
    packed = any(nf4.is_packed(value) for value in module.parameters(recurse=False))
    dtype: torch.dtype = model.get_input_embeddings().weight.dtype if packed or own is None else own.dtype
    return dtype


def put(model: Any, path: str, parameters: dict[str, Any], undo: Undo) -> None:
    """Exchange a module's parameters, in every module tied to it if it is trained as a whole; a 4-bit module is exchanged itself."""
    module = model.get_submodule(path)
    if parameters and nf4.is_packed(getattr(module, "weight", None)):
        undo.modules.append((path, module))
        bias = parameters.get("bias", module.bias)
        module_new = nn.Linear(module.in_features, module.out_features, bias is not None, device="meta")
        module_new._parameters.update({"weight": nn.Parameter(dense(module.weight), requires_grad=False), "bias": bias})
        module_new.train(module.training)
        model.set_submodule(path, module_new)
        module = module_new
    for name, value in parameters.items():
        undo.parameters.append((module, name, module._parameters.get(name)))
        module._parameters[name] = value


def is_tied(model: Any) -> bool:
    """Whether the head's weight is the input embeddings' own."""
    head = model.get_output_embeddings()
    return head is not None and head.weight is model.get_input_embeddings().weight


def bias_flags(adapted: Adapted) -> dict[str, bool]:
    """Config flags that must be set so that a saved model keeps its merged biases."""
    added = {site.role for site in new_biases(adapted)}
    config = adapted.model.config
    return {flag: True for flag, roles in BIAS_FLAGS.items() if added & set(roles) and getattr(config, flag, True) is False}


def new_biases(adapted: Adapted) -> list[Site]:
    """Sites whose module has a bias now and had none when the adapter was made."""
    found = [site for _, site in adapted.sites if not site.bias and site.primary]
    return [site for site in found if getattr(adapted.model.get_submodule(site.path), "bias", None) is not None]
