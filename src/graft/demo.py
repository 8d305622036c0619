"""The demo's data: short coffee orders and the till's code for each, made from templates and a seed.

    prompt      Could you do two large oat lattes for Mia?
    completion  Mia|latte|L|oat|x2

The code is `name|drink|size|milk|xcount`: size is S, M or L, and an order without milk has `-`. No base model can know this
format, and a reader sees at a glance whether an answer is right. Test orders never occur among the training orders.
Files are JSON lines with the columns `prompt` and `completion`; the same seed gives the same bytes on every machine.
"""

import json
import random
from dataclasses import dataclass
from pathlib import Path

from graft.errors import DataError
from graft.files import atomic_write

EARLY = ("Ada", "Ben", "Cleo", "Dan", "Eva", "Finn", "Grace", "Hugo", "Iris", "Jack", "Kate")
LATE = ("Leo", "Mia", "Nora", "Omar", "Paul", "Rosa", "Sam", "Tess", "Vera", "Will", "Zoe")
NAMES = EARLY + LATE
DRINKS = {"latte": "lattes", "mocha": "mochas", "cappuccino": "cappuccinos", "espresso": "espressos", "tea": "teas", "cocoa": "cocoas"}
SIZES = {"small": "S", "medium": "M", "large": "L"}
MILKS = ("oat", "soy", "almond", "")
COUNTS = ("", "one", "two", "three", "four", "five", "six")
TEMPLATES = (
    "{order} for {name}",
    "{order} for {name}, please.",
    "{name} wants {order}.",
    "{name} here: {order}",
    "Hi, {order} for {name}",
    "Could you do {order} for {name}?",
    "Can {name} get {order}?",
    "I'd like {order}, name is {name}.",
)


@dataclass(frozen=True)
class Order:
    """One order: what its message says and what its code must be."""

    name: str
    drink: str
    size: str
    milk: str
    count: int

    def code(self) -> str:
        """The till's code, for example `Mia|latte|L|oat|x2`."""
        return f"{self.name}|{self.drink}|{SIZES[self.size]}|{self.milk or '-'}|x{self.count}"

    def phrase(self, *, digits: bool) -> str:
        """The order in words, for example `two large oat lattes`; the count as a digit if asked."""
        count = str(self.count) if digits else COUNTS[self.count]
        drink = self.drink if self.count == 1 else DRINKS[self.drink]
        return " ".join(word for word in (count, self.size, self.milk, drink) if word)


def draw(rng: random.Random) -> Order:
    """One random order; every field is drawn on its own."""
    count = rng.randint(1, len(COUNTS) - 1)
    return Order(rng.choice(NAMES), rng.choice(tuple(DRINKS)), rng.choice(tuple(SIZES)), rng.choice(MILKS), count)


def rows(count: int, seed: int = 0) -> list[dict[str, str]]:
    """`count` rows of `prompt` and `completion`, no two of them the same order.

    Raises DataError if there are fewer different orders than rows asked for.
    """
    possible = len(NAMES) * len(DRINKS) * len(SIZES) * len(MILKS) * (len(COUNTS) - 1)
    if count > possible:
        raise DataError(f"the demo has {possible} different orders, {count} rows were asked for: ask for fewer")
    rng = random.Random(seed)
    orders: dict[Order, dict[str, str]] = {}
    while len(orders) < count:
        order = draw(rng)
        if order in orders:
            continue
        message = rng.choice(TEMPLATES).format(order=order.phrase(digits=rng.random() < 0.5), name=order.name)
        orders[order] = {"prompt": message[0].upper() + message[1:], "completion": order.code()}
    return list(orders.values())


def write(folder: Path, *, train: int = 640, test: int = 60, seed: int = 0) -> tuple[Path, Path]:
    """Write `train.jsonl` and `test.jsonl` into `folder` and return both paths; their orders are disjoint.

    Raises DataError if that many different orders do not exist, OSError if the folder cannot be written.
    """
    made = rows(train + test, seed)
    paths = folder / "train.jsonl", folder / "test.jsonl"
    for path, part in zip(paths, (made[:train], made[train:]), strict=True):
        atomic_write(path, "".join(json.dumps(row) + "\n" for row in part))
    return paths
