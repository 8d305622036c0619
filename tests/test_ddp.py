"""Data-parallel training: one SGD step of two processes on half the rows each is the step of one process on all of them."""

import os
import sys
import tempfile
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

import graft

sys.path.insert(0, str(Path(__file__).parent))
from settings import SETTINGS
from test_laws import shake
from tiny import inputs, tiny

CASES = [
    *(("llama", setting) for setting in SETTINGS),
    *(("bert", setting) for setting in ("lora", "parallel", "prefix", "prompt", "full")),
]


def step(model, adapted, batch):
    """One step of SGD on a mean over rows."""
    model(**batch).logits.square().mean().backward()
    with torch.no_grad():
        for value in adapted.parameters():
            value -= 0.1 * value.grad
    return [value.detach().clone() for value in adapted.parameters()]


def worker(rank, folder):
    """One of two processes: every case in turn, its tensors after the step left in the folder."""
    torch.set_num_threads(1)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    found = []
    for name, setting in CASES:
        adapted = graft.adapt(tiny(name, torch.float64), SETTINGS[setting])
        shake(adapted)
        batch = {key: value[2 * rank : 2 * rank + 2] for key, value in inputs(name, rows=4).items()}
        model = torch.nn.parallel.DistributedDataParallel(adapted.model.train())
        found.append(step(model, adapted, batch))
    torch.save(found, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_take_the_step_of_one():
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(worker, (folder,), nprocs=2)
        both = [torch.load(f"{folder}/{rank}.pt", weights_only=True) for rank in range(2)]
    for number, (name, setting) in enumerate(CASES):
        adapted = graft.adapt(tiny(name, torch.float64), SETTINGS[setting])
        shake(adapted)
        start = [value.detach().clone() for value in adapted.parameters()]
        expected = step(adapted.model.train(), adapted, inputs(name, rows=4))
        for one, other, alone, before in zip(both[0][number], both[1][number], expected, start, strict=True):
            assert torch.equal(one, other), (name, setting)
            moved = (alone - before).abs().max().clamp_min(1e-12)
            assert ((one - alone).abs().max() / moved) < 1e-5, (name, setting)
