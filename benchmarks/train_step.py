"""One training step of every method beside the frozen limit and HF PEFT: time, peak memory, cold start.

    python benchmarks/train_step.py --plan table --plan tokens --output results.jsonl [--budget 540] [--profile] [--repeats 3]
    python benchmarks/train_step.py --rows limit lora peft-lora-best [--shape 7b --batch 2 --tokens 2048 --rank 16 ...]

A step is forward, loss and backward on random ids; every weight is random. The frozen limit is the same base with nothing trained and
the gradient flowing to the embeddings' output: what any method trained in the first block must pay. Rows are described in
steps/points.py, plans in steps/plans.py. Each point runs in a process of its own, on all visible cards at once, and is divided by the
limit of its own card; those of the plan `cpu` run in turn in one process. Each line of results is written as soon as it is known, and
points that the output (or a file given by --done) already has are not measured again.
"""

import argparse
import dataclasses
import datetime
import importlib.metadata
import json
import os
import traceback
import uuid
from pathlib import Path
from typing import Any

import torch

from steps import cpu, measure
from steps.child import WAITS, told
from steps.plans import PLANS, planned
from steps.points import Point
from steps.pool import Fields, Pool, left, lines_of
from steps.rows import SHAPES
from steps.turns import Turns

PACKAGES = ("torch", "transformers", "peft", "triton", "bitsandbytes")


def version(package: str) -> str:
    """The version of a package; "" if it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plan", action="append", choices=PLANS, default=[])
    parser.add_argument("--rows", nargs="+", default=[], help="rows to measure under the setting given below, beside the plans")
    for field in dataclasses.fields(Point):
        if field.name in ("row", "repeat"):
            continue
        if field.type is bool:
            parser.add_argument(f"--{field.name}", action="store_true")
        else:
            choices = {"shape": list(SHAPES), "base": ["bf16", "nf4"], "loss": ["hf", "chunked"]}.get(field.name)
            parser.add_argument(f"--{field.name}", type=field.type, default=field.default, choices=choices)
    parser.add_argument("--output", type=Path, help="a JSON-lines file to append to")
    parser.add_argument("--done", type=Path, nargs="+", default=[], help="other files of results whose points are not measured again")
    parser.add_argument("--retry", action="store_true", help="measure again what failed")
    parser.add_argument("--repeats", type=int, default=1, help="measure every point so many times, each beside a limit of its own")
    parser.add_argument("--budget", type=float, default=float("inf"), help="seconds after which nothing should still be running")
    parser.add_argument("--timeout", type=float, default=600.0, help="seconds that end a point")
    parser.add_argument("--rounds", type=int, default=15, help="of the plan cpu")
    parser.add_argument("--profile", action="store_true", help="also say where the time goes, kernel by kernel")
    parser.add_argument("--cold", action="store_true", help="give each process an empty compile cache, to time a true cold start")
    parser.add_argument("--beside", type=int, default=1, help="processes that share a card at most, as many as fit; one is timed at a time")
    parser.add_argument(WAITS, action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


def answer(options: argparse.Namespace) -> None:
    """Measure the points that the pool gives to this process, and print a line for each."""
    points, lock = told(imports=torch.cuda.is_available())
    try:
        if points[0].threads:
            results = [cpu.measure(point, options.rounds, options.profile) for point in points]
        else:
            turns, alone = Turns(Path(lock[0]) if lock else None), "alone" in lock
            results = [measure.measure(point, options.profile, turns, alone) for point in points]
    except Exception as error:  # whatever it is, it is the result: out of memory, what PEFT or a compiler refuses
        said = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
        results = [{"failed": said, "trace": traceback.format_exc().splitlines()[-40:]} for _ in points]
    device = torch.cuda.get_device_name() if torch.cuda.is_available() and not points[0].threads else "cpu"
    for point, result in zip(points, results, strict=True):
        print(json.dumps({"point": json.loads(point.key), "device": device} | result), flush=True)


def cards() -> list[str]:
    """What CUDA_VISIBLE_DEVICES should be for each card in turn; one "" where there is none."""
    asked = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    return asked.split(",") if asked else [str(number) for number in range(torch.cuda.device_count())] or [""]


def memory() -> float:
    """GiB of the smallest card's memory that processes may share."""
    sizes = [torch.cuda.get_device_properties(number).total_memory for number in range(torch.cuda.device_count())]
    return 0.95 * min(sizes, default=0) / 2**30


def shown(line: Fields, limits: dict[tuple[str, Point], Fields]) -> str:
    """One line of the table."""
    point = Point(**line["point"])
    if "failed" in line:
        return f"{point.words:60} failed: {line['failed'][:120]}"
    limit = limits.get((line["card"], point.anchor), {})
    ratio = line["ratio"][1] if "ratio" in line else line["ms"] / limit["ms"] if limit else float("nan")
    memory = line.get("peak_bytes", 0) / limit["peak_bytes"] if limit.get("peak_bytes") else float("nan")
    peak = line.get("peak_bytes", 0) / 2**30
    text = f"{point.words:60}{line['ms']:9.1f} ms{ratio:7.3f} of the limit{peak:7.1f} GiB{memory:7.3f}"
    if "cpu_ratio" in line:
        return text + "   CPU time {:.3f} ({:.3f} to {:.3f})".format(line["cpu_ratio"][1], line["cpu_ratio"][0], line["cpu_ratio"][2])
    return text + f"   card {line['card'] or 'none'}, first step {line['cold_s']:.0f} s, {line['process_s']:.0f} s in all"


def main() -> None:
    """Plan, measure, write, show."""
    options = parsed()
    if options.waits:
        answer(options)
        return
    setting: dict[str, Any] = {field.name: getattr(options, field.name, 0) for field in dataclasses.fields(Point) if field.name != "row"}
    points = planned(options.plan, options.repeats) + [Point(**setting | {"row": row}) for row in options.rows]
    points = left(points, lines_of([*options.done, *([options.output] if options.output else [])]), options.retry)
    facts = {"session": uuid.uuid4().hex[:8], "date": datetime.datetime.now().astimezone().isoformat(timespec="seconds")}
    limits: dict[tuple[str, Point], Fields] = {}

    def hear(line: Fields) -> None:
        point = Point(**line["point"])
        if point == point.anchor and "failed" not in line:
            limits[line["card"], point] = line
        print(shown(line, limits), flush=True)
        if options.output:
            with options.output.open("a") as file:
                file.write(json.dumps(line) + "\n")

    own = ["--rounds", str(options.rounds), *(["--profile"] if options.profile else [])]
    versions = {"versions": {name: version(name) for name in PACKAGES}}
    pool = Pool(cards(), facts | versions, hear, own, options.budget, options.timeout, options.cold, options.beside, memory())
    for point in points:
        for line in pool.ask(pool.start(""), [point], "", options.timeout) if point.threads else []:
            hear(line)
    remaining = pool.run([point for point in points if not point.threads])
    if remaining:
        print(f"{len(remaining)} points are left; the same command goes on with them", flush=True)


if __name__ == "__main__":
    main()
