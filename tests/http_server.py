"""A server on a real port, in a thread, and what the tests ask it with."""

import contextlib
import copy
import socket
import threading
import time
from dataclasses import dataclass

import httpx
import torch
import uvicorn

import graft
from graft.serve import Engine, Room
from graft.serve.http.app import built
from graft.serve.http.desk import Desk
from graft.serve.http.patience import patient
from graft.serve.http.settings import Settings
from graft.serve.root import Root

METHODS = {
    "cards": graft.LoRA(r=4),
    "doors": graft.DoRA(r=2),
    "eyes": graft.IA3(),
    "soft": graft.Prompt(n=3),
    "front": graft.Prefix(n=5),
    "waist": graft.Bottleneck(),
}
ROOM = Room(cached=2048, batch=64, requests=32, page=4)
KEY, ADMIN = "an-api-key-of-tests", "an-admin-key-of-tests"


def save_adapters(root, model, methods=METHODS, std=0.1):
    """A folder of adapters of a model, shaken so that each says something else."""
    for seed, (name, method) in enumerate(methods.items()):
        adapted = graft.adapt(copy.deepcopy(model), method, seed=seed)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for value in adapted.parameters():
                value.add_(torch.empty_like(value).normal_(std=std, generator=generator))
        adapted.save(root / name)
    return root


@dataclass
class Running:
    """A server that answers at `url`, and what is behind it."""

    url: str
    port: int
    desk: Desk
    server: uvicorn.Server

    @property
    def engine(self):
        return self.desk.engine

    def get(self, path, **more):
        return httpx.get(self.url + path, **more)

    def post(self, path, body=None, **more):
        return httpx.post(self.url + path, json=body, timeout=60, **more)


def engine_for(model, tokenizer, root=None, slots=4, room=ROOM, **more):
    engine = Engine(copy.deepcopy(model), tokenizer, slots=slots, room=room, **more)
    for name in [] if root is None else root.names():
        engine.register(name, root.folder(name))
    return engine


@contextlib.contextmanager
def running(engine, root=None, **settings):
    """A server over an engine that runs."""
    desk = Desk(engine, Settings(**{"name": "base", **settings}), root)
    config = uvicorn.Config(
        built(desk),
        log_config=None,
        lifespan="off",
        ws="none",
        http=patient(desk.settings.limits.head_seconds),
        timeout_graceful_shutdown=5,
    )
    server = uvicorn.Server(config)
    with socket.socket(proto=socket.IPPROTO_TCP) as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            while not server.started:
                assert thread.is_alive()
                time.sleep(0.01)
            yield Running(f"http://127.0.0.1:{port}", port, desk, server)
        finally:
            server.should_exit = True
            thread.join(20)
            assert not thread.is_alive()


def adapters_root(folder):
    return Root(folder)
