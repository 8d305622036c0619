"""Bytes of the base while it is trained on: in its dtype or, for the blocks' linear maps, in 4 bits; and the margins of fused products.

NF4 with double quantisation (graft.kernels.nf4.reference) holds for n values

    n/2 + n/64 + 4 (n/64)/256 + 4 bytes, and tables of 16 and 256 float32        4.127 bits a value

Embeddings, the head, norms and biases stay in the base's dtype. Fused on a GPU, maps that share an input lie in one buffer
[Σ out + p, in + p] for branches of ranks that sum up to p (graft.kernels.affine.pitched); on a base in 4 bits only [p, in] and [Σ out, p].
"""

from collections.abc import Sequence

from graft.forms import Affine, Form
from graft.kernels.affine.pitched import margin
from graft.plan.facts import Facts
from graft.plan.setup import Setup
from graft.site import LINEAR, TOGETHER, Site

BLOCK, NESTED = 64, 256  # values a scale, scales a scale of theirs
TABLES = 4 * (16 + 256)


def packed(values: int) -> int:
    """Bytes of one weight of so many values in NF4."""
    scales = -(-values // BLOCK)
    return -(-values // 2) + scales + 4 * -(-scales // NESTED) + 4 + TABLES


def base(facts: Facts, setup: Setup) -> int:
    """Bytes of all the base's parameters."""
    if not setup.nf4:
        return facts.parameters * setup.bytes
    maps = sum(packed(inputs * outputs) for _, inputs, outputs in facts.linear)
    return facts.layers * (maps + (facts.block - facts.packs) * setup.bytes) + facts.outside * setup.bytes


Groups = list[tuple[int, list[int], list[int]]]


def groups(facts: Facts, forms: Sequence[tuple[Site, Form]], setup: Setup) -> Groups:
    """(in, [out], [r]) of the low-rank branches that run as one with their products (graft.model.fused)."""
    found: dict[object, tuple[int, list[int], list[int]]] = {}
    for site, form in forms if setup.fused and facts.plain else ():
        if not isinstance(form, Affine) or form.A is None or form.reads != "x" or site.role not in LINEAR or site.rows is not None:
            continue
        shared = [number for number, roles in enumerate(TOGETHER) if site.role in roles]
        key = (site.layer, shared[0]) if shared else site.path
        _, outputs, ranks = found.setdefault(key, (site.inputs, [], []))
        outputs.append(site.outputs)
        ranks.append(len(form.A))
    return list(found.values())


def margins(facts: Facts, forms: Sequence[tuple[Site, Form]], setup: Setup) -> int:
    """Bytes of what the buffers of fused products hold besides the weights."""
    total = 0
    for inputs, outputs, ranks in groups(facts, forms, setup):
        p, outs = margin(ranks), sum(outputs)
        total += p * (inputs + outs) if setup.nf4 else (outs + p) * (inputs + p) - outs * inputs
    return total * setup.bytes


def unpacked(facts: Facts, forms: Sequence[tuple[Site, Form]], setup: Setup) -> int:
    """Bytes of the largest dense weight that a product on a base in 4 bits makes and drops again."""
    if not setup.nf4:
        return 0
    together = [inputs * sum(outputs) for inputs, outputs, _ in groups(facts, forms, setup)]
    return setup.bytes * max([*together, *(inputs * outputs for _, inputs, outputs in facts.linear)], default=0)
