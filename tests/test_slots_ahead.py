"""The kernels of adapters' forms that Triton would compile: all at the start, none for an adapter that is loaded."""

import types

import pytest
import torch
import transformers

import graft
from graft.kernels import slots
from graft.model.residents import Residents
from graft.model.wiring import Wiring

if not slots.TRITON:
    pytest.skip("Triton is not installed", allow_module_level=True)
from graft.kernels.slots import ahead, launch

SHAPE = dict(hidden_size=256, intermediate_size=4352, num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=2, vocab_size=64)
METHODS = (
    graft.LoRA(r=8), graft.IA3(), graft.LoRA(r=64), graft.DoRA(r=16), graft.BiasOnly(add=True), graft.Bottleneck(size=24),
    graft.Bottleneck(size=64, act="gelu"), graft.LoRA(r=3), graft.Prompt(n=4, init_embeds="random"),
    *[graft.LoRA(r=64, targets=("query", "key", "value"))] * 9,
)  # fmt: skip
BATCHES = (1, 2, 7, 16, 17, 31, 32, 33, 48, 64, 65, 128, 200)


class Compiled:
    """Stands for a kernel: what it would be compiled for by Triton's rules, which are that numbers are 1, multiples of 16 or neither."""

    def __init__(self, kernel, found):
        self.kernel, self.found = kernel, found

    def __getitem__(self, grid):
        assert len(grid) in (1, 2, 3)
        return self.launch

    def launch(self, *args, num_warps, num_stages, **constants):
        constants.pop("launch_pdl", None)
        given = dict(zip(self.kernel.arg_names, args, strict=False)) | constants
        assert set(given) == set(self.kernel.arg_names)
        kinds = tuple(self.kind(p, given[p.name]) for p in self.kernel.params)
        self.found.add((self.kernel.__name__, num_warps, num_stages, *kinds))

    def kind(self, parameter, value):
        if parameter.is_constexpr:
            return value
        if isinstance(value, torch.Tensor):
            return str(value.dtype), value.data_ptr() % 16
        assert type(value) is int, parameter.name
        return "any" if parameter.do_not_specialize else "one" if value == 1 else "aligned" if value % 16 == 0 else "other"


@pytest.fixture
def compiled(monkeypatch):
    """The kernels so far; launches do nothing else."""
    found = set()
    kernels = types.SimpleNamespace(**{name: Compiled(getattr(launch.tiles, name), found) for name in ("shrink", "project", "expand")})
    monkeypatch.setattr(launch, "tiles", kernels)
    monkeypatch.setattr(slots, "takes", lambda y: True)
    monkeypatch.setattr(launch, "INTERPRETED", True)  # where no card is, `joins` wants it
    return found


@torch.no_grad()
def test_loading_an_adapter_compiles_nothing(compiled):
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**SHAPE)).to(torch.bfloat16).eval()
    made = []
    for number, method in enumerate(METHODS):
        host = graft.adapt(model, method, seed=number)
        made.append(host.adapter())
        host.detach()
    wiring = Wiring(model)
    residents = Residents(wiring, len(made) + 1)
    residents.watch()
    wiring.attach()
    model(input_ids=torch.zeros(1, 4, dtype=torch.long), use_cache=False)
    assert not compiled
    ahead.make(model.get_input_embeddings().weight)
    first = set(compiled)
    assert len(first) < 56
    for number, one in enumerate(made, 1):
        residents.check(one)
        residents.put(number, residents.prepare(one))
        for tokens in BATCHES:
            wiring.routing.slots = (torch.arange(tokens) % (number + 1))[None]
            model(input_ids=torch.zeros(1, tokens, dtype=torch.long), use_cache=False)
        assert compiled == first, (METHODS[number - 1], compiled - first)
    widest = wiring.slots["model.layers.0.self_attn.q_proj"].packs["0"].of
    assert {name for name, *_ in first} == {"shrink", "project", "expand"}
    assert 2048 < 3 * len(widest) < 3 * ahead.WIDEST, "not all kinds of tiles were asked for"
