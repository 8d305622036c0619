"""Virtual tokens at work: a prefix's keys and values inside attention, a prompt's embeddings before the text.

A prefix enters inside attention (see graft.model.attention). A prompt in training is n dummy positions whose embedding output is
overwritten (or that of all embeddings together, for one that goes straight into an encoder's layers); on a causal model without
gradients it is served as a prefix, its keys and values computed once. Positions: the text's are cumsum(mask) - 1 + n, whatever the
padding. Virtual tokens are positions like any other: they stand between the padding and the
text. A prefix that does not shift the text has no positions: the text's are those without it, and every window holds it.
"""

import inspect
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Self

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from graft.errors import AdapterError
from graft.forms import VirtualTokens
from graft.method import Method, Tensors
from graft.model.attention import MASKS, place, set_attention, spread
from graft.model.base import ModuleBase, cached
from graft.model.families import attention_modules
from graft.model.positions import columns_in_order, dummy, encoded, in_order, past, positions, spare
from graft.model.routing import Routing
from graft.model.slots import Station
from graft.site import Site


class Pending:
    """A prompt on its way through the embeddings: embeds [n, d], or None, and the columns' order [B, n + T], or None for their own.

    `text` is T: how many logits are the text's.
    """

    def __init__(self) -> None:
        self.embeds: Tensor | None = None
        self.order: Tensor | None = None
        self.text = 0

    def overwrite(self, out: Tensor) -> Tensor:
        """The embeddings [B, n + T, d] with the prompt's where it stands."""
        if self.embeds is None:
            return out
        n, embeds = len(self.embeds), self.embeds.to(out.dtype)
        if self.order is None:
            return torch.cat([embeds.expand(len(out), -1, -1), out[:, n:]], 1)
        padded = F.pad(embeds, (0, 0, 0, self.order.shape[1] - n))
        return torch.where((self.order < n)[..., None], padded[self.order], out)

    def __deepcopy__(self, memo: dict[int, Any]) -> "Pending":
        """A copied model starts without: this is a forward's, not the model's."""
        return Pending()


def taken(model: Any) -> int:
    """Positions of a model's context that the virtual tokens of the adapter on it take."""
    doorway = getattr(model, "graft", None)
    form = doorway.live() if isinstance(doorway, Doorway) else None
    if form is None:
        return 0
    return form.kv.shape[2] if form.kv is not None else 0 if form.embeds is None else len(form.embeds)


class Doorway(nn.Module):
    """The child `graft` of the root: holds virtual tokens' trained tensors, and lets virtual tokens in before each forward."""

    def __init__(self, model: Any, routing: Routing) -> None:
        super().__init__()
        self.routing = routing
        self.station: Station | None = None
        self.routed: dict[int, VirtualTokens] = {}  # kv [layers, 2, heads, n, head dim] by slot
        self.attention = attention_modules(model)
        self.causal = all(getattr(module, "is_causal", True) for module in self.attention)
        self.open = True
        self.pending = Pending()
        self.entrances = [model.get_input_embeddings()]  # the module whose output holds a prompt; in a list, it is no child of this
        self.memo: tuple[Any, Tensor] | None = None
        self.handles: list[Any] = []
        self.implementation = str(model.config._attn_implementation)
        reason = closed(model)
        if reason:
            raise AdapterError(reason)

    def hold(self, method: Method, site: Site, base: ModuleBase, tensors: Tensors, dtype: torch.dtype) -> Station:
        """Register the live adapter's virtual tokens as parameters in `dtype`. Raises AdapterError if there are some already."""
        if self.station is not None:
            raise AdapterError("an adapter can have one part with virtual tokens: a prefix or a prompt, not both")
        self.entrances = [base.module] if site.role == "entry" else self.entrances
        device = next(base.model.parameters()).device
        for name, value in tensors.items():
            self.register_parameter(name, nn.Parameter(value.to(device, dtype).clone()))
        self.station = Station(method, site, base, {name: name for name in tensors})
        return self.station

    def live(self) -> VirtualTokens | None:
        """The live adapter's virtual tokens."""
        form = None if self.station is None else self.station.method.form(self.station.tensors(self), self.station.base)
        return form if isinstance(form, VirtualTokens) else None

    def tokens(self, model: Any) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | int]:
        """What enters before the next forward: kv [layers, 2, rows, heads, n, head dim], seen [rows, n], embeds [n, d], and whether
        the text is shifted: 1 or 0, or one for each row [rows, 1].
        """
        if self.routing.slots is not None:
            kv, seen, shift = self.routing.virtual
            return kv, seen, None, shift
        form = self.live()
        if torch.is_grad_enabled():
            self.forget()  # training follows, and a fused optimizer leaves no version
        if form is None:
            return None, None, None, 1
        if form.embeds is not None and (torch.is_grad_enabled() or not self.causal):
            return None, None, form.embeds, int(form.shift)
        compiling = torch.compiler.is_compiling()
        if not compiling and form.kv is not None and form.kv.grad_fn is not None and reentrant(model):
            raise AdapterError("a prefix made by an MLP cannot be checkpointed reentrantly: enable it with use_reentrant=False")
        kv = form.kv if form.embeds is None else self.computed(model, form.embeds) if compiling else self.prompt(model, form.embeds)
        return None if kv is None else kv.transpose(2, 3)[:, :, None], None, None, int(form.shift)

    def forget(self) -> None:
        """Forget the keys and values computed so far: the tensors have changed, or may soon."""
        self.memo, self.routing.stale = None, True

    def train(self, mode: bool = True) -> Self:
        """Set the mode, and forget the keys and values computed so far."""
        self.forget()
        return super().train(mode)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Move or cast everything, the routed adapters' keys and values included, and forget those of the live one."""
        self.forget()
        self.routed = {number: replace(own, kv=None if own.kv is None else fn(own.kv)) for number, own in self.routed.items()}
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self

    def prompt(self, model: Any, embeds: Tensor) -> Tensor:
        """A prompt [n, d] as the prefix it is to a causal model, computed once for each state of the trained tensors."""
        key = tuple((value.data_ptr(), value._version) for value in model.parameters() if value.requires_grad)
        if self.memo is None or self.memo[0] != key:
            self.memo = key, self.computed(model, embeds)
        return self.memo[1]

    def computed(self, model: Any, embeds: Tensor) -> Tensor:
        """The keys and values [layers, 2, n, heads, head dim] of a prompt [n, d] under the current routing."""
        self.open = False
        place(self.attention)  # what an earlier forward left there is no part of this one
        try:
            return cached(model, embeds=embeds.detach()[None].to(model.get_input_embeddings().weight.dtype))
        finally:
            self.open = True

    def attach(self, model: Any) -> None:
        """Hook the root and its embeddings. The hooks hold no state, so that a deep copy of the model runs on its own."""
        model.graft = self
        self.entrances[0].graft_pending = self.pending
        self.handles = [
            model.register_forward_pre_hook(before_root, with_kwargs=True),
            model.register_forward_hook(after_root),
            self.entrances[0].register_forward_hook(after_embeddings),
        ]
        set_attention(model, f"graft_{self.implementation}")

    def detach(self, model: Any) -> None:
        """Undo `attach`."""
        for handle in self.handles:
            handle.remove()
        place(self.attention)
        set_attention(model, self.implementation)
        del model.graft, self.entrances[0].graft_pending

    def enter(self, model: Any, call: dict[str, Any]) -> dict[str, Any]:
        """Before a forward: leave keys and values on the attention modules, make room for embeddings, set positions."""
        kv, seen, embeds, shift = self.tokens(model)
        text: Tensor = call["input_ids"] if call.get("input_ids") is not None else call["inputs_embeds"]
        rows = text.shape[0]
        self.pending.embeds = None
        where, counted = None, False
        if kv is not None and self.causal:
            shift = shift if isinstance(shift, int) else spread(shift, rows)
            n = kv.shape[4] if seen is None else spread(seen, rows).sum(1, keepdim=True)
            counted = call.get("position_ids") is None and past(call) == 0
            call["position_ids"] = positions(call, text) + n * shift
            where = call["position_ids"] * shift  # at 0 every window holds the whole prefix
        place(self.attention, kv, seen, where, counted, rows)
        return call if embeds is None else self.roomier(model, call, text, embeds, shift)

    def roomier(self, model: Any, call: dict[str, Any], text: Tensor, embeds: Tensor, shift: Tensor | int) -> dict[str, Any]:
        """The call with n positions between the padding and the text, in everything that has a column a token."""
        rows, n = text.shape[0], embeds.shape[0]
        cached_already = past(call) > 0
        fills = {"attention_mask": 1, "token_type_ids": 0, "labels": -100, "input_ids": dummy(model)}
        fills = {"attention_mask": 1} if cached_already else fills
        where = positions(call, text) + n if self.causal else None if shift else encoded(self.entrances[0], call, text)
        order = None if cached_already else columns_in_order(call.get("attention_mask"), n, text.shape[1])
        for name, fill in fills.items():
            value = call.get(name)
            if value is not None and value.dim() == 2:
                call[name] = in_order(torch.cat([value.new_full((rows, n), fill), value], 1), order)
        if where is not None:
            own = torch.arange(n, device=where.device).expand(len(where), n)
            call["position_ids"] = where if cached_already else in_order(torch.cat([own, where], 1), order)
        if not cached_already:
            self.pending.embeds, self.pending.order, self.pending.text = embeds, order, text.shape[1]
            if call.get("inputs_embeds") is not None:
                call["inputs_embeds"] = self.pending.overwrite(in_order(F.pad(text, (0, 0, n, 0)), order))
            if self.causal:
                spare(model, call, n, text)
        return call

    def leave(self, out: Any) -> Any:
        """After a forward: logits of the text alone."""
        entered, self.pending.embeds = self.pending.embeds is not None, None
        logits = out.get("logits") if entered and self.causal and hasattr(out, "get") else None
        if logits is not None and logits.dim() == 3 and logits.shape[1] > self.pending.text:
            out["logits"] = logits[:, logits.shape[1] - self.pending.text :]
        return out


def before_root(model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    """The root's pre-hook; positional arguments are named by the signature."""
    if not model.graft.open:
        return None
    named = dict(zip(inspect.signature(model.forward).parameters, args, strict=False))
    return (), model.graft.enter(model, named | kwargs)


def after_root(model: Any, args: tuple[Any, ...], out: Any) -> Any:
    """The root's hook."""
    return model.graft.leave(out) if model.graft.open else out


def after_embeddings(module: Any, args: tuple[Any, ...], out: Tensor) -> Tensor:
    """The embeddings' hook."""
    changed: Tensor = module.graft_pending.overwrite(out)
    return changed


def reentrant(model: Any) -> bool:
    """Whether the model's layers are checkpointed by the reentrant kind, which runs a backward pass inside another."""
    calls = [
        getattr(module, "_gradient_checkpointing_func", None)
        for module in model.modules()
        if getattr(module, "gradient_checkpointing", False)
    ]
    return any(call is not None and getattr(call, "keywords", {}).get("use_reentrant", False) for call in calls)


def side_by_side(rows: list[VirtualTokens | None]) -> tuple[Tensor | None, Tensor | None, Tensor | int]:
    """Each row's kv [layers, 2, heads, n, head dim] or None as kv [layers, 2, rows, heads, n, head dim], seen and shift [rows, n or 1].

    Shorter prefixes are padded on the left.
    """
    found = {number: own.kv for number, own in enumerate(rows) if own is not None and own.kv is not None}
    if not found:
        return None, None, 1
    longest = max(found.values(), key=lambda kv: kv.shape[3])
    n = longest.shape[3]
    kv = torch.stack([torch.zeros_like(longest)] * len(rows), 2)
    seen = torch.zeros(len(rows), n, dtype=torch.bool, device=longest.device)
    for number, own in found.items():
        kv[:, :, number, :, n - own.shape[3] :] = own
        seen[number, n - own.shape[3] :] = True
    shift = torch.tensor([[row is None or row.shift] for row in rows], device=longest.device).long()
    return kv, seen, shift


def closed(model: Any) -> str:
    """The reason why virtual tokens cannot enter a model's attention; empty where they can."""
    implementation = str(model.config._attn_implementation)
    if implementation in MASKS and getattr(model, "_supports_attention_backend", False):
        return ""
    return (
        f"virtual tokens need a model whose attention goes through transformers' registry as 'sdpa' or 'eager'; this "
        f"{type(model).__name__} has {implementation!r}: load it with from_pretrained(..., attn_implementation='sdpa')"
    )
