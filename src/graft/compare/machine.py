"""Which machine and which versions a comparison ran on."""

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

PACKAGES = {"graft": "graft-peft", "torch": "torch", "transformers": "transformers", "accelerate": "accelerate"}
CPU_INFO = Path("/proc/cpuinfo")
GIB = 1 << 30


def machine() -> str:
    """The machine in words: "2 cores, Intel Xeon, 24 GB", and its GPU if there is one."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    parts = [f"{cores} {'core' if cores == 1 else 'cores'}", processor(), memory()]
    if torch.cuda.is_available():
        parts.append(torch.cuda.get_device_name(0))
    return ", ".join(part for part in parts if part)


def processor() -> str:
    """The processor's name as the system gives it."""
    lines = CPU_INFO.read_text().splitlines() if CPU_INFO.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def memory() -> str:
    """Main memory, in whole GB; "" where the system does not say."""
    if "SC_PHYS_PAGES" not in getattr(os, "sysconf_names", {}):
        return ""
    return f"{round(os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / GIB)} GB"


def versions() -> dict[str, str]:
    """Versions of what decides a result; "" for what is not installed as a package."""
    found = {"python": platform.python_version()}
    for name, package in PACKAGES.items():
        try:
            found[name] = version(package)
        except PackageNotFoundError:
            found[name] = ""
    return found
