"""What is kept of each token between the forward pass and the backward one, block by block: bytes a token.

The bare frozen block of width d, attention q and kv wide, MLP f, in values of the base's dtype:

    compiled    2d + 2q + 2kv + 2f      inputs of both norms; queries, keys, values and what attention gives; gate and up
    eager       4d + 2q + 2kv + 3f      norms keep a float32 copy of their input (as wide as two bfloat16), silu(gate) is kept too

with two float32 for the norms and one a head for attention's log-sum-exp. An MLP without a gate keeps f. A form adds

    branch that reads x                  r      eager also x, once for all maps that read the same tensor
    branch that reads y                  y + r
    scale of an output                   compiled: y of the down projection alone, which nothing else keeps      eager: every y
    a whole module trained               compiled: 0, its input is rebuilt                                       eager: its input

(graft.model.rebuilt has the same for compiled blocks, counted on their graphs; tests count both.) In the first block that trains
anything, what lies before its first trained place is not kept, and nothing is in the blocks below it. Checkpointing keeps d a block, and
one whole block while its backward pass runs.
"""

from collections.abc import Sequence

from graft.forms import Affine, Form, Replacement, VirtualTokens
from graft.plan.facts import ATTENDING, MLP_IN, Facts
from graft.plan.setup import Setup
from graft.site import LINEAR, SUBLAYERS, Site

PLACES = {
    "norm": 0,
    **dict.fromkeys(ATTENDING, 1),
    "attention_out": 3,
    "attention": 4,
    **dict.fromkeys(MLP_IN, 6),
    "residual": 6,
    "down": 8,
    "mlp": 9,
    "block": 10,
}
"""Where in a block a role acts. Between 1 and 3 is attention, 5 is the second norm, 7 the MLP's inner activation."""
ENTERED = -1  # a gradient reaches the block's input


def block(facts: Facts, forms: Sequence[tuple[Site, Form]], setup: Setup, *, entered: bool) -> int:
    """Bytes a token that one block keeps, with the forms inside it; `entered` says that its input has a gradient."""
    first = ENTERED if entered else min((place(site) for site, _ in forms), default=11)
    read = {source(site) for site, form in forms if reads(form)}
    core = bare(facts, setup, first, read)
    return core + sum(extra(facts, site, form, setup) for site, form in forms) + (0 if setup.compiled else inputs(facts, forms, setup))


def place(site: Site) -> int:
    """Where in its block a site is."""
    return PLACES.get(site.role, 0)


def source(site: Site) -> str:
    """What a module reads: what the first or the second norm gives, attention's output, or the MLP's inner activation."""
    if site.role in SUBLAYERS:
        return "norm2" if site.role in ("mlp", "residual") else "norm1"
    where = place(site)
    return "norm1" if where <= 1 else "attention" if where <= 4 else "norm2" if where <= 6 else "inner"


def reads(form: Form) -> bool:
    """Whether a gradient of the form's own needs its module's input."""
    return isinstance(form, Replacement) or (isinstance(form, Affine) and (form.A is not None and form.reads == "x"))


def bare(facts: Facts, setup: Setup, first: int, read: set[str]) -> int:
    """Bytes a token of the block itself where the gradient goes back to the place `first`; `read` are the inputs that are needed."""
    b, compiled = setup.bytes, setup.compiled
    norm = facts.width * b if compiled or not facts.detour else 4 * facts.width
    total = 0
    if first < (1 if compiled else 0) or (compiled and "norm1" in read):
        total += norm + 4
    if first <= 1:
        total += (2 * facts.queries + 2 * facts.keys) * b + 4 * facts.heads
    if first <= 4:
        total += norm + 4
    elif compiled and "norm2" in read:
        total += norm  # what the norm gives, itself
    if first <= 6 or (compiled and "inner" in read):
        total += facts.inner * b * ((2 if compiled else 3) if facts.gated else 1)
    return total


def extra(facts: Facts, site: Site, form: Form, setup: Setup) -> int:
    """Bytes a token that a form keeps, its module's input left out."""
    if not isinstance(form, Affine):
        return 0
    total = 0
    if form.A is not None:
        total += len(form.A) + (site.outputs if form.reads == "y" else 0)
    if form.c is not None and (not setup.compiled or place(site) == PLACES["down"]):
        total += site.outputs
    return total * setup.bytes


def inputs(facts: Facts, forms: Sequence[tuple[Site, Form]], setup: Setup) -> int:
    """Bytes a token of the inputs that an eager block keeps for its forms; attention's output is kept by attention itself."""
    found: dict[str, int] = {}
    for site, form in forms:
        scaled = isinstance(form, Affine) and form.i is not None
        if site.role == "norm" and isinstance(form, Replacement):
            found[site.path] = facts.width
        elif (scaled or reads(form)) and source(site) != "attention":
            found[source(site)] = site.inputs if site.role in LINEAR else facts.width
    return sum(found.values()) * setup.bytes


def blocks(facts: Facts, forms: Sequence[tuple[Site, Form]], setup: Setup, *, entered: bool = False) -> list[int]:
    """Bytes a token that each block keeps, the lowest first, without checkpointing; `entered` as for `block`, of the lowest."""
    own: list[list[tuple[Site, Form]]] = [[] for _ in range(facts.layers)]
    for site, form in forms:
        if site.layer is not None:
            own[site.layer].append((site, form))
        entered |= site.role in ("embedding", "entry", "position")
    prefixed = any(isinstance(form, VirtualTokens) and form.kv is not None for _, form in forms)
    found, known = [], dict[object, int]()
    for inside in own:
        key = (entered, repr([(site.role, site.outputs, type(form)) for site, form in inside]))
        if key not in known:
            known[key] = reached(facts, inside, setup, entered, prefixed)
        found.append(known[key])
        entered |= bool(inside) or prefixed
    return found


def reached(facts: Facts, inside: Sequence[tuple[Site, Form]], setup: Setup, entered: bool, prefixed: bool) -> int:
    """One block's bytes a token; a prefix acts at its keys and values."""
    if not entered and not inside:
        return bare(facts, setup, PLACES["key"], set()) if prefixed else 0
    return block(facts, inside, setup, entered=entered)
