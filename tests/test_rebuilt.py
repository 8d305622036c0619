"""What a compiled block keeps for its backward pass, in numbers a token: what the frozen block keeps, and what nothing gives back."""

import logging

import pytest
import torch
import transformers as T
from functorch.compile import make_boxed_func
from torch._dynamo.backends.common import aot_autograd
from torch._functorch.partitioners import min_cut_rematerialization_partition
from torch._inductor.decomposition import select_decomp_table
from torch.fx.experimental.proxy_tensor import make_fx

import graft
from graft.model.rebuilt import inductor, partition, rewrite
from test_laws import shake

pytestmark = pytest.mark.filterwarnings("ignore:.*should not be instantiated")  # torch's own, when it traces our autograd functions
WIDTH, MLP, RANK, TOKENS = 64, 80, 4, 24
METHODS = {"lora": graft.LoRA(r=RANK), "dora": graft.DoRA(r=RANK), "ia3": graft.IA3(), "bias": graft.BiasOnly(add=True)}


@pytest.fixture
def compiler():
    """A backend without code generation: graphs run as they are partitioned."""
    torch._dynamo.reset()
    logging.getLogger("torch.__trace").setLevel(logging.WARNING)  # pytest would collect every one of its lines

    def plain(graph, _):
        return make_boxed_func(graph.forward)

    yield lambda partition: aot_autograd(fw_compiler=plain, bw_compiler=plain, partition_fn=partition, decompositions=select_decomp_table())
    torch._dynamo.reset()


def llama(method, layout=None):
    """A bfloat16 Llama of two blocks, adapted; each block's input has a gradient."""
    torch.manual_seed(0)
    config = T.LlamaConfig(hidden_size=WIDTH, intermediate_size=MLP, num_hidden_layers=2, num_attention_heads=4, vocab_size=64)
    model = T.AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").to(torch.bfloat16).requires_grad_(False)
    if method:
        host = graft.adapt(model, METHODS[method])
        shake(host, 1)
        host.fuse(layout=layout) if layout else None
    return model.train()


def run(model, backend=None):
    """The last block compiled (or not) and run: numbers kept a token, its output, the gradients."""
    layer, held, frozen = model.model.layers[-1], {}, {value.data_ptr() for value in [*model.parameters(), *model.buffers()]}
    if backend is not None:
        layer.compile(fullgraph=True, backend=backend)
    hidden = torch.randn(1, TOKENS, WIDTH, generator=torch.Generator().manual_seed(2)).bfloat16().requires_grad_()
    positions = model.model.rotary_emb(hidden, torch.arange(TOKENS)[None])
    frozen |= {value.data_ptr() for value in positions}

    def keep(value):
        if TOKENS in value.shape and value.data_ptr() not in frozen:
            held[value.data_ptr()] = value
        return value

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value):
        out = layer(hidden, position_embeddings=positions, attention_mask=None)
    numbers = sum(value.numel() * value.element_size() for value in held.values()) / 2 / TOKENS
    out.float().square().sum().backward()
    grads = [value.grad for value in layer.parameters() if value.grad is not None]
    return numbers, out.detach().float(), [hidden.grad, *grads]


def near(ours, plain):
    """Equal to a rounding in bfloat16, by norm."""
    return all(float((x.float() - y.float()).norm()) <= 0.03 * float(y.float().norm()) for x, y in zip(ours, plain, strict=True))


@pytest.fixture
def frozen(compiler):
    """What the bare block keeps: 6d + 2f, and a few numbers of norms and attention."""
    numbers, _, _ = run(llama(None), compiler(partition))
    assert 6 * WIDTH + 2 * MLP <= numbers <= 6 * WIDTH + 2 * MLP + 16
    torch._dynamo.reset()
    return numbers


@pytest.mark.parametrize(
    ("layout", "method"), [(None, "lora"), ("pitched", "lora"), (None, "dora"), ("pitched", "dora"), (None, "ia3"), (None, "bias")]
)
def test_a_block_keeps_what_the_frozen_one_does_and_what_nothing_gives_back(compiler, frozen, method, layout):
    numbers, out, grads = run(llama(method, layout), compiler(partition))
    own = {"lora": 7 * RANK, "dora": WIDTH + 7 * RANK, "ia3": 0, "bias": 0}[method]
    assert numbers == frozen + own
    _, plain, expected = run(llama(method, layout))
    assert near([out, *grads], [plain, *expected])


def test_torch_left_alone_keeps_norms_and_activations(compiler, frozen):
    numbers, _, _ = run(llama("lora"), compiler(min_cut_rematerialization_partition))
    assert numbers == frozen + 2 * WIDTH + MLP + 7 * RANK


@pytest.mark.parametrize("mode", ["fake", "symbolic"])
def test_two_halves_are_written_side_by_side_to_the_same_values(mode):
    def work(x, y):
        return torch.cat((-x, y), -1) * 2, torch.cat((x, y), 0), torch.cat((x, y[..., :3]), -1), torch.cat((x, y, x), -1)

    x, y = torch.randn(3, 5, 4), torch.randn(3, 5, 4)
    traced = make_fx(lambda x, y: work(x.view(3, 5, 4), y.view(3, 5, 4)), tracing_mode=mode)(x, y)
    rewrite(traced.graph)
    traced.recompile()
    assert len(traced.graph.find_nodes(op="call_function", target=torch.ops.aten.cat.default)) == 3
    assert all(torch.equal(ours, plain) for ours, plain in zip(traced(x, y), work(x, y), strict=True))


def test_a_quotient_of_one_number_a_channel_is_made_once_and_no_other():
    def work(m, norm, x):
        c = m / norm
        return x * c + c, x.exp() * c, m / x.sum(0)

    given = torch.randn(4), torch.rand(4) + 1, torch.randn(5, 4)
    traced = make_fx(work)(*given)
    rewrite(traced.graph)
    traced.recompile()
    assert len(traced.graph.find_nodes(op="call_function", target=torch.ops.graft.once.default)) == 1
    (held,) = traced.graph.find_nodes(op="call_function", target=torch.ops.graft.once.default)
    assert len(held.users) == 3
    assert len(held.args[0].users) == 1
    assert all(torch.equal(ours, plain) for ours, plain in zip(traced(*given), work(*given), strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("method", ["lora", "dora", "ia3"])
def test_inductor_keeps_the_same(compiler, frozen, method):
    numbers, out, grads = run(llama(method), inductor)
    assert numbers == frozen + {"lora": 7 * RANK, "dora": WIDTH + 7 * RANK, "ia3": 0}[method]
    _, plain, expected = run(llama(method))
    assert near([out, *grads], [plain, *expected])
