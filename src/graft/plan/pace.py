"""How long a training step takes on a card: a roofline, part by part, in seconds.

    products      operations of the linear maps and the head: once forward, once for the gradient of their input where one is asked
                  for, once for that of a trained weight, once more forward with checkpointing; a margin computes with p columns more
    attention     2 S^2 q B operations a layer forward (causal), 2.5 times as many back
    pointwise     bytes of norms, rotations, activations and residuals: 2 (11 d + 3 f) a token and layer forward, 1.44 times as many back
    branches      bytes that the skinny products of low-rank branches read: x twice, dY once, a scale's y once
    norms         bytes of the weights that the row norms of scaled sums are taken of, once a step
    unpacking     bytes of weights in 4 bits, read packed and written dense, in every pass
    loss          bytes of the logits and what is made of them
    gradients     bytes of gradients that are added to those that stay, where the step is recorded or several batches make an update
    update        bytes of the optimizer's step

each divided by a rate of the card; the gaps between small kernels; and no less than what the host needs to launch the work, where the step
is not recorded as one CUDA graph (graft.train does that where the host's part matters). The rates are shares of the vendor's figures, taken
from the kernels of rows at 4096 tokens (the sources stand beside them).
"""

from dataclasses import dataclass

from graft.forms import Affine, Replacement, VirtualTokens
from graft.plan import loss, weights
from graft.plan.activations import PLACES
from graft.plan.cards import Card
from graft.plan.job import Job
from graft.plan.memory import kept
from graft.site import SUBLAYERS

SUSTAINED = 1.07
"""Time of a step over the time of its kernels in a profile: clocks under load, and gaps between kernels (1.05 to 1.08 over the rows)."""
PRODUCTS = 748e12 / 989e12
"""108.3 TFLOP in 144.7 ms (limit)."""
ATTENTION, ATTENTION_BACK, HALF = 620e12 / 989e12, 460e12 / 989e12, 860
"""Of sequences without end; a sequence of S reaches S/(S + HALF) of it: 2.2 TFLOP in 5.05 ms, 5.5 in 16.9 ms at S = 2048. How it grows
with S is not measured here.
"""
NARROW = 0.7
"""Of that with heads of 64 instead of 128; not measured here."""
POINTWISE = 2.79e12 / 3.35e12
"""50 GB in 17.9 ms (limit)."""
SKINNY = 1.97e12 / 3.35e12
"""23.4 GB in 12.2 ms (LoRA), 34.5 GB in 16.8 ms (DoRA)."""
READING = 2.0e12 / 3.35e12
"""13 GB of weights in 6.5 ms (DoRA's norms)."""
BACK = 1.44
EAGER = 5.8
"""Bytes of pointwise work where blocks are not compiled, over those where they are: 289 ms for 203 (graft.model.regional)."""
GAPS = 94e-6
"""Seconds between the kernels of a block: a recorded step of 512 tokens of a 1B model takes 6.0 ms, 4.5 of them for bytes and operations.
"""
LEAST, LEAST_SCALES = 130e-6, 130e-6
"""Seconds that the kernels of a block's branches take at least, however few tokens there are, and those of scaled sums on top: the same
step takes 8.4 ms with LoRA and 12 with DoRA.
"""
HOST, HOST_BRANCHES = 1.75e-3, 3.5e-3
"""Seconds that the host needs to launch a block and its branches where the step is not recorded: 26 and 81 ms for the same steps. The
host's work, not the card's: by another host, or beside other work, they took from 0.6 to 2 times as long.
"""
UNPACKED_BYTES = 2.5  # of each weight in 4 bits: half a byte and its scale read, two written
LOSS_BYTES = 34  # of each logit: made, widened, summed, subtracted, exponentiated, narrowed
ADDED_BYTES = 12  # of each gradient that is added to another: two read, one written
UPDATE_BYTES = 28  # of each trained value: master, gradient and two states read, three written


@dataclass(frozen=True)
class Pace:
    """Seconds of one forward and backward pass by part, and of an optimizer's update; `host` is the least that the host needs for a
    pass, 0 where it launches a recorded one.
    """

    products: float
    attention: float
    pointwise: float
    branches: float
    norms: float
    unpacking: float
    loss: float
    gradients: float
    gaps: float
    update: float
    host: float

    @property
    def card(self) -> float:
        """Seconds that the card needs for one batch."""
        kernels = self.products + self.attention + self.pointwise + self.branches + self.norms + self.unpacking + self.loss
        kernels += self.gradients
        return SUSTAINED * kernels + self.gaps

    @property
    def batch(self) -> float:
        """Seconds of one batch."""
        return max(self.card, self.host)


def pace(job: Job, card: Card) -> Pace:
    """How long a job's batch takes on a card."""
    facts, setup, read = job.facts, job.setup, card.bandwidth
    forward, back, dense = passes(job)
    rows = loss.supervised(setup) if setup.loss == "chunked" else setup.positions
    moved = 2 * (11 * facts.width + (3 if facts.gated else 2) * facts.inner) * job.positions * (setup.bytes / 2)
    branches, more, normed = added(job)
    runs, layers = (forward + back) / 2, facts.layers
    least = (LEAST if branches else 0.0) + (LEAST_SCALES if branches and normed else 0.0)
    return Pace(
        products=products(job, forward + back, dense, rows) / (card.flops * PRODUCTS),
        attention=attention(job, forward, back) / card.flops,
        pointwise=(moved * (forward + BACK * back) * (1 if setup.compiled else EAGER) + more * job.positions) / (read * POINTWISE),
        branches=max(branches * job.positions / (read * SKINNY), least * layers),
        norms=normed / (read * READING),
        unpacking=(forward + back) * UNPACKED_BYTES * facts.packs / (read * READING) if setup.nf4 else 0.0,
        loss=LOSS_BYTES * facts.vocabulary * rows / (read * POINTWISE),
        gradients=ADDED_BYTES * job.trained / read if kept(setup) else 0.0,
        update=UPDATE_BYTES * job.trained / read if setup.optimizer else 0.0,
        gaps=GAPS * runs,
        host=0.0 if setup.recorded else HOST * runs + (HOST_BRANCHES * layers if branches else 0.0),
    )


def products(job: Job, blocks: int, dense: int, rows: int) -> float:
    """Operations of all products: so many passes through blocks, the gradients of so many weights, the head at so many rows."""
    margins = weights.margins(job.facts, job.forms, job.setup) / job.setup.bytes
    head = 2 * 2 * job.facts.vocabulary * job.facts.width * rows
    return 2.0 * job.positions * (job.facts.products * blocks + dense + 2 * margins) + head


def attention(job: Job, forward: int, back: int) -> float:
    """Operations of attention, each weighed by the share of the card's rate that it reaches."""
    facts, length = job.facts, job.setup.tokens + job.virtual
    each = 2.0 * length * length * facts.queries * job.setup.batch
    reach = length / (length + HALF) * (NARROW if facts.queries <= 64 * facts.heads else 1.0)
    return each * (forward / ATTENTION + 2.5 * back / ATTENTION_BACK) / reach


def passes(job: Job) -> tuple[int, int, int]:
    """Blocks that run forward (twice those that are made again), blocks that a gradient goes through, and weights that get one."""
    lowest = min((site.layer for site, _ in job.forms if site.layer is not None), default=job.facts.layers)
    everywhere = job.entered or any(site.role in ("embedding", "entry", "position", "cache") for site, _ in job.forms)
    back = job.facts.layers - (0 if everywhere else lowest)
    forward = job.facts.layers + (back if job.setup.checkpointing else 0)
    whole = [site.inputs * site.outputs for site, form in job.forms if isinstance(form, Replacement) and len(site.parameters[0][1]) > 1]
    return forward, back, sum(whole)


def added(job: Job) -> tuple[float, float, float]:
    """What forms add: bytes a token of skinny products and of pointwise work, and bytes of weights whose norms are taken."""
    b, width = job.setup.bytes, job.facts.width
    inputs: dict[tuple[int | None, int], int] = {}
    read = more = normed = 0.0
    for site, form in job.forms:
        if isinstance(form, VirtualTokens) and form.kv is not None:
            more += 8 * job.facts.queries * job.facts.layers
        if not isinstance(form, Affine):
            continue
        branch = form.A is not None
        if branch and site.role in SUBLAYERS:
            more += 6 * site.outputs
        elif branch:
            inputs[site.layer, PLACES.get(site.role, 0) // 2] = site.inputs
            read += site.outputs
        if form.c is not None:
            more += 2 * site.outputs
            read += site.outputs if branch else 0
            normed += site.inputs * site.outputs * b if form.scales == "sum" else 0
        more += site.outputs if form.b is not None and not branch else 0
    again = sum(inputs.values())
    rebuilt = again + 5 * width * len({layer for layer, _ in inputs}) if again else 0
    return (read + 2 * again) * b, (more + rebuilt) * b, normed
