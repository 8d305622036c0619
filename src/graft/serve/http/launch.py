"""`graft serve`: from a base, a folder of adapters and an address to a server that runs until it is told to stop.

The address is taken before the model is loaded, so that a taken port is said at once. SIGTERM and Ctrl-C let what runs be finished, for
`drain_seconds` at most; a second Ctrl-C does not wait.
"""

import gc
import os
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import uvicorn
from rich.console import Console

from graft.errors import ServeError
from graft.model.load import dtype_named, load
from graft.serve.engine import Engine
from graft.serve.fair import Queueing
from graft.serve.http import logs
from graft.serve.http.app import create_app
from graft.serve.http.banner import banner
from graft.serve.http.patience import patient
from graft.serve.http.settings import Limits, Settings
from graft.serve.root import Root
from graft.serve.sizes import room_for

API_KEY, ADMIN_KEY = "GRAFT_API_KEY", "GRAFT_ADMIN_KEY"


@dataclass(frozen=True)
class ServeJob:
    """What to serve, and how. None: as large as fits; keys come from a file or from the environment, never from the command line."""

    base: str
    adapters: str | None = None
    name: str | None = None
    host: str = "127.0.0.1"
    port: int = 8000
    api_key_file: str | None = None
    admin_key_file: str | None = None
    allow_host: tuple[str, ...] = ()
    slots: int = 8
    cached_tokens: int | None = None
    batch_tokens: int | None = None
    batch_requests: int | None = None
    host_memory: int | None = None
    max_new_tokens: int = 4096
    max_requests: int = 256
    max_waiting: int = 1024
    timeout: float = 600.0
    drain: float = 60.0
    nf4: bool = False
    dtype: str = "auto"


def serve_job(job: ServeJob, console: Console) -> None:
    """Serve until told to stop. Raises ServeError where the address, a key or the folder cannot be used, ModelError for the base."""
    settings, dtype = settings_of(job), dtype_named(job.dtype)
    root = None if job.adapters is None else Root(job.adapters)
    with bound(settings.host, settings.port) as listener:
        console.print(f"Loading {job.base} ...", highlight=False)
        loaded = load(job.base, dtype=dtype, nf4=job.nf4)
        room = room_for(loaded.model, cached=job.cached_tokens, batch=job.batch_tokens, requests=job.batch_requests)
        queueing = Queueing(waiting=job.max_waiting)
        engine = Engine(loaded.model, loaded.tokenizer, slots=job.slots, room=room, host_bytes=job.host_memory, queueing=queueing)
        left_out = register(engine, root, settings.name)
        with engine:
            leave_out()
            console.print(banner(engine, settings, root, left_out, listener.getsockname()[1]))
            run(uvicorn.Server(configured(engine, settings, root)), listener)
        console.print("Stopped.", highlight=False)


def leave_out() -> None:
    """Leave what is there now, and stays, out of collecting garbage: to look through it takes up to a second, in which no token comes."""
    gc.collect()
    gc.freeze()


def settings_of(job: ServeJob) -> Settings:
    """The server's settings. Raises ServeError where a key cannot be read or used."""
    limits = Limits(
        requests=job.max_requests, answers=job.max_waiting, new_tokens=job.max_new_tokens, seconds=job.timeout,
        drain_seconds=job.drain,
    )  # fmt: skip
    return Settings(
        name=job.name or served_name(job.base), host=job.host, port=job.port, api_key=key_of(job.api_key_file, API_KEY),
        admin_key=key_of(job.admin_key_file, ADMIN_KEY), hosts=job.allow_host, limits=limits,
    )  # fmt: skip


def served_name(base: str) -> str:
    """What a base is called: a folder by its own name, all else as it was given."""
    path = Path(base).expanduser()
    return path.resolve().name if path.exists() else base


def key_of(file: str | None, variable: str) -> str:
    """A key from a file, else from the environment; "" where there is none. Raises ServeError where the file cannot be read."""
    if file is None:
        return os.environ.get(variable, "").strip()
    try:
        return Path(file).expanduser().read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ServeError(f"no key can be read from {file}: {getattr(error, 'strerror', None) or 'it is no text'}") from error


@contextmanager
def bound(host: str, port: int) -> Iterator[socket.socket]:
    """A socket at an address, nobody else's. Raises ServeError where it cannot be had."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP) as listener:  # asyncio sends at once where it reads TCP here
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise ServeError(f"cannot listen on {host} port {port}: {reason}; choose another with --host and --port") from error
        yield listener


def register(engine: Engine, root: Root | None, base: str) -> list[str]:
    """Make all adapters of the root known; what is wrong with those that are left out, a sentence each."""
    left_out = []
    for name in [] if root is None else root.names():
        try:
            if name == base:
                raise ServeError(f"the adapter {name!r} has the base's name: rename its folder, or the base with --name")
            assert root is not None
            engine.register(name, root.folder(name))
        except ServeError as error:
            left_out.append(str(error))
    return left_out


def configured(engine: Engine, settings: Settings, root: Root | None) -> uvicorn.Config:
    """The HTTP server's own settings."""
    logs.to()
    return uvicorn.Config(
        create_app(engine, settings, root), log_config=None, access_log=False, server_header=False, proxy_headers=False, ws="none",
        http=patient(settings.limits.head_seconds), lifespan="off", limit_concurrency=settings.limits.connections,
        timeout_graceful_shutdown=max(1, int(settings.limits.drain_seconds)),
    )  # fmt: skip


def run(server: uvicorn.Server, listener: socket.socket) -> None:
    """Run until a signal. The server raises the signal again when all is finished: it was for the server, and ends nothing else."""
    before = {number: signal.signal(number, lambda *_: None) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        server.run(sockets=[listener])
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
