"""Time and peak memory of a stretch of code, in seconds and bytes.

CUDA: `torch.cuda.max_memory_allocated` of the device, reset at the start: tensors only, without the driver's context.
Linux on the CPU: freed memory is given back to the system (glibc keeps it otherwise), then writing 5 to /proc/self/clear_refs
resets the process's high-water mark, which VmHWM in /proc/self/status reads: the whole process, the loaded base and the
interpreter included. Elsewhere `ru_maxrss`, which cannot be reset: the peak since the process began.
"""

import ctypes
import gc
import resource
import sys
import time
from pathlib import Path
from types import TracebackType

import torch

CLEAR_REFS = Path("/proc/self/clear_refs")
STATUS = Path("/proc/self/status")


class Clock:
    """`with Clock() as clock: ...` and then `clock.seconds`: how long the block took by the wall clock."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __enter__(self) -> "Clock":
        self._started = time.perf_counter()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.seconds = time.perf_counter() - self._started


class PeakMemory:
    """`with PeakMemory(device) as peak: ...` and then `peak.bytes`: the most memory held at once inside the block."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.bytes = 0

    def __enter__(self) -> "PeakMemory":
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        else:
            reset_high_water()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        cuda = self.device.type == "cuda"
        self.bytes = torch.cuda.max_memory_allocated(self.device) if cuda else high_water()


def reset_high_water() -> None:
    """Forget the process's peak so far, where the system allows it (Linux); elsewhere nothing happens."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)
    try:
        CLEAR_REFS.write_text("5")
    except OSError:
        return


def high_water() -> int:
    """The most resident memory this process held since the last reset, in bytes."""
    try:
        lines = STATUS.read_text().splitlines()
    except OSError:
        lines = []
    kilobytes = [int(line.split()[1]) for line in lines if line.startswith("VmHWM:")]
    if kilobytes:
        return kilobytes[0] * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
