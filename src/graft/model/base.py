"""What a form may ask of the module below it, and the fingerprint that tells one base model from another.

Everything here hides the module's kind: a Linear, a transformers Conv1D (weight transposed), an embedding, a norm, or a 4-bit Linear.
"""

import hashlib
import json
from collections.abc import Collection, Iterator
from typing import Any

import torch
import transformers
from packaging.version import parse
from torch import Tensor
from transformers import DynamicCache

from graft.errors import TargetError
from graft.kernels import nf4
from graft.kernels.affine.norms import row_norms
from graft.method import Tensors
from graft.site import Site

CACHE = "cache" if parse(transformers.__version__) >= parse("5.24") else "past_key_values"  # renamed there
SAMPLES = 4096  # values of each weight that enter the fingerprint


def master_dtype(model: Any) -> torch.dtype:
    """The precision of trained tensors: float32, or float64 on a float64 base."""
    return torch.float64 if any(value.dtype == torch.float64 for value in model.parameters()) else torch.float32


def dense(value: Tensor) -> Tensor:
    """A parameter as a dense tensor in its own layout, dequantised where it is stored in 4 bits."""
    return nf4.dequantise(value) if nf4.is_packed(value) else value.detach()


class ModuleBase:
    """The `Base` of one site of a model."""

    def __init__(self, model: Any, site: Site, tokenizer: Any = None) -> None:
        self.model, self.site, self.tokenizer = model, site, tokenizer
        self.module = model.get_submodule(site.path)
        self.norms: tuple[Any, Tensor] | None = None
        self.prepared: Tensor | None = None  # row norms made ahead of a forward, of the same A and B
        self.preparing = False

    def whole(self) -> Tensor:
        """The module's weight as [out, in]."""
        weight = dense(self.module.weight)
        flipped = type(self.module).__name__ == "Conv1D" or self.site.role == "embedding"
        return weight.t() if flipped else weight

    @property
    def weight(self) -> Tensor:
        """Dense [out, in], the site's own rows."""
        return self.own(self.whole())

    def own(self, value: Tensor) -> Tensor:
        """The site's rows of a tensor [out, ...] of the module."""
        if self.site.rows is None:
            return value
        return value.index_select(0, torch.tensor(self.site.rows.indices(), device=value.device))

    @property
    def bias(self) -> Tensor | None:
        """[out], the site's own rows, or None."""
        bias = getattr(self.module, "bias", None)
        return None if bias is None else self.own(bias.detach())

    @property
    def gain(self) -> float:
        """What the module multiplies its product by (Gemma's embeddings do), 1 elsewhere."""
        return float(getattr(self.module, "embed_scale", 1.0))

    @property
    def row_norms_sq(self) -> Tensor:
        """[out], computed once for each place and dtype that the weight has: the base is frozen."""
        own = self.module.weight
        key = (own.device, own.dtype)
        if self.norms is None or self.norms[0] != key:
            weight = self.weight
            self.norms = key, weight.to(torch.promote_types(weight.dtype, torch.float32)).square().sum(1)
        return self.norms[1]

    def row_norms(self, A: Tensor, B: Tensor) -> Tensor:
        """[out], as graft.kernels.affine.norms makes them, with ‖W‖² cached.

        Those made ahead of a forward (graft.model.fused) are returned while they are held.
        """
        if self.prepared is not None and not self.preparing:
            return self.prepared
        norms = row_norms(self.weight, A, B, self.row_norms_sq)
        if self.preparing:
            self.prepared = norms if self.prepared is None else self.prepared.copy_(norms)  # in place: compiled graphs read it
        return norms

    def parameters(self) -> Tensors:
        """The module's own, copied."""
        return {name: dense(value).clone() for name, value in self.module.named_parameters(recurse=False)}

    def tokens(self, text: str) -> Tensor:
        """The ids [n] of a text. Raises TargetError without a tokenizer."""
        if self.tokenizer is None:
            raise TargetError("to start from a text the model's tokenizer is needed: graft.adapt(model, method, tokenizer=...)")
        return torch.tensor(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    @torch.no_grad()
    def embed(self, ids: Tensor) -> Tensor:
        """What the embedding module gives for ids [n]: [n, d]."""
        module = self.model.get_input_embeddings()
        out: Tensor = module(ids.to(module.weight.device))
        return out.to(master_dtype(self.model))

    @torch.no_grad()
    def keys_values(self, ids: Tensor) -> Tensor:
        """What the frozen model caches for ids [n]: [layers, 2, n, kv heads, head dim]."""
        return cached(self.model, ids[None].to(self.model.get_input_embeddings().weight.device)).to(master_dtype(self.model))


def cached(model: Any, ids: Tensor | None = None, embeds: Tensor | None = None) -> Tensor:
    """Keys and values [layers, 2, n, kv heads, head dim] that a causal model caches for ids [1, n] or embeddings [1, n, d]."""
    training = model.training
    model.eval()
    try:
        # without the head, which is not needed and may be hooked (logits at chosen positions only);
        # a cache made without the config keeps every position, also in layers with a sliding window
        out = model.base_model(input_ids=ids, inputs_embeds=embeds, use_cache=True, **{CACHE: DynamicCache()})
    finally:
        model.train(training)
    cache = out.get(CACHE)
    if cache is None:
        raise TargetError("this model keeps no keys and values: a prefix cannot start from text here")
    return torch.stack([torch.stack([layer.keys[0], layer.values[0]]).transpose(1, 2) for layer in cache.layers])


def fingerprint(model: Any, replaced: Collection[str] = ()) -> str:
    """Architecture, shapes and weights, 16 hex digits each, joined by colons; the weights by 4,096 evenly spaced values of each.

    Values are rounded to bfloat16 first, so that one checkpoint has one fingerprint in every precision it is loaded in. Adapters
    attached to the model do not enter, nor the weights of the modules that one replaces: a classifier's new head is random each time.
    """
    weights = hashlib.sha256()
    for name, data in sampled(model, replaced):
        weights.update(name.encode() + data)
    return f"{outline(model)}:{weights.hexdigest()[:16]}"


def outline(model: Any) -> str:
    """The fingerprint's first two parts, for which no weight is read."""
    shapes = [(name, list(value.quant_state.shape if nf4.is_packed(value) else value.shape)) for name, value in named(model)]
    kind = json.dumps([model.config.model_type, type(model).__name__])
    return ":".join([short(kind.encode()), short(json.dumps(shapes).encode())])


def named(model: Any) -> list[tuple[str, Any]]:
    """The base's parameters by name."""
    return [(name, value) for name, value in model.named_parameters() if ".graft." not in f".{name}"]


def sampled(model: Any, replaced: Collection[str] = ()) -> Iterator[tuple[str, bytes]]:
    """Evenly spaced values of each parameter, as bytes, by name; without the modules that an adapter replaces."""
    for name, value in named(model):
        if name.rpartition(".")[0] in replaced:
            continue
        flat = value.detach().reshape(-1)
        step = max(1, flat.numel() // SAMPLES)
        sample = flat[::step][:SAMPLES]
        sample = sample.to(torch.bfloat16).view(torch.int16) if sample.is_floating_point() else sample
        yield name, sample.cpu().numpy().tobytes()


def storage(model: Any) -> dict[str, str]:
    """How the weights are stored, where that changes the fingerprint's last part: {"weights": "nf4"} or {}."""
    return {"weights": "nf4"} if any(nf4.is_packed(value) for value in model.parameters()) else {}


def short(data: bytes) -> str:
    """16 hex digits of a SHA-256."""
    return hashlib.sha256(data).hexdigest()[:16]


def differences(ours: str, theirs: str) -> list[str]:
    """What two fingerprints differ in: of "architecture", "shapes" and "weights"."""
    names: tuple[str, ...] = ("architecture", "shapes", "weights")
    return [name for name, a, b in zip(names, ours.split(":"), theirs.split(":"), strict=True) if a != b]
