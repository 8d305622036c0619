"""The peak of memory of a training step, by part, in bytes of tensors on the card.

A step has three moments at which most can be held, and the peak is the largest:

    loss        everything kept of all blocks, and the loss
    backward    at block l, when it begins: what the blocks up to l keep, what the pass works with, the gradients of the blocks behind l;
                when it ends: nothing of block l any more, but its gradients
    update      the gradients and nothing of the forward pass

With checkpointing all blocks keep their input alone, and the one whose backward pass runs all that a block keeps. With several batches an
update, and where the step is recorded, the gradients are there from the start, and a block's new ones until they are added. The base, the
trained values and their optimizer's states always are.

What a block's backward pass works with is 3 f + 2 d values a token: the gradients of the MLP's inner activation, of gate and up, of what
enters and leaves; one f more where the down projection has a branch, for the inner activation itself. On a base in 4 bits the largest dense
weight, that of gate and up, is there when the inner activation's gradient no longer is: 2 f + 2 d values a token and the weight, if that is
more. The largest weight of a trained module in the base's dtype and its gradient come on top. Libraries hold WORKSPACE. All but that and
REPLAYED is arithmetic on sizes; nothing is fitted.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from graft.forms import Affine, Form, Replacement
from graft.plan import activations, loss, trained, weights
from graft.plan.facts import Facts
from graft.plan.job import Job
from graft.plan.setup import Setup
from graft.site import Site

WORKSPACE = 2 * 32 << 20
"""cuBLAS on Hopper: 32 MiB for the thread of each pass."""
REPLAYED = 30 << 15
"""A block, beside the recorded graph that writes branches (graft.model.replay): 30 MiB in all were seen with LoRA and DoRA at the 7B shape
of 32 blocks, 13 to 16 at the 1B shape of 16.
"""
PARTS = ("weights", "adapter", "gradients", "optimizer", "activations", "loss", "workspace")


@dataclass(frozen=True)
class Memory:
    """Bytes at the peak by `PARTS`, and the moment of the peak."""

    weights: int
    adapter: int
    gradients: int
    optimizer: int
    activations: int
    loss: int
    workspace: int
    moment: str

    @property
    def peak(self) -> int:
        """All parts."""
        return self.weights + self.adapter + self.gradients + self.optimizer + self.activations + self.loss + self.workspace

    @property
    def step(self) -> int:
        """Bytes that come and go within a step: as many again are held by a recording of it (graft.model.recorded)."""
        return self.activations + self.loss + self.workspace

    @property
    def parts(self) -> dict[str, int]:
        """The parts by name."""
        return {name: getattr(self, name) for name in PARTS}


def memory(job: Job) -> Memory:
    """The peak of a training step."""
    facts, setup, positions = job.facts, job.setup, job.positions
    held = [each * positions for each in activations.blocks(facts, job.forms, setup, entered=job.entered)]
    stored = boundary(facts, held, setup, positions)
    gradients, margins = trained.masters(job.every), weights.margins(facts, job.forms, setup)
    always = (weights.base(facts, setup), gradients + margins + trained.norms(job.forms))
    states, early = trained.states(job.every, setup.optimizer), gradients if kept(setup) else 0
    libraries = (0 if setup.cpu else WORKSPACE) + (REPLAYED * facts.layers if margins else 0)
    frozen = not any(site.role == "head" or (facts.tied and tied_head(site, form)) for site, form in job.forms)
    final, copies = final_norm(facts, setup) * positions, copied(job)
    moments = [Memory(*always, early, states, sum(stored) + final + copies, loss.held(facts, setup, frozen=frozen), libraries, "loss")]
    (whole, done), largest = by_block(job), cast(job)
    dense = weights.unpacked(facts, job.forms, setup)
    working_on = max(working(job) * positions, narrow(job) * positions + dense)
    below = sum(stored)
    for number in reversed(range(facts.layers)):
        if not held[number]:
            break
        below -= stored[number]
        room, name = libraries + 2 * largest[number], f"backward of block {number}"
        moments.append(Memory(*always, max(early, done), states, below + held[number] + copies, 0, room + working_on, name))
        done += whole[number]
        new = early + whole[number] if kept(setup) else done
        moments.append(Memory(*always, new, states, below + facts.width * setup.bytes * positions, 0, room + dense, name))
    if setup.optimizer:
        moments.append(Memory(*always, gradients, states, 0, 0, libraries, "update"))
    return max(moments, key=lambda moment: moment.peak)


def tied_head(site: Site, form: Form) -> bool:
    """Whether a form at the embeddings changes the weight itself, which a tied head has too: a prompt and a branch do not."""
    return site.role == "embedding" and isinstance(form, Replacement)


def kept(setup: Setup) -> bool:
    """Whether gradients are added to ones that stay (graft.model.recorded), instead of being made when they are there."""
    return setup.recorded or setup.accum > 1


def by_block(job: Job) -> tuple[list[int], int]:
    """Bytes of the gradients of each block, and of what is outside the blocks and gets its gradient first (the head)."""
    found, outside = [0] * job.facts.layers, 0
    for site, shapes in job.shapes.items():
        size = trained.masters(shapes.values())
        if site.layer is None:
            outside += size if site.role in ("head", "norm") else 0
        else:
            found[site.layer] += size
    return found, outside


def boundary(facts: Facts, kept: Sequence[int], setup: Setup, positions: int) -> list[int]:
    """Bytes that each block keeps until its backward pass begins."""
    if not setup.checkpointing:
        return list(kept)
    return [facts.width * setup.bytes * positions if each else 0 for each in kept]


def final_norm(facts: Facts, setup: Setup) -> int:
    """Bytes a token that the norm behind the last block keeps; it is not compiled."""
    return 4 * facts.width if facts.detour else facts.width * setup.bytes


def working(job: Job) -> int:
    """Bytes a token that a block's backward pass works with beside what is kept."""
    inner = any(isinstance(form, Affine) and form.A is not None and site.role == "down" for site, form in job.forms)
    wide = 3 if job.facts.gated else 2
    return job.setup.bytes * ((wide + inner) * job.facts.inner + 2 * job.facts.width)


def narrow(job: Job) -> int:
    """Bytes a token that it works with when the inner activation's gradient is gone."""
    return job.setup.bytes * ((2 if job.facts.gated else 1) * job.facts.inner + 2 * job.facts.width)


def copied(job: Job) -> int:
    """Bytes of trained modules in the base's dtype that are kept for the backward pass: a compiled block makes them again."""
    kept = [site for site, form in job.forms if isinstance(form, Replacement) and (site.layer is None or not job.setup.compiled)]
    return sum(trained.masters(job.shapes[site].values()) for site in kept) // trained.MASTER * job.setup.bytes


def cast(job: Job) -> list[int]:
    """Bytes of the largest tensor of each block's trained modules in the base's dtype; its gradient has as many."""
    found = [0] * job.facts.layers
    for site, form in job.forms:
        if isinstance(form, Replacement) and site.layer is not None:
            sizes = [trained.masters([shape]) // trained.MASTER * job.setup.bytes for shape in job.shapes[site].values()]
            found[site.layer] = max(found[site.layer], *sizes)
    return found
