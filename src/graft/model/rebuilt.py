"""What a compiled block rebuilds in its backward pass instead of keeping it: cheap pointwise work that a product of that pass reads.

A product with a trained factor (dA = dS^T x, dW = dY^T x) and a trained scale (dc = Σ dY * z) read what a frozen block does not keep.
torch's partitioner keeps every tensor that a product reads, although x is the output of a norm or an activation and follows pointwise from
what is kept anyhow. Numbers kept for each token of one Llama block, d wide with an MLP of f, besides the 6d + 2f that the bare frozen block
keeps (7r: a low-rank branch's x A^T on each of its 7 linear maps), counted on the partitioned graphs:

                torch's own choice    here
    LoRA        2d + f + 7r           7r
    DoRA        6d + f + 7r           d + 7r    the down projection's z, which nothing else keeps
    IA3         2d                    0

No product, attention or operator of ours runs twice: torch's list of what may be rebuilt does not have them.
A quotient with one number a channel (DoRA's c = m / norm) is made once for each pass: inductor would divide again for every value that it
scales, which takes three times as long where queries and keys are scaled and rotated.
What belongs to the compiler is imported when it is first asked for: that takes seconds.
"""

import functools
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from graft.kernels.affine import lowering

RULES = {"ban_recompute_materialized_backward": False}
"""What differs from torch's defaults: a tensor that a product of the backward pass reads may be rebuilt.

The defaults that stay: `ban_recompute_not_in_allowlist` (products, attention and operators of ours are never run twice),
`ban_recompute_reductions` (the one number a token of a norm is kept, not summed again), `ban_recompute_used_far_apart` and
`ban_recompute_long_fusible_chains` (without them no block above keeps less).
"""


def rewrite(graph: fx.Graph) -> None:
    """What all compiled blocks are rewritten by, in place."""
    choose_halves(graph)
    divide_once(graph)


def divide_once(graph: fx.Graph) -> None:
    """Have each quotient of one number a channel that scales something wider made by itself."""
    for node in list(graph.find_nodes(op="call_function", target=torch.ops.aten.div.Tensor)):
        wider = any(isinstance(user.meta.get("val"), Tensor) and user.meta["val"].dim() > 1 for user in node.users)
        if node.meta["val"].dim() == 1 and wider:
            with graph.inserting_after(node):
                made = graph.call_function(torch.ops.graft.once.default, (node,))
            made.meta = dict(node.meta)
            node.replace_all_uses_with(made, delete_user_cb=lambda user, made=made: user is not made)


def choose_halves(graph: fx.Graph) -> None:
    """Write two halves that stand side by side as a choice between them: torch's partitioner knows that as pointwise.

    So rotated queries and keys, x cos + [-x2, x1] sin, can be rebuilt from the products that they are made of; as models write them, each
    is kept beside its product where that one's scale is trained.
    """
    for node in list(graph.find_nodes(op="call_function", target=torch.ops.aten.cat.default)):
        parts: Any = node.args[0]
        last = (node.args[1] if len(node.args) > 1 else 0) in (-1, node.meta["val"].dim() - 1)
        widths = [part.meta["val"].shape[-1] for part in parts]
        if last and len(widths) == 2 and all(isinstance(width, int) for width in widths) and widths[0] == widths[1]:
            node.replace_all_uses_with(inserted(graph, node, halves, parts))
            graph.erase_node(node)


def halves(left: Tensor, right: Tensor) -> Tensor:
    """[left, right] of two tensors [..., n], as [..., 2n]."""
    first = torch.arange(2, device=left.device)[:, None] == 0
    return torch.where(first, left.unsqueeze(-2), right.unsqueeze(-2)).flatten(-2)


def inserted(graph: fx.Graph, before: fx.Node, work: Callable[..., Tensor], given: Sequence[fx.Node]) -> fx.Node:
    """The work on these nodes' values, written into the graph before a node; its result."""
    from torch._inductor.decomposition import select_decomp_table
    from torch.fx.experimental.proxy_tensor import make_fx

    values = [node.meta["val"] for node in given]
    with values[0].fake_mode:
        traced = make_fx(work, decomposition_table=select_decomp_table())(*values).graph
    known = dict(zip(traced.find_nodes(op="placeholder"), given, strict=True))
    result = given[0]
    with graph.inserting_before(before):
        for node in traced.nodes:
            if node.op == "output":
                result = known[node.args[0]]
            elif node.op != "placeholder":
                known[node] = graph.node_copy(node, known.__getitem__)
                known[node].meta = before.meta | known[node].meta  # what was to be recomputed (checkpointing) still is
    return result


def partition(joint: fx.GraphModule, inputs: Sequence[Any], **options: Any) -> tuple[fx.GraphModule, fx.GraphModule]:
    """A joint graph as its forward and backward graph, by these rules: for a backend of torch.compile that is not inductor."""
    from torch._functorch import config
    from torch._functorch.partitioners import min_cut_rematerialization_partition

    rewrite(joint.graph)
    with config.patch(RULES):
        forward, backward = min_cut_rematerialization_partition(joint, inputs, **options)
    return forward, backward


def inductor(graph: fx.GraphModule, inputs: Sequence[Any]) -> Any:
    """The backend of torch.compile that compiles by these rules with inductor."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what torch deprecates in itself
        from torch._inductor.compile_fx import compile_fx
    from torch._functorch import config

    lowering.register()
    with config.patch(RULES):
        return compile_fx(graph, inputs, config_patches={"joint_custom_post_pass": rewriting()})


@functools.cache
def rewriting() -> Any:
    """`rewrite` as inductor takes it."""
    from torch._inductor.custom_graph_pass import CustomGraphPass, get_hash_for_files

    class Rewrite(CustomGraphPass):
        def __call__(self, graph: fx.Graph) -> None:
            rewrite(graph)

        def uuid(self) -> Any:
            return get_hash_for_files((__file__,))  # what is rewritten is part of a compiled graph's name in caches

    return Rewrite()
