"""A point: one kind of traffic on one engine. It is plain data, named by its JSON, so that a file of results says what is done.

Engines:

    graft           graft.serve.Engine; `resident` adapters are in its slots
    transformers    transformers' continuous batching of the bare base, as it comes, and `transformers-graphs`, with CUDA graphs
    peft            HF PEFT's generate with `adapter_names`, all requests as one batch: LoRA alone, which is all that it mixes

Traffic: `base`, `one` (every request wants the first adapter), or `mixed` (each the next one).
"""

from dataclasses import asdict, dataclass
from typing import Any

from graft import IA3, BiasOnly, Bottleneck, DoRA, LoRA, Prefix, Prompt

SHAPES: dict[str, dict[str, Any]] = {
    "7b": {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
           "vocab_size": 32000},
    "1b": {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32, "num_key_value_heads": 8,
           "vocab_size": 32000},
    "small": {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 4, "num_attention_heads": 8, "num_key_value_heads": 4,
              "vocab_size": 2000},
    "tiny": {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
             "vocab_size": 128},
    "pairs": {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2,
              "vocab_size": 512, "initializer_range": 0.06},
}  # fmt: skip
KINDS: tuple[Any, ...] = (
    LoRA(r=8), LoRA(r=64), DoRA(r=16), IA3(), Bottleneck(size=64), BiasOnly(add=True), Prefix(n=16), Prompt(n=16, init_embeds="random"),
)  # fmt: skip
"""The methods of resident adapters, one after another: ranks 8, 16 and 64."""
RESIDENT = (0, 1, 8, 32, 128)
PEERS = ("transformers", "transformers-graphs", "peft")


@dataclass(frozen=True)
class Point:
    """`requests` at once, each of `length` tokens, answered with `new` tokens, greedily; `repeat` counts repetitions."""

    engine: str = "graft"
    traffic: str = "base"
    resident: int = 0
    requests: int = 64
    shape: str = "7b"
    length: int = 128
    new: int = 128
    repeat: int = 0

    @property
    def fields(self) -> dict[str, Any]:
        """As a line of results has it."""
        return asdict(self)


def planned(shape: str, requests: list[int], length: int, new: int, resident: list[int], peers: list[str], repeats: int) -> list[Point]:
    """Every point, in the order in which adapters are loaded: the base first, which the others are divided by."""
    same = {"shape": shape, "length": length, "new": new}
    points = [
        Point(engine, "mixed" if engine == "peft" else "base", 8 * (engine == "peft"), n, **same) for engine in peers for n in requests
    ]
    for count in sorted(resident):
        for n in requests:
            for traffic in ("base", "one", "mixed") if count > 1 else ("base", "one") if count else ("base",):
                points += [Point("graft", traffic, count, n, **same, repeat=repeat) for repeat in range(repeats)]
    return points
