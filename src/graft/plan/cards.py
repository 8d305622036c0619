"""Cards by name: how much they hold, and how fast they compute and read.

One card was measured (docs/performance.md): the rates of an H100 80GB SXM are what its kernels reach in a step of a 7B model, as shares
of what the vendor says. For every other card the vendor's figures are scaled by the same shares: what the table says of their time is an
estimate, and `measured` is false. Figures are of dense bfloat16 products with float32 sums, and of memory; sources are the vendor's data
sheets.
"""

import re
from dataclasses import dataclass

from graft.errors import ModelError

GB, TERA = 10**9, 10**12
LEAST = 10**6  # bytes that could be meant


@dataclass(frozen=True)
class Card:
    """`memory` bytes, `flops` a second (bfloat16, dense), `bandwidth` bytes a second, all as the vendor says."""

    name: str
    memory: int
    flops: float
    bandwidth: float
    measured: bool = False


def card(name: str, gigabytes: int, teraflops: float, terabytes: float, *, measured: bool = False) -> Card:
    """A card from the figures of a data sheet: GB, TFLOP/s, TB/s."""
    return Card(name, gigabytes * GB, teraflops * TERA, terabytes * TERA, measured)


CARDS = (
    card("RTX 3060 12GB", 12, 51, 0.36),
    card("RTX 4060 Ti 16GB", 16, 88, 0.288),
    card("RTX 4080 16GB", 16, 97.5, 0.717),
    card("L4", 24, 121, 0.3),
    card("A10", 24, 125, 0.6),
    card("RTX 3090", 24, 71, 0.936),
    card("RTX 4090", 24, 165, 1.008),
    card("RTX 5090", 32, 209.5, 1.792),
    card("A100 40GB", 40, 312, 1.555),
    card("RTX A6000", 48, 154.8, 0.768),
    card("L40S", 48, 362, 0.864),
    card("A100 80GB", 80, 312, 2.039),
    card("H100 PCIe", 80, 756, 2.0),
    card("H100 80GB", 80, 989, 3.35, measured=True),
    card("H200", 141, 989, 4.8),
    card("B200", 180, 2250, 8.0),
)
"""From the smallest to the largest."""


def named(text: str) -> Card:
    """The card that a name means: all words of the name must occur ("h100", "a100 40gb", "NVIDIA H100 80GB HBM3"). ModelError otherwise.

    Where several fit, the first measured one counts, else the largest.
    """
    wanted = words(text)
    fitting = [one for one in CARDS if wanted and wanted <= words(one.name)] or [one for one in CARDS if words(one.name) <= wanted]
    if not fitting:
        raise ModelError(f"no card {text!r} is known: name one of {', '.join(one.name for one in CARDS)}, or cpu, or give --memory alone")
    return next((one for one in fitting if one.measured), fitting[-1])


def words(text: str) -> set[str]:
    """The words of a card's name, small."""
    return set(re.findall(r"[a-z]*\d+[a-z]*|[a-z]+", text.lower())) - {"nvidia", "geforce"}


def bytes_of(text: str) -> int:
    """Bytes of a size such as "24GB", "23.5 GiB" or "24000MB". ModelError for all else, and for less than LEAST: a unit is missing."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?)(i?)B?\s*", text, re.IGNORECASE)
    power = "KMGT".index(found[2].upper()) + 1 if found and found[2] else 0
    size = round(float(found[1]) * float(1024 if found[3] else 1000) ** power) if found else 0
    if size < LEAST:
        raise ModelError(f"memory is {text!r}: write a size such as 24GB or 22.5GiB")
    return size
