"""The laws: what must hold for every method on every family. One test a law, over all settings and tiny shaken models."""

import copy

import pytest
import torch
import transformers as T

import graft
from graft import adapter as adapters
from graft.method import stored
from graft.model import families
from graft.model.base import CACHE, fingerprint
from settings import ENCODER_SETTINGS, MERGEABLE, SETTINGS, VIRTUAL, WEIGHTS
from tiny import ENCODERS, MODELS, inputs, tiny

EXACT = ("gpt2", "bert", "roberta", "opt", "gpt_neox")
"""Families that compute in float64 throughout; the others' norms (or softmax) cast to float32 inside."""
CAUSAL = tuple(name for name in MODELS if name not in ENCODERS)
ONE_PRECISION = 2e-5
EVERY = SETTINGS | ENCODER_SETTINGS
CASES = [(name, setting) for name in MODELS for setting in (EVERY if name in ENCODERS else SETTINGS)]


def tolerance(name: str) -> float:
    return 1e-11 if name in EXACT else ONE_PRECISION


def shake(adapted, seed: int = 3) -> None:
    """Move every trained tensor off its start."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in adapted.parameters():
            value.add_(torch.empty_like(value).normal_(std=0.1, generator=generator))


def made(name: str, setting: str, dtype=torch.float64, seed: int = 3):
    adapted = graft.adapt(tiny(name, dtype), EVERY[setting])
    shake(adapted, seed)
    return adapted


def logits(model, batch, **more):
    with torch.no_grad():
        return model(**batch, **more).logits


def close(a: torch.Tensor, b: torch.Tensor, bound: float) -> None:
    assert a.shape == b.shape
    gap = (a - b).abs().max().item() / max(1.0, b.abs().max().item())
    assert gap <= bound, f"relative gap {gap:.2e} > {bound:.0e}"


def padded(batch, left: int = 3):
    """The same rows with padding on the left, the first row with some more than the second."""
    ids, mask = batch["input_ids"], batch["attention_mask"]
    pad = torch.zeros(len(ids), left, dtype=ids.dtype)
    return {"input_ids": torch.cat([pad, ids], 1), "attention_mask": torch.cat([pad, mask], 1)}


@pytest.mark.parametrize(("name", "setting"), CASES)
def test_shapes_are_what_init_makes_and_count_is_what_is_stored(name, setting):
    methods, model = EVERY[setting], tiny(name)
    sites = families.sites(model)
    adapted = graft.adapt(model, methods)
    assert sum(value.numel() for value in adapted.parameters()) == adapters.count(methods, sites)
    assert adapted.adapter().count() == adapters.count(methods, sites, as_stored=True)
    for method, found in adapted.adapter().parts:
        assert method == stored(method)
        for site, tensors in found.items():
            assert method.shapes(site) == {key: tuple(value.shape) for key, value in tensors.items()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("setting", WEIGHTS)
@pytest.mark.parametrize("name", MODELS)
def test_a_fresh_adapter_changes_nothing(name, setting, dtype):
    model, batch = tiny(name, dtype), inputs(name)
    before = logits(model, batch)
    graft.adapt(model, SETTINGS[setting])
    assert torch.equal(model(**batch).logits, before)


@pytest.mark.parametrize("setting", MERGEABLE)
@pytest.mark.parametrize("name", MODELS)
def test_merged_is_unmerged_and_unmerge_gives_back_the_base(name, setting):
    model, batch = tiny(name, torch.float64), inputs(name)
    base = {key: value.clone() for key, value in model.state_dict().items()}
    config = copy.deepcopy(model.config)
    adapted = graft.adapt(model, SETTINGS[setting])
    shake(adapted)
    unmerged = logits(model, batch)
    assert not torch.equal(unmerged, logits(tiny(name, torch.float64), batch))
    assert graft.merge(adapted) is model
    assert not any(".graft" in key for key in model.state_dict())
    close(logits(model, batch), unmerged, 1e-11 if name in EXACT else 1e-5)
    graft.unmerge(adapted)
    assert torch.equal(logits(model, batch), unmerged)
    adapted.detach()
    assert list(model.state_dict()) == list(base)
    assert all(torch.equal(value, base[key]) for key, value in model.state_dict().items())
    assert model.config.to_dict() == config.to_dict()


@pytest.mark.parametrize("setting", [name for name in SETTINGS if name not in MERGEABLE])
@pytest.mark.parametrize("name", ["llama", "bert"])
def test_what_cannot_be_merged_is_refused_and_nothing_is_touched(name, setting):
    adapted = made(name, setting)
    before = logits(adapted.model, inputs(name))
    with pytest.raises(graft.errors.AdapterError, match="cannot be merged"):
        graft.merge(adapted)
    assert torch.equal(logits(adapted.model, inputs(name)), before)


@pytest.mark.parametrize(("name", "setting"), CASES)
def test_every_trained_tensor_gets_a_gradient_and_moves_and_the_base_does_not(name, setting):
    model, batch = tiny(name), inputs(name)
    base = {key: value.clone() for key, value in model.state_dict().items()}
    mark = fingerprint(model)
    adapted = graft.adapt(model, EVERY[setting])
    shake(adapted)
    before = [value.detach().clone() for value in adapted.parameters()]
    optimizer = torch.optim.AdamW(adapted.parameters(), lr=1e-2)
    probe = torch.randn(model(**batch).logits.shape, generator=torch.Generator().manual_seed(5))
    (model(**batch).logits * probe).sum().backward()
    trainable = {name for name, value in model.named_parameters() if value.requires_grad}
    assert all("graft." in key for key in trainable)
    for value in adapted.parameters():
        assert value.grad is not None
        assert value.grad.abs().max() > 0 or value.grad.shape == (2, 32)  # BERT's second token type occurs in no row
    optimizer.step()
    assert all(not torch.equal(a, b) for a, b in zip(before, adapted.parameters(), strict=True))
    assert fingerprint(model) == mark
    adapted.detach()
    assert list(model.state_dict()) == list(base)
    assert all(torch.equal(value, base[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("name", CAUSAL)
def test_left_padding_changes_nothing(name, setting):
    # float32 where float64 makes the base itself give NaN on padded rows (Gemma-2's mask), the sums' order then shows
    adapted = made(name, setting, torch.float32)
    batch = inputs(name)
    long = padded(batch)
    where = (long["attention_mask"].cumsum(1) - 1).clamp_min(0)
    close(logits(adapted.model, long, position_ids=where)[:, 3:], logits(adapted.model, batch), ONE_PRECISION)


@pytest.mark.parametrize("setting", VIRTUAL)
@pytest.mark.parametrize("name", CAUSAL)
def test_virtual_tokens_place_padded_rows_by_themselves(name, setting):
    adapted = made(name, setting, torch.float32)
    batch = inputs(name)
    close(logits(adapted.model, padded(batch))[:, 3:], logits(adapted.model, batch), ONE_PRECISION)
    trained = adapted.model(**padded(batch)).logits.detach()
    close(trained[:, 3:], logits(adapted.model, batch), ONE_PRECISION)


@pytest.mark.parametrize(("name", "setting"), CASES)
def test_gradient_checkpointing_changes_nothing(name, setting):
    adapted = made(name, setting)
    model, batch = adapted.model.train(), inputs(name)
    probe = torch.randn(model(**batch).logits.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(5))

    def gradients():
        adapted.model.zero_grad()
        (model(**batch).logits * probe).sum().backward()
        return [value.grad.clone() for value in adapted.parameters()]

    plain = gradients()
    enable = getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)  # renamed in transformers 5.24
    enable({"use_reentrant": False})
    assert all(torch.equal(a, b) for a, b in zip(plain, gradients(), strict=True))


@pytest.mark.parametrize(("name", "setting"), CASES)
def test_a_deep_copy_runs_as_the_original(name, setting):
    adapted = made(name, setting)
    batch = inputs(name)
    ours = adapted.model(**batch).logits
    twin = copy.deepcopy(adapted.model)
    assert torch.equal(twin(**batch).logits, ours)
    with torch.no_grad():
        for value in adapted.parameters():
            value.zero_()
    assert torch.equal(twin(**batch).logits, ours)


def greedy(model, ids, mask, steps: int):
    """The oracle: no cache, no generate, one full forward a token."""
    for _ in range(steps):
        where = (mask.cumsum(1) - 1).clamp_min(0)
        following = logits(model, {"input_ids": ids, "attention_mask": mask}, position_ids=where, use_cache=False)[:, -1].argmax(
            -1, keepdim=True
        )
        ids, mask = torch.cat([ids, following], 1), torch.cat([mask, torch.ones_like(following)], 1)
    return ids


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("name", CAUSAL)
def test_cached_generation_is_the_forward_without_a_cache(name, setting):
    adapted = made(name, setting, torch.float32)
    model = adapted.model
    batch = padded(inputs(name, length=5), 2)
    batch["input_ids"][1, :4] = 0
    batch["attention_mask"][1, :4] = 0
    oracle = greedy(model, batch["input_ids"], batch["attention_mask"], 4)
    options = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    for how in ({}, {"cache_implementation": "static", "disable_compile": True}):
        assert torch.equal(model.generate(**batch, **options, **how), oracle), how


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_beams_with_a_cache_are_beams_without(name, setting):
    model = made(name, setting, torch.float32).model
    options = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False, "num_beams": 3, "eos_token_id": None, "pad_token_id": 0}
    batch = padded(inputs(name, length=4), 2)
    assert torch.equal(model.generate(**batch, **options), model.generate(**batch, **options, use_cache=False))


@pytest.mark.parametrize("name", MODELS)
def test_a_row_of_a_mixed_batch_is_the_row_alone(name):
    # a row alone runs as the live adapter, by the path that trains; in the batch it runs through the packs
    chosen = [setting for setting in SETTINGS if not (name in ENCODERS and setting.startswith("prompt"))]
    rows = inputs(name, rows=len(chosen) + 2, length=6)
    alone, loaded = [], {}
    for number, setting in enumerate(chosen):
        adapted = made(name, setting, seed=number)
        alone.append(logits(adapted.model, {key: value[number : number + 1] for key, value in rows.items()}))
        loaded[setting] = adapted.adapter()
    host = made(name, "lora", seed=50)
    bare = {key: value[-2:] for key, value in rows.items()}
    alone += [
        logits(tiny(name, torch.float64), {key: value[:1] for key, value in bare.items()}),
        logits(host.model, {key: value[1:] for key, value in bare.items()}),
    ]
    for setting, adapter in loaded.items():
        host.add(setting, adapter)
    host.route([*chosen, None, "live"])
    mixed = logits(host.model, rows)
    for number, expected in enumerate(alone):
        close(mixed[number : number + 1], expected, tolerance(name))
    host.route(None)
    assert torch.equal(logits(host.model, {key: value[1:] for key, value in bare.items()}), alone[-1])


def test_bare_rows_are_bit_equal_to_the_base_beside_any_adapter_of_weights():
    host = made("gpt2", "lora")
    for setting in WEIGHTS:
        host.add(setting, made("gpt2", setting).adapter())
    batch = inputs("gpt2", rows=3)
    host.route([None, "dora", None])
    assert torch.equal(logits(host.model, batch)[[0, 2]], logits(tiny("gpt2", torch.float64), batch)[[0, 2]])


def test_an_adapter_is_routed_as_it_is_now_not_as_it_was():
    host = made("llama", "lora")
    batch = inputs("llama")
    host.route(["live", None])
    logits(host.model, batch)
    shake(host, seed=9)
    host.route(["live", None])
    mixed = logits(host.model, batch)
    host.route(None)
    close(mixed[:1], logits(host.model, batch)[:1], ONE_PRECISION)


@pytest.mark.parametrize("setting", SETTINGS)
def test_routed_rows_follow_their_beams_and_a_slot_may_be_named_for_each_token(setting):
    host = made("gpt2", "lora", torch.float32)
    host.add("other", made("gpt2", setting, torch.float32, seed=7).adapter())
    batch = inputs("gpt2")
    options = {"max_new_tokens": 3, "min_new_tokens": 3, "do_sample": False, "num_beams": 2, "eos_token_id": None, "pad_token_id": 0}
    host.route(["other", "live"])
    both = host.model.generate(**batch, **options)
    for number, who in enumerate(["other", "live"]):
        host.route([who])
        one = {key: value[number : number + 1] for key, value in batch.items()}
        assert torch.equal(host.model.generate(**one, **options), both[number : number + 1])


def test_a_parallel_adapter_reads_what_enters_the_mlp():
    # y + B act(A x + a) + b by hand, on BERT, where x and y belong to different modules
    adapted = made("bert", "parallel")
    layer = adapted.model.bert.encoder.layer[0]
    seen = {}
    handles = [
        layer.intermediate.dense.register_forward_hook(lambda m, args, out: seen.update(x=args[0])),
        layer.output.dense.register_forward_hook(lambda m, args, out: seen.update(h=args[0], y=out)),
    ]
    logits(adapted.model, inputs("bert"))
    for handle in handles:
        handle.remove()
    slot = layer.output.dense.graft
    A, a, B, b = (slot.get_parameter(f"mlp_{key}") for key in ("A", "a", "B", "b"))
    dense = torch.nn.functional.linear(seen["h"], layer.output.dense.weight, layer.output.dense.bias)
    branch = torch.nn.functional.silu(seen["x"] @ A.T + a) @ B.T + b
    close(seen["y"], dense + 4.0 * branch, 1e-12)


def seen_at(model, *modules):
    """The input and output of modules in a forward pass."""
    seen = {}
    handles = [model.get_submodule(m).register_forward_hook(lambda m, args, out, m_=m: seen.update({m_: (args[0], out)})) for m in modules]
    logits(model, inputs("bert"))
    for handle in handles:
        handle.remove()
    return [seen[m] for m in modules]


def test_an_adapter_at_a_block_that_ends_with_a_norm_adds_to_what_the_norm_reads():
    # LN(h + B act(A LN(h) + a) + b) by hand
    adapted = made("bert", "block")
    norm = adapted.model.bert.encoder.layer[0].output.LayerNorm
    A, a, B, b = (norm.graft.get_parameter(f"block_{key}") for key in ("A", "a", "B", "b"))
    ((h, y),) = seen_at(adapted.model, "bert.encoder.layer.0.output.LayerNorm")
    plain = torch.nn.functional.layer_norm(h, (32,), norm.weight, norm.bias, norm.eps)
    moved = h + torch.nn.functional.gelu(plain @ A.T + a) @ B.T + b
    close(y, torch.nn.functional.layer_norm(moved, (32,), norm.weight, norm.bias, norm.eps), 1e-12)


@pytest.mark.parametrize(("name", "mlp", "norm"), [("gpt2", "transformer.h.0.mlp", "transformer.h.0.ln_2"), ("gemma2", "", "")])
def test_a_parallel_adapter_on_the_residual_reads_what_enters_the_norm(name, mlp, norm):
    adapted = made(name, "residual")
    mlp, norm = mlp or "model.layers.0.mlp", norm or "model.layers.0.pre_feedforward_layernorm"
    (r, _), (x, y) = seen_at(adapted.model, norm, mlp)
    slot = adapted.model.get_submodule(mlp).graft
    A, a, B, b = (slot.get_parameter(f"residual_{key}") for key in ("A", "a", "B", "b"))
    adapted.detach()
    own = adapted.model.get_submodule(mlp)(x)
    close(y, own + 4.0 * (torch.nn.functional.leaky_relu(r @ A.T + a) @ B.T + b), tolerance(name))


def test_nothing_else_acts_at_a_norm_that_runs_again():
    methods = [graft.Bottleneck(size=3, targets=("block",)), graft.BiasOnly()]
    with pytest.raises(graft.errors.AdapterError, match="nothing else can act there"):
        logits(graft.adapt(tiny("bert"), methods).model, inputs("bert"))
    both = [graft.Bottleneck(size=3, targets=("block",)), graft.Selective("norm")]
    assert torch.equal(logits(graft.adapt(tiny("bert"), both).model, inputs("bert")), logits(tiny("bert"), inputs("bert")))


@pytest.mark.parametrize("name", ENCODERS)
def test_a_prompt_that_enters_the_layers_passes_no_embedding_and_moves_no_word(name):
    # the layers by hand, on the prompt and what the embeddings alone give the text; ids of padding inside the text move RoBERTa's positions
    adapted = made(name, "prompt_layers")
    ((tensors,),) = (list(sites.values()) for _, sites in adapted.adapter().parts)
    batch = inputs(name)
    batch["input_ids"][1, 2:4] = adapted.model.config.pad_token_id
    ours = logits(adapted.model, batch)
    words = adapted.model.get_input_embeddings().weight[batch["input_ids"]]
    embedded = logits(adapted.model, {"inputs_embeds": words, "attention_mask": batch["attention_mask"]})
    placed = logits(adapted.model, batch, position_ids=torch.arange(9, 16)[None])
    model = adapted.detach()
    inner = model.base_model

    def oracle(**given):
        with torch.no_grad():
            states = torch.cat([tensors["embeds"].expand(2, -1, -1), inner.embeddings(**given)], 1)
            out = inner.encoder(states)[0]
            return model.classifier(out) if name == "roberta" else model.classifier(inner.pooler(out))

    close(ours, oracle(input_ids=batch["input_ids"]), 1e-12)
    close(embedded, oracle(inputs_embeds=words), 1e-12)
    close(placed, oracle(input_ids=batch["input_ids"], position_ids=torch.arange(9, 16)[None]), 1e-12)


def test_a_prompt_for_layers_has_no_place_in_a_decoder():
    with pytest.raises(graft.errors.TargetError, match="no place in this model"):
        graft.adapt(tiny("llama"), graft.Prompt(into="layers"))


def test_a_prefix_that_does_not_shift_the_text_is_seen_from_every_position_of_a_window():
    # GPT-2's positions are embeddings: the oracle runs with keys and values in a cache and the text's own positions from 0
    adapted = made("gpt2", "prefix_unshifted")
    kv = adapted.adapter().parts[0][1]
    (tensors,) = kv.values()
    batch = inputs("gpt2")
    ours = logits(adapted.model, batch)
    cache = T.DynamicCache()
    for layer, (k, v) in enumerate(tensors["kv"].transpose(2, 3)):
        cache.update(k.expand(2, -1, -1, -1), v.expand(2, -1, -1, -1), layer)
    mask = torch.ones(2, 3 + 7, dtype=torch.long)
    oracle = logits(
        tiny("gpt2", torch.float64),
        {"input_ids": batch["input_ids"], "attention_mask": mask},
        position_ids=torch.arange(7)[None],
        **{CACHE: cache},
    )
    close(ours, oracle, 1e-12)


def test_dora_is_the_dense_formula():
    adapted = made("gpt2", "dora")
    module = adapted.model.transformer.h[0].mlp.c_fc
    x = torch.randn(3, 32, dtype=torch.float64)
    A, B, m = (module.graft.get_parameter(key) for key in ("A", "B", "magnitude"))
    W = module.weight.T + (5.0 / 3) * B @ A
    close(module(x), x @ (m[:, None] * W / W.norm(dim=1, keepdim=True)).T + module.bias, 1e-12)


def test_dora_norm_is_detached():
    adapted = made("gpt2", "dora")
    module = adapted.model.transformer.h[0].mlp.c_fc
    A, B, m = (module.graft.get_parameter(key) for key in ("A", "B", "magnitude"))
    x = torch.randn(3, 32, dtype=torch.float64)
    module(x).sum().backward()
    W = module.weight.T + (5.0 / 3) * B.detach() @ A.detach()
    c = m.detach() / W.norm(dim=1)
    expected = (5.0 / 3) * (c[:, None] * torch.ones(3, len(m), dtype=torch.float64).T) @ x @ A.detach().T
    close(B.grad, expected, 1e-12)


@pytest.mark.parametrize("name", MODELS)
def test_full_fine_tuning_trains_every_parameter_once_and_a_tie_stays_a_tie(name):
    model = tiny(name)
    base = sum(value.numel() for value in model.parameters())
    adapted = graft.adapt(model, SETTINGS["full"])
    assert sum(value.numel() for value in adapted.parameters()) == base
    shake(adapted)
    expected = logits(model, inputs(name))
    graft.merge(adapted)
    head = model.get_output_embeddings()
    if model.config.tie_word_embeddings and head is not None:
        assert head.weight is model.get_input_embeddings().weight
    close(logits(model, inputs(name)), expected, ONE_PRECISION)
    graft.unmerge(adapted)
    assert torch.equal(logits(model, inputs(name)), expected)


def test_a_trained_head_that_was_tied_is_untied_by_a_merge_and_the_config_says_so():
    adapted = made("llama_bias", "head")
    expected = logits(adapted.model, inputs("llama_bias"))
    graft.merge(adapted)
    assert adapted.model.config.tie_word_embeddings is False
    assert adapted.model.lm_head.weight is not adapted.model.model.embed_tokens.weight
    close(logits(adapted.model, inputs("llama_bias")), expected, ONE_PRECISION)
    graft.unmerge(adapted)
    assert adapted.model.config.tie_word_embeddings is True


@pytest.mark.parametrize("setting", SETTINGS)
def test_an_evaluation_sees_what_a_fused_optimizer_just_did(setting):
    adapted = made("gpt2", setting, torch.float32)
    model, batch = adapted.model, inputs("gpt2")
    before = logits(model, batch)
    model(**batch).logits.square().sum().backward()
    torch.optim.AdamW(adapted.parameters(), lr=0.1, fused=True).step()
    after = logits(model, batch)
    assert not torch.equal(after, before)
    with torch.enable_grad():
        close(model(**batch).logits.detach(), after, ONE_PRECISION)
    for value in adapted.parameters():
        value.data.mul_(1.5)  # leaves no version either; a call of eval() is enough
    model.eval()
    close(model(**batch).logits.detach(), logits(model, batch), ONE_PRECISION)
    adapted.route(["live", "live"])
    close(logits(model, batch), model(**batch).logits.detach(), ONE_PRECISION)
    adapted.route(None)
    model(**batch).logits.square().sum().backward()
    torch.optim.AdamW(adapted.parameters(), lr=0.1, fused=True).step()
    adapted.route(["live", "live"])
    mixed = logits(model, batch)
    adapted.route(None)
    close(mixed, logits(model, batch), ONE_PRECISION)


def zeroed(name: str, role: str):
    """The model with what a role's projection puts out scaled to zero."""
    adapted = graft.adapt(tiny(name), graft.IA3(targets=(role,)))
    with torch.no_grad():
        for value in adapted.parameters():
            value.zero_()
    return adapted.model


@pytest.mark.parametrize("name", MODELS)
def test_query_key_and_value_are_what_their_roles_say(name):
    # without values attention gives nothing; without queries or without keys it weighs all positions alike, so both are one model
    batch = inputs(name)
    seen = {}
    model = zeroed(name, "value")
    for path, module in model.named_modules():
        if path.endswith(("o_proj", "attn.c_proj", "attention.dense", "out_proj", "attention.output.dense")) and "classifier" not in path:
            module.register_forward_pre_hook(lambda module, args: seen.update({id(module): args[0]}))
    logits(model, batch)
    assert len(seen) == 2
    assert all(value.abs().max() == 0 for value in seen.values())
    without = [logits(zeroed(name, role), batch) for role in ("query", "key")]
    close(without[0], without[1], ONE_PRECISION)
    assert not torch.equal(without[0], logits(tiny(name), batch))


def test_a_prefix_made_by_an_mlp_refuses_reentrant_checkpointing_in_a_sentence():
    adapted = made("llama", "prefix_mlp", torch.float32)
    model = adapted.model.train()
    enable = getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)
    enable({"use_reentrant": True})
    with pytest.raises(graft.errors.AdapterError, match="use_reentrant=False"):
        model(**inputs("llama"))


SMALL = {"hidden_size": 16, "vocab_size": 32}
FOREIGN = {
    "encoder-decoder": T.T5Config(d_model=16, d_ff=16, d_kv=8, num_layers=1, num_heads=2, vocab_size=32),
    "mixture of experts": T.MixtralConfig(
        **SMALL, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2, num_local_experts=2
    ),
    "graft.model.families.FAMILIES": T.BloomConfig(**SMALL, n_layer=1, n_head=2),
}


@pytest.mark.parametrize("said", FOREIGN)
def test_an_architecture_that_is_not_supported_is_refused_in_a_sentence(said):
    config = FOREIGN[said]
    with torch.device("meta"):
        model = T.AutoModelForSeq2SeqLM.from_config(config) if said == "encoder-decoder" else T.AutoModelForCausalLM.from_config(config)
    with pytest.raises(graft.errors.ModelError, match=said):
        graft.adapt(model, graft.LoRA())


@pytest.mark.parametrize("method", [graft.LoRA(targets=("wpe",)), graft.LoRA(targets=("ln_1",)), graft.DoRA(targets=("wpe",))])
def test_a_low_rank_update_of_what_is_no_such_map_is_refused(method):
    with pytest.raises(graft.errors.TargetError, match="no place in this model"):
        graft.adapt(tiny("gpt2"), method)
