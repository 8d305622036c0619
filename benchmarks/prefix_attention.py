"""What a prefix costs in one layer's attention, forward and backward, beside torch's causal attention without one; and how exact it is.

    python benchmarks/prefix_attention.py [--sweep]

Each line: rows, heads, heads of keys, tokens, head dimension, prefix; milliseconds without a prefix, with one joined by log-sum-exps, and
with keys beside each other and a mask; relative errors of the joint output and gradients, and of the masked, against float64 on the same
rounded tensors (of some heads). `--sweep` times the two Triton kernels over tile sizes. Medians by device events, on one CUDA card.
"""

import argparse
import itertools
import statistics

import torch
import torch.nn.functional as F
import triton

from graft.kernels.attention import joint, reference, stock, tiles

CASES = [
    (2, 32, 32, 2048, 128, 20),
    (1, 32, 32, 512, 128, 20),
    (4, 32, 32, 2048, 128, 20),
    (2, 32, 8, 4096, 64, 20),
    (2, 32, 8, 2048, 128, 100),
    (2, 16, 16, 1111, 256, 20),
]
SCALE = 0.1


def tensors(rows, heads, groups, length, dim, n):
    """q, k, v as projections lay them out, a prefix, and the output's gradient."""
    text = [torch.randn(rows, length, count, dim, device="cuda", dtype=torch.bfloat16).transpose(1, 2) for count in (heads, groups, groups)]
    prefix = torch.randn(2, 1, n, groups, dim, device="cuda").transpose(2, 3)
    return [value.requires_grad_() for value in (*text, prefix)], torch.randn_like(text[0].detach())


def bare(query, key, value, prefix, scale):
    return F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=scale, enable_gqa=query.shape[1] != key.shape[1])


def milliseconds(run, times=20):
    for _ in range(5):
        run()
    found = []
    for _ in range(times):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        run()
        end.record()
        torch.cuda.synchronize()
        found.append(start.elapsed_time(end))
    return statistics.median(found)


def outcome(function, values, grad):
    out = function(*values, SCALE)
    return [out, *torch.autograd.grad(out, values, grad)]


def errors(values, grad):
    """Of the joint and of the masked, the largest of output and gradients, over the first two heads of keys."""
    shared = values[0].shape[1] // values[1].shape[1]
    few = [values[0][:1, : 2 * shared], *(value[:1, :2] for value in values[1:3]), values[3][:, :, :2]]
    few, grad = [value.detach().requires_grad_() for value in few], grad[:1, : 2 * shared]
    exact = [value.detach().double().requires_grad_() for value in (*few[:3], few[3].bfloat16())]
    wanted = outcome(reference.prefixed, exact, grad.double())
    for function in (joint.prefixed, reference.prefixed):
        yield max(float(((a - b).norm() / b.norm()).detach()) for a, b in zip(outcome(function, few, grad), wanted, strict=True))


def captured(run, times=10):
    """A CUDA graph that runs it so many times: a kernel alone is shorter than its launch."""
    run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(times):
            run()
    return lambda: graph.replay()


def sweep(values, grad):
    """Milliseconds of the two kernels alone, over tiles, warps and stages."""
    query, key, value, prefix = (part.detach() for part in values)
    out, lse = stock.forward(query, key, value, SCALE)
    usual = tiles.sizes
    for rows, warps, stages in itertools.product((16, 32, 64, 128), (4, 8), (1, 2, 3)):
        own = {"BT": rows, "num_warps": warps, "num_stages": stages}
        tiles.sizes = lambda kv, backward, own=own: usual(kv, backward) | own
        times = []
        for run in (
            lambda: tiles.joined(query, prefix, out, lse, SCALE),
            lambda: tiles.differentiated(grad, query, prefix, out, lse, out, SCALE),
        ):
            try:
                times.append(f"{milliseconds(captured(run)) / 10:8.4f}")
            except triton.runtime.errors.OutOfResources:
                times.append("  no room")
        print(f"  rows {rows:4} warps {warps} stages {stages}: joined {times[0]} differentiated {times[1]} ms", flush=True)
    tiles.sizes = usual


def lines(case):
    """What one case costs and how exact it is."""
    torch.manual_seed(0)
    values, grad = tensors(*case)
    kernel = stock.choice(values[0].device, torch.bfloat16, case[1:5]).name
    bare_ms, joint_ms, masked_ms = (
        milliseconds(lambda f=function, own=own: torch.autograd.grad(f(*values, SCALE), own, grad))
        for function, own in ((bare, values[:3]), (joint.prefixed, values), (reference.prefixed, values))
    )
    ours, masked = errors(values, grad)
    return f"{case} {kernel}: bare {bare_ms:.3f} joint {joint_ms:.3f} masked {masked_ms:.3f} ms; errors {ours:.1e} {masked:.1e}"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sweep", action="store_true")
    options = parser.parse_args()
    print(torch.cuda.get_device_name(), torch.__version__)
    for case in CASES:
        print(lines(case), flush=True)
    if options.sweep:
        sweep(*tensors(*CASES[0]))


if __name__ == "__main__":
    main()
