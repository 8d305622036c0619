"""What a comparison is asked to do, and the file that lets it go on after a stop.

`settings.json` in the output folder holds every setting that changes a result, the hashes of the data, the base's fingerprint
and the bounds that were decided on at the first start. A start with other settings in the same folder is refused, with the
settings that differ: records of two different comparisons must not end up in one table.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from graft.compare.grids import DEFAULT_RATES
from graft.errors import DataError
from graft.files import atomic_write

FILE = "settings.json"
PRESENTATION = ("output_dir", "command", "full_command", "demo")  # settings that change no result


@dataclass(frozen=True)
class CompareConfig:
    """One comparison. None in `trials`, `seeds`, `max_steps` or `eval_limit`: the budget decides, or a default where there is none.

    A step reads `batch_size * grad_accum` rows; `eval_limit` is the number of test rows scored (0: all); `shots` are the numbers of
    in-context examples tried; without `eval_data` the test rows are held out of `data`.
    """

    model: str
    data: str
    output_dir: str
    eval_data: str | None = None
    methods: tuple[str, ...] = ("all",)
    trials: int | None = None
    seeds: int | None = None
    max_steps: int | None = None
    eval_limit: int | None = None
    budget: str | None = None
    batch_size: int = 16
    grad_accum: int = 1
    max_length: int = 512
    metric: str = "auto"
    bad_rows: str = "fail"
    full: bool = False
    nf4: bool = False
    checkpointing: bool = False
    compile: str = "auto"
    cuda_graphs: str = "auto"
    shots: tuple[int, ...] = (1, 2, 4, 8)
    seed: int = 0
    demo: bool = False
    command: str = ""
    full_command: str = ""

    def __post_init__(self) -> None:
        least = {"trials": 1, "seeds": 1, "max_steps": 1, "eval_limit": 0, "batch_size": 1, "grad_accum": 1, "max_length": 2}
        for name, low in least.items():
            value = getattr(self, name)
            if value is not None and value < low:
                raise DataError(f"{name} is {value}; it must be at least {low}.")
        if any(shot < 1 for shot in self.shots):
            raise DataError(f"shots is {self.shots}; each number of in-context examples must be at least 1.")


@dataclass(frozen=True)
class Bounds:
    """The size of every run: the same for all methods. `eval_limit` 0 means all test rows."""

    trials: int = 3
    seeds: int = 1
    max_steps: int = 150
    eval_limit: int = 0

    @property
    def searches(self) -> int:
        """Trial runs of one method: with a single learning rate there is nothing to search."""
        return self.trials if self.trials > 1 else 0

    @property
    def runs(self) -> int:
        """Training runs of one method."""
        return self.searches + self.seeds


def by_hand(config: CompareConfig, otherwise: Bounds) -> Bounds:
    """The bounds that `config` gives by hand, the others from `otherwise`."""
    given = {name: getattr(config, name) for name in asdict(otherwise)}
    return Bounds(**{name: value if value is not None else getattr(otherwise, name) for name, value in given.items()})


def settings(config: CompareConfig, facts: dict[str, Any]) -> dict[str, Any]:
    """Everything that changes a result, as plain JSON: the config without its presentation, and `facts` (hashes, fingerprint)."""
    asked = {name: value for name, value in asdict(config).items() if name not in PRESENTATION}
    return dict(json.loads(json.dumps(asked | facts | {"learning_rates": DEFAULT_RATES})))


def remembered(folder: Path, now: dict[str, Any]) -> Bounds | None:
    """The bounds of the comparison begun in `folder`, or None if there is none. Raises DataError if its settings are not `now`'s."""
    file = folder / FILE
    if not file.is_file():
        return None
    try:
        stored = json.loads(file.read_text())
        before, bounds = stored["settings"], Bounds(**stored["bounds"])
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{file} cannot be read ({error}); choose another output folder.") from error
    differing = [name for name in sorted(before.keys() | now.keys()) if before.get(name) != now.get(name)]
    if differing:
        changes = "; ".join(f"{name} was {short(before.get(name))}, is {short(now.get(name))}" for name in differing)
        raise DataError(f"{folder} holds a comparison with other settings ({changes}); choose another output folder, or delete this one.")
    return bounds


def remember(folder: Path, now: dict[str, Any], bounds: Bounds) -> None:
    """Write the settings file, whole."""
    atomic_write(folder / FILE, json.dumps({"settings": now, "bounds": asdict(bounds)}, indent=1) + "\n")


def short(value: Any) -> str:
    """A setting's value in an error message."""
    text = json.dumps(value)
    return text if len(text) <= 40 else text[:37] + "..."
