"""A point: one row of the table under one setting. It is plain data, named by its JSON, so that a file of results says what is done.

Rows: `limit`, the methods of Graft, and HF PEFT's beside them.

    limit         nothing trained, the gradient flowing to the embeddings' output; each block compiled
    limit-recorded    the same recorded as a CUDA graph
    lora ...      a method of Graft as training sets it up: branches fused with their products, each block compiled, the step recorded
                  as a CUDA graph where training does so by itself (a line of results says whether it was)
    lora-recorded     the same, recorded in any case
    lora-launched     the same, never recorded: the host launches each kernel
    lora-apart    each block compiled, nothing fused or recorded
    lora-eager    fused, nothing compiled or recorded     limit-eager, full-eager: nothing compiled
    lora-plain    what `graft.adapt` gives: neither fused nor compiled nor recorded
    peft-lora     HF PEFT as it is by default: float32 adapters, eager
    peft-lora-best    HF PEFT at its best: adapters in the base's dtype, each block compiled
    full          every weight trained: forward, loss and backward like all others, without its optimizer
"""

import json
from dataclasses import asdict, dataclass, replace

LIMIT = "limit"
LOW_RANK = ("lora", "dora")
RECORDED = "-recorded"
ENDINGS = ("-apart", "-eager", "-plain", "-best", "-launched", RECORDED)
AS_THEY_COME = ("-apart", "-eager", "-plain", "-launched")
"""Endings of Graft's rows whose steps are never recorded."""


@dataclass(frozen=True)
class Point:
    """`batch` rows of `tokens` ids; `supervised` is the part of each row (its end) that has labels. `loss`: "hf" is the model's own,
    "chunked" Graft's (graft.model.supervised). `threads` 0 means a card, else a CPU with so many. `repeat` counts repetitions.
    """

    row: str = LIMIT
    shape: str = "7b"
    batch: int = 2
    tokens: int = 2048
    rank: int = 16
    dropout: float = 0.0
    checkpointing: bool = False
    base: str = "bf16"
    supervised: float = 1.0
    loss: str = "hf"
    threads: int = 0
    repeat: int = 0

    def __post_init__(self) -> None:
        if self.method not in LOW_RANK:  # so that the same measurement has the same name in every plan
            object.__setattr__(self, "rank", 0)
            object.__setattr__(self, "dropout", 0.0)

    @property
    def method(self) -> str:
        """The row without what says how it runs: "lora" of "peft-lora-best"."""
        name = self.row.removeprefix("peft-")
        for ending in ENDINGS:
            name = name.removesuffix(ending)
        return name

    @property
    def anchor(self) -> "Point":
        """The frozen limit that this point is divided by: the same base in bfloat16 with the model's own loss over all positions."""
        row = f"{LIMIT}-eager" if self.threads else LIMIT
        return replace(self, row=row, base="bf16", supervised=1.0, loss="hf")

    @property
    def key(self) -> str:
        """Its name in a file of results."""
        return json.dumps(asdict(self), sort_keys=True)

    @property
    def words(self) -> str:
        """What differs from the plain setting, to read."""
        said = [self.row, f"{self.shape} {self.batch}x{self.tokens}"]
        said += [f"rank {self.rank}"] if self.rank else []
        said += [f"dropout {self.dropout:g}"] if self.dropout else []
        said += ["checkpointed"] if self.checkpointing else []
        said += [self.base] if self.base != "bf16" else []
        said += [f"{self.loss} loss of {self.supervised:.0%}"] if (self.loss, self.supervised) != ("hf", 1.0) else []
        said += [f"{self.threads} threads"] if self.threads else []
        return ", ".join(said)
