"""The state of a run that is not finished, in one safetensors file: the same run goes on from it as if it had never stopped.

    tensor.NAME, best.NAME      the trained tensors, and those of the best evaluation
    optimizer.NUMBER            tensors that the optimizer keeps
    random.cpu, random.cuda     the random state, from which dropout draws
    times [steps, 2]            seconds and tokens of each step
    metadata                    JSON: the steps that are done, the curve, where the optimizer's tensors belong, and what the run is of

The order of rows follows from the seed. A file of another run is refused, not overwritten.
"""

import glob
import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from graft.data import Example
from graft.errors import TrainingError
from graft.files import atomic_file
from graft.train.step import Run

log = logging.getLogger("graft")
FORMAT = 1
FREE = ("save_every", "strict", "tracker", "tracker_dir")
"""Of the config, what may be another when a run goes on."""


class Unfinished:
    """The file of one run's state: read at its begin, written every `config.save_every` steps, where Ctrl-C stops it, and at its end.

    `about` says by name what else the run is of: its base, its method. Raises TrainingError where the file is another run's, or none.
    """

    def __init__(self, path: Path, run: Run, examples: Sequence[Example], about: Mapping[str, str]) -> None:
        self.path = path
        config = {name: value for name, value in asdict(run.config).items() if name not in FREE}
        shapes = {name: str(tuple(tensor.shape)) for name, tensor in run.named.items()}
        self.facts = {
            "config": config,
            "rows": digest(examples),
            "validation": digest(run.validation),
            "tensors": shapes,
            "about": dict(about),
        }

    def begin(self, run: Run) -> None:
        """Bring a run to where the file says it was; a run without a file begins anew."""
        for left in self.path.parent.glob(f".{glob.escape(self.path.name)}.*.tmp"):  # of a run that was killed while it wrote
            left.unlink(missing_ok=True)
        if not self.path.exists():
            return
        try:
            with safe_open(self.path, framework="pt") as file:
                found = json.loads(file.metadata()["graft"])
                known = found["format"], found["facts"]
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError, ValueError, TypeError, KeyError) as error:
            why = f" ({error})" if isinstance(error, OSError | SafetensorError) else ""
            raise TrainingError(f"{self.path} is not the state of a run{why}: delete it to begin anew") from error
        if known != (FORMAT, self.facts):
            raise TrainingError(f"{self.path} is the state of {unlike(found, self.facts)}: run that again, or delete it to begin anew")
        restore(run, found, tensors)

    def due(self, run: Run, step: int) -> None:
        """After a step: keep the state if it is time to."""
        if run.config.save_every and step % run.config.save_every == 0:
            self.keep(run, step)

    def keep(self, run: Run, step: int, owed: tuple[float, float, float] | None = None, stopped: str = "") -> None:
        """Write the state after a step, of which an evaluation is `owed`, or with which training `stopped`; a disk that takes no more does
        not end the run.
        """
        tensors: dict[str, Tensor] = {}
        moments = packed(run.optimizer.state_dict()["state"], tensors)
        tensors |= {f"tensor.{name}": tensor for name, tensor in run.named.items()} | {"random.cpu": torch.get_rng_state()}
        tensors |= {"times": torch.tensor(run.times, dtype=torch.float64).view(-1, 2)}
        device = next(iter(run.named.values())).device
        if device.type == "cuda":
            tensors["random.cuda"] = torch.cuda.get_rng_state(device)
        if run.best:
            tensors |= {f"best.{name}": tensor for name, tensor in run.best[2].items()}
        found = {
            "format": FORMAT, "facts": self.facts, "step": step, "tokens": run.tokens, "curve": run.curve, "since_point": run.since_point,
            "touched": sorted(run.touched), "best": run.best and run.best[:2], "optimizer": moments, "seconds": run.seconds,
            "owed": owed, "stopped": stopped,
        }  # fmt: skip
        held = {name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()}
        try:
            with atomic_file(self.path) as tmp:
                save_file(held, tmp, {"graft": json.dumps(found)})
        except (OSError, SafetensorError) as error:
            log.warning("the state of the run after step %d could not be kept: %s", step, error)


def opened(path: str | Path | None, run: Run, examples: Sequence[Example], about: Mapping[str, str]) -> Unfinished | None:
    """The file of a run's state, the run brought to where it says; None without a path."""
    if path is None:
        return None
    made = Unfinished(Path(path), run, examples, about)
    made.begin(run)
    return made


def packed(value: Any, tensors: dict[str, Tensor]) -> Any:
    """A value as JSON has it, its tensors put under names of their own."""
    if isinstance(value, Tensor):
        tensors[name := f"optimizer.{len(tensors)}"] = value
        return {"tensor": name}
    return {"pairs": [[key, packed(held, tensors)] for key, held in value.items()]} if isinstance(value, dict) else value


def unpacked(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    """What `packed` took."""
    if not isinstance(value, dict):
        return value
    return tensors[value["tensor"]] if "tensor" in value else {key: unpacked(held, tensors) for key, held in value["pairs"]}


@torch.no_grad()
def restore(run: Run, found: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    """Put everything where it was."""
    for name, tensor in run.named.items():
        tensor.copy_(tensors[f"tensor.{name}"])
    run.optimizer.load_state_dict(run.optimizer.state_dict() | {"state": unpacked(found["optimizer"], tensors)})
    torch.set_rng_state(tensors["random.cpu"])
    if "random.cuda" in tensors:
        torch.cuda.set_rng_state(tensors["random.cuda"], next(iter(run.named.values())).device)
    run.done, run.tokens, run.curve, run.before = found["step"], found["tokens"], found["curve"], found["seconds"]
    run.times = [(seconds, int(tokens)) for seconds, tokens in tensors["times"].tolist()]
    run.since_point, run.touched = [(total, count) for total, count in found["since_point"]], set(found["touched"])
    run.owed, run.stopped = found["owed"], found["stopped"]
    if found["best"]:
        best = {name: tensors[f"best.{name}"].to(tensor.device) for name, tensor in run.named.items()}
        run.best = found["best"][0], found["best"][1], best
    for _ in range(run.done):
        next(run.rows)


def digest(examples: Sequence[Example]) -> str:
    """SHA-256 of tokenised rows."""
    made = hashlib.sha256()
    for example in examples:
        made.update(repr((tuple(example.ids), example.supervised)).encode())
    return made.hexdigest()


def unlike(found: dict[str, Any], facts: dict[str, Any]) -> str:
    """What a state is of that is not this run's."""
    if found["format"] != FORMAT:
        return f"format {found['format']}, and this version of Graft reads format {FORMAT}"
    theirs = found["facts"]
    pairs = [(name, theirs[part].get(name), facts[part].get(name)) for part in ("config", "about") for name in theirs[part] | facts[part]]
    named = [f"{name} {was}" for name, was, now in pairs if was != now]
    words = {"rows": "other rows", "validation": "other validation rows", "tensors": "other tensors"}
    return "a run with " + ", ".join([*named, *(said for name, said in words.items() if theirs[name] != facts[name])])
