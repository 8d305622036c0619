"""A process that measures points: it imports what it needs at once, which takes longer than many a measurement, and then waits to be told.

Told is one line of JSON, {"points": [...], "turns": [...]}, and it answers with a line for each point.
"""

import importlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import Any

from steps.points import Point

WAITS = "--waits"
HEAVY = ("peft", "torch._inductor.compile_fx")
"""What measuring on a card needs that the command itself does not import."""


class Child:
    """One process, on the card that CUDA_VISIBLE_DEVICES="card" says; with `cold` its compile caches are empty."""

    def __init__(self, card: str, options: Sequence[str], cold: bool) -> None:
        self.empty = tempfile.TemporaryDirectory()
        env = os.environ | ({"CUDA_VISIBLE_DEVICES": card} if card else {})
        env |= {"TORCHINDUCTOR_CACHE_DIR": f"{self.empty.name}/inductor", "TRITON_CACHE_DIR": f"{self.empty.name}/triton"} if cold else {}
        command = [sys.executable, sys.argv[0], *options, WAITS]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, env=env)

    def measure(self, points: Sequence[Point], turns: Sequence[str], timeout: float) -> list[dict[str, Any]]:
        """The line of each point, and how long they took together; what ends without one says why."""
        started = time.monotonic()
        told = json.dumps({"points": [json.loads(point.key) for point in points], "turns": [*turns]})
        try:
            out, errors = self.process.communicate(f"{told}\n", timeout=timeout)
            said = [json.loads(line) for line in out.splitlines() if line.startswith('{"point"')]
            trace = errors.strip().splitlines()[-40:]
        except subprocess.TimeoutExpired:
            said, trace = [], [f"not done after {timeout:.0f} s"]
        self.end()
        found = {Point(**line["point"]): line for line in said}
        failed = {"failed": trace[-1] if trace else "no result", "trace": trace}
        spent = {"process_s": time.monotonic() - started}
        return [spent | (found.get(point) or {"point": json.loads(point.key)} | failed) for point in points]

    def end(self) -> None:
        """Let it be gone."""
        self.process.kill()
        self.process.communicate()
        self.empty.cleanup()


def told(imports: bool) -> tuple[list[Point], list[str]]:
    """In the process: the points, and the card's lock; what is heavy is imported before they come."""
    for name in HEAVY if imports else ():
        try:
            importlib.import_module(name)
        except ImportError:
            continue  # a row that needs it will say so
    found = json.loads(sys.stdin.readline())
    return [Point(**fields) for fields in found["points"]], found["turns"]
