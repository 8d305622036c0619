"""A watch on the server's process: resident memory, threads and open files every few seconds, and whether memory is flat.

flat: the median of the last tenth of the readings lies at most 3 % or 16 MiB above the median of a tenth right after the warm-up,
      and the slope of a straight line through all readings after the warm-up would add no more than that over the run
"""

import asyncio
import statistics
import time
from pathlib import Path

WARM = 0.2  # of the readings
MARGIN, LEAST = 0.03, 16.0


class Watch:
    """Reads /proc of one process. `readings`: (seconds, MiB resident, threads, open files)."""

    def __init__(self, pid, every):
        self.folder, self.every, self.began = Path(f"/proc/{pid}"), every, time.monotonic()
        self.readings = []

    def read(self):
        """One reading more; False where the process is no more."""
        try:
            status = dict(line.split(":", 1) for line in (self.folder / "status").read_text().splitlines())
            files = len(list((self.folder / "fd").iterdir()))
        except OSError:
            return False
        if "VmRSS" not in status:
            return False
        memory = int(status["VmRSS"].split()[0]) / 1024
        self.readings.append((round(time.monotonic() - self.began, 1), round(memory, 1), int(status["Threads"]), files))
        return True

    async def run(self):
        """Read until the process is no more."""
        while self.read():
            await asyncio.sleep(self.every)

    def summary(self):
        """Memory at the start, after the warm-up and at the end (MiB), the slope (MiB an hour), and the verdict."""
        count = len(self.readings)
        tenth, warm = max(1, count // 10), int(count * WARM)
        memory = [reading[1] for reading in self.readings]
        after, end = statistics.median(memory[warm : warm + tenth]), statistics.median(memory[-tenth:])
        times = [reading[0] for reading in self.readings[warm:]]
        slope = statistics.linear_regression(times, memory[warm:]).slope if len(times) > 1 else 0.0
        most = max(MARGIN * after, LEAST)
        growth = slope * (times[-1] - times[0])
        return {
            "start": memory[0], "after_warm_up": after, "end": end, "peak": max(memory), "slope_mib_an_hour": round(3600 * slope, 2),
            "allowed_growth": round(most, 1), "flat": end - after <= most and growth <= most,
            "threads": [self.readings[warm][2], self.readings[-1][2]], "files": [self.readings[warm][3], self.readings[-1][3]],
            "readings": self.readings[:: max(1, count // 200)],
        }  # fmt: skip
