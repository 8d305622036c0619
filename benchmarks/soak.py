"""A soak of `graft serve`: random traffic for minutes against a real server process, every sampled answer compared with an oracle.

    python benchmarks/soak.py [--minutes 30] [--rate 5] [--output benchmarks/results/soak]

The base is a tiny random Llama on the CPU, with thirteen adapters of all methods that share a batch, four that come and go, one name that
two adapters take in turns, and ten broken ones; four slots, host memory for about half of them. Requests arrive at random times: greedy
ones (compared with the same adapter alone, without a cache), drawn ones (the same seed must draw the same), several prompts at once,
scoring, callers that hang up, adapters loaded, unloaded and exchanged while they answer, and attacks. Every minute a burst of 40 comes
at once. At the end the server is told to stop while it answers: what runs must be finished, and it must exit with 0.

Writes soak.json and soak.md; the exit status is 0 where no answer was wrong, nothing ended unexpectedly and memory stayed flat.
"""

import argparse
import asyncio
import contextlib
import json
import os
import random
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from graft.compare.machine import machine, versions
from graft.files import atomic_write
from soaking.client import Client
from soaking.ledger import Ledger
from soaking.oracle import cases
from soaking.place import write_place
from soaking.summary import markdown, summarise
from soaking.traffic import Traffic
from soaking.watch import Watch

BURST, BURST_EVERY = 40, 60.0
MOST_OPEN = 200  # requests of ours at a time
HOST_MEMORY = "1MB"


def start(place, log, dtype):
    """A server's process, and its keys."""
    keys = {"GRAFT_API_KEY": secrets.token_hex(16), "GRAFT_ADMIN_KEY": secrets.token_hex(16)}
    command = [
        sys.executable, "-m", "graft.cli", "serve", str(place / "base"), "--adapters", str(place / "adapters"), "--port", "0",
        "--slots", "4", "--cached-tokens", "4096", "--batch-tokens", "256", "--host-memory", HOST_MEMORY, "--max-requests", "64",
        "--dtype", dtype,
    ]  # fmt: skip
    process = subprocess.Popen(command, env=os.environ | keys, stdout=log, stderr=log, start_new_session=True)
    return process, keys


def port_of(process, log, seconds=120):
    """The port that the server says it listens on."""
    until = time.monotonic() + seconds
    while time.monotonic() < until and process.poll() is None:
        said = Path(log.name).read_text()
        if "http://127.0.0.1:" in said:
            return int("".join(letter for letter in said.split("http://127.0.0.1:", 1)[1][:5] if letter.isdigit()))
        time.sleep(0.2)
    raise SystemExit(f"the server did not start:\n{Path(log.name).read_text()}")


async def ready(client):
    """Wait until the server answers."""
    while True:
        with contextlib.suppress(OSError):
            if (await client.ask("/ready", None, method="GET")).status == 200:
                return
        await asyncio.sleep(0.1)


async def drive(traffic, minutes, rate):
    """Let requests arrive for so long, and wait for the last of them."""
    began, burst, running = time.monotonic(), BURST_EVERY / 2, set()
    while (now := time.monotonic() - began) < 60 * minutes:
        count = 1
        if now > burst:
            count, burst, traffic.busy = BURST, burst + BURST_EVERY, True
        for _ in range(count if len(running) < MOST_OPEN else 0):
            task = asyncio.create_task(traffic.one())
            running.add(task)
            task.add_done_callback(running.discard)
        await asyncio.sleep(traffic.rng.expovariate(rate))
        traffic.busy = traffic.busy and len(running) > BURST // 2
    await asyncio.gather(*running)


async def stop(traffic, process):
    """Tell the server to stop while it answers: what was asked before is finished, and the exit status is 0."""
    asking = [asyncio.create_task(traffic.long("asked before the stop")) for _ in range(8)]
    await asyncio.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    await asyncio.gather(*asking)
    for _ in range(300):
        if process.poll() is not None:
            break
        await asyncio.sleep(0.1)
    code = process.poll()
    said = "eight requests were finished after SIGTERM, and the server exited with 0" if code == 0 else f"exit status {code}"
    return {"clean": code == 0, "said": said}


async def soak(arguments, process, client, place, known):
    """Drive, stop, and sum up."""
    ledger, watch = Ledger(), Watch(process.pid, arguments.every)
    traffic = Traffic(client, known, place, ledger, random.Random(arguments.seed))
    watching = asyncio.create_task(watch.run())
    await ready(client)
    await drive(traffic, arguments.minutes, arguments.rate)
    readings = len(watch.readings)
    ending = await stop(traffic, process)
    watching.cancel()
    del watch.readings[readings:]  # what the end gives back says nothing
    settings = {
        "minutes": arguments.minutes,
        "rate": arguments.rate,
        "seed": arguments.seed,
        "dtype": arguments.dtype,
        "host_memory": HOST_MEMORY,
    }
    return summarise(ledger, watch, settings | {"machine": machine(), "versions": versions()}, ending)


def main():
    """Make the place and the oracle, start the server, soak, write, and say."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--rate", type=float, default=5.0, help="requests a second, on average")
    parser.add_argument("--every", type=float, default=3.0, help="seconds between readings of memory")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dtype", default="float32", help="the server's; the oracle's is float32, so that others answer otherwise")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/soak"))
    parser.add_argument("--log", type=Path, help="keep the server's log here")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        write_place(place)
        known = cases(place)
        with open(arguments.log or place / "server.log", "w") as log:
            process, keys = start(place, log, arguments.dtype)
            try:
                client = Client(port_of(process, log), keys["GRAFT_API_KEY"], keys["GRAFT_ADMIN_KEY"])
                found = asyncio.run(soak(arguments, process, client, place, known))
            finally:
                process.kill()
    atomic_write(arguments.output / "soak.json", json.dumps(found, indent=1) + "\n")
    atomic_write(arguments.output / "soak.md", markdown(found))
    print(markdown(found))
    sys.exit(0 if found["passed"] else 1)


if __name__ == "__main__":
    main()
