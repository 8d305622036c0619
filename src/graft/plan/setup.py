"""How a model would be trained: what a plan varies. The fields are those of `graft train` where it has them."""

from dataclasses import dataclass

from graft.errors import TrainingError
from graft.kernels.optimizers import OPTIMIZERS


@dataclass(frozen=True)
class Setup:
    """`batch` rows of at most `tokens` in a forward, `accum` of them for an update. `bytes` is of a value of the base's dtype.

    `compiled`, `fused` and `recorded` (a step as one CUDA graph) are what training does by itself on a GPU, `cpu` says that it runs on
    none; `loss` is "chunked" (Graft's own) or "model" (all logits at once); `supervised` is the share of the positions that is trained on.
    An empty `optimizer` is none: forward and backward alone.
    """

    batch: int = 16
    tokens: int = 512
    accum: int = 1
    checkpointing: bool = False
    nf4: bool = False
    optimizer: str = "adamw"
    bytes: int = 2
    compiled: bool = True
    fused: bool = True
    loss: str = "chunked"
    supervised: float = 1.0
    recorded: bool = True
    cpu: bool = False

    def __post_init__(self) -> None:
        for name in ("batch", "tokens", "accum", "bytes"):
            if getattr(self, name) < 1:
                raise TrainingError(f"{name} is {getattr(self, name)}; it must be at least 1.")
        if self.optimizer and self.optimizer not in OPTIMIZERS:
            raise TrainingError(f"optimizer is {self.optimizer!r}; it must be one of {', '.join(OPTIMIZERS)}.")
        if self.loss not in ("chunked", "model"):
            raise TrainingError(f"loss is {self.loss!r}; it must be chunked or model.")

    @property
    def positions(self) -> int:
        """Tokens of one forward pass."""
        return self.batch * self.tokens
