"""Site: a place in a transformers model where a method can act. Frozen data, no module in it.

A site says what a method needs to know to decide whether it acts there (`role`, `layer`) and how large its tensors are
(`inputs`, `outputs`). A fused projection (GPT-2's `c_attn`, Phi-3's `qkv_proj`) is one site for the whole, with role `qkv`,
and one more site for each projection in it, with `rows` that say which outputs are its own.
"""

from dataclasses import dataclass

LINEAR = ("query", "key", "value", "qkv", "attention_out", "gate", "up", "gate_up", "down")
WHOLES = ("qkv", "gate_up")
SUBLAYERS = ("attention", "mlp", "residual", "block")
TOGETHER = (("query", "key", "value"), ("gate", "up"))
"""Roles whose modules read one tensor."""
ROLES = (*LINEAR, *SUBLAYERS, "embedding", "entry", "position", "norm", "head", "cache", "other")


@dataclass(frozen=True)
class Rows:
    """Which outputs of a fused projection are a site's own: `count` runs of `size` outputs, `stride` apart, from `start`.

    GPT-2's key is one run; GPT-NeoX interleaves query, key and value head by head, so its key is one run a head.
    """

    start: int
    size: int
    count: int = 1
    stride: int = 0

    def indices(self) -> list[int]:
        """The outputs' numbers, in order; their length is `size * count`."""
        return [self.start + run * self.stride + k for run in range(self.count) for k in range(self.size)]


@dataclass(frozen=True)
class Site:
    """One place of a model.

    `path` is the module whose output is y; `reads` is the module whose input is x where that is not `path` (BERT has no MLP
    module: y leaves `output.dense`, x enters `intermediate.dense`). `parameters` are the module's own, in the module's layout;
    `heads` is (key-value heads, head dimension) on the cache site, of which a model has one; `tied` says that the module's weight is
    another module's own (a head that shares the embeddings'). `adds` says what a form that reads y adds to: "y", or "x" where the
    module is the norm that ends a post-norm block.

    Sublayers: `mlp` reads what enters the MLP, `residual` is the same MLP reading the residual stream before the norm; `block` is the
    whole layer. `entry` is the module whose output enters the first layer, where that is not the embedding itself (encoders).
    """

    path: str
    role: str
    layer: int | None
    layers: int
    inputs: int
    outputs: int
    rows: Rows | None = None
    reads: str | None = None
    gated: bool = False
    heads: tuple[int, int] = (0, 0)
    parameters: tuple[tuple[str, tuple[int, ...]], ...] = ()
    tied: bool = False
    adds: str = "y"

    @property
    def bias(self) -> bool:
        """Whether the module has a bias of its own."""
        return any(name == "bias" for name, _ in self.parameters)

    @property
    def primary(self) -> bool:
        """Whether this site is the module itself rather than some rows of it or a sublayer that ends there."""
        return self.rows is None and self.role not in SUBLAYERS

    def name(self, tensor: str) -> str:
        """How one of this site's tensors is called among all that may hang on the same module."""
        return tensor if self.primary else f"{self.role}_{tensor}"
