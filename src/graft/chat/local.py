"""A base model in this process as what answers, with the adapters of a folder: no server is needed."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from rich.console import Console

from graft.chat.backend import Model, Piece, Prompt
from graft.chat.screen import complain
from graft.chat.terminal import chat
from graft.errors import ServeError
from graft.formats.folder import TEMPLATE
from graft.model.load import dtype_named, load
from graft.serve import Engine, Handle, Room, Sampling
from graft.serve.root import Root

ROOM = Room(cached=16384, batch=512, requests=8)


class Local:
    """An engine, started, that serves the base `name`."""

    def __init__(self, engine: Engine, name: str) -> None:
        self.engine, self.name, self.where = engine, name, "this process"

    def models(self) -> list[Model]:
        """The base and the engine's adapters."""
        template, folders = bool(getattr(self.engine.tokenizer, "chat_template", None)), self.engine.library.folders
        own = {name for name, folder in list(folders.items()) if (folder / TEMPLATE).is_file()}
        found = self.engine.adapters()
        adapters = (Model(one.name, False, one.methods, one.virtual, one.bytes, template or one.name in own) for one in found)
        return [Model(self.name, True, chat=template), *adapters]

    def ask(self, model: str, prompt: Prompt, sampling: dict[str, Any]) -> "LocalStream":
        """An answer; nothing is asked before it is iterated over."""
        values, adapter = sampling | {"stop": tuple(sampling.get("stop", ()))}, None if model == self.name else model
        return LocalStream(lambda: self.engine.submit(prompt, adapter, Sampling(**values)))


class LocalStream:
    """An answer of the engine."""

    def __init__(self, submit: Callable[[], Handle]) -> None:
        self.submit, self.reason, self.cancelled = submit, "", False
        self.handle: Handle | None = None

    def __iter__(self) -> Iterator[Piece]:
        """The pieces as they come; the last holds what had waited for more text. Raises ServeError where the request cannot be or fails."""
        handle = self.handle = self.submit()
        if self.cancelled:
            handle.cancel()
        answer, told = handle.answers[0], 0
        for _ in handle:
            yield Piece(answer.text[told:], len(answer.ids))
            told = len(answer.text)
        self.reason = answer.reason
        yield Piece(answer.text[told:], len(answer.ids))

    def cancel(self) -> None:
        """End it."""
        self.cancelled = True
        if self.handle is not None and not self.reason:
            self.handle.cancel()


def chat_with_base(base: str, folder: Path | None, console: Console, *, adapter: str = "", nf4: bool = False, dtype: str = "auto") -> None:
    """Load a base, register the adapters of a folder, and chat until the user leaves.

    Raises ModelError where the base cannot be loaded, ServeError where it cannot be served or an adapter's name cannot be.
    """
    loaded = load(base, dtype=dtype_named(dtype), nf4=nf4)
    with Engine(loaded.model, loaded.tokenizer, room=ROOM) as engine:
        if folder is not None:
            register_all(engine, Root(folder), console)
        chat(Local(engine, loaded.name), console, adapter)


def register_all(engine: Engine, root: Root, console: Console) -> None:
    """Register all adapters of a folder, and say which cannot be."""
    for name in root.names():
        try:
            engine.register(name, root.folder(name))
        except ServeError as error:
            complain(console, str(error))
