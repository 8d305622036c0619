"""Desk: what all endpoints share: the engine, the folder of adapters, the settings, and what is under way."""

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from graft import formats
from graft.errors import ServeError
from graft.serve.answers import Usage
from graft.serve.engine import Engine
from graft.serve.http.asking import Asking
from graft.serve.http.gate import Gate
from graft.serve.http.prompts import Prompts
from graft.serve.http.refusals import Refused
from graft.serve.http.replies import Model, PromptDetails, Used
from graft.serve.http.settings import Settings
from graft.serve.http.spelling import Spelling
from graft.serve.root import Root
from graft.serve.shelf import Served


@dataclass
class Desk:
    """One server's. `root` is None where no folder of adapters was named."""

    engine: Engine
    settings: Settings
    root: Root | None = None
    created: int = field(default_factory=lambda: int(time.time()))

    def __post_init__(self) -> None:
        self.gate = Gate(self.settings.limits)
        self.pool = ThreadPoolExecutor(
            self.settings.limits.requests, "graft-http"
        )  # a thread for each that may have to wait for its adapter
        self.prompts = Prompts(self.engine)
        self.spelling = Spelling(self.engine.tokenizer)
        self.announced: dict[Path, str] = {}

    def adapter(self, model: str) -> str | None:
        """The adapter that a request's `model` means; None for the base. Raises Refused where there is none."""
        if model == self.settings.name:
            return None
        if not self.engine.library.knows(model):
            self.engine.tallies.refused(model, known=False)
            known = ", ".join([self.settings.name, self.engine.library.known()])
            raise Refused(404, f"no model {model[:200]!r} is served here: there are {known}", code="model_not_found", param="model")
        return model

    def asking(self, model: str, answers: int, facts: dict[str, Any]) -> Asking:
        """A request for so many answers. Raises Refused where there is no such model, or too much is under way."""
        adapter = self.adapter(model)
        facts["model"] = model
        hidden = "" if self.root is None else str(self.root.path)
        return Asking(self.engine, self.settings.limits, adapter, self.gate.enter(answers), self.pool, facts, hidden)

    def base(self) -> Model:
        """The base, as it is listed."""
        weights = sum(value.numel() * value.element_size() for value in self.engine.model.parameters())
        return self.model(Served(self.settings.name, "", 0, weights, 0, 0), None)

    def listed(self, one: Served) -> Model:
        """An adapter, as it is listed."""
        return self.model(one, one.name)

    def model(self, one: Served, adapter: str | None) -> Model:
        """What is known of one."""
        loaded = adapter is None or bool(one.methods)
        folder = self.engine.library.folders.get(one.name)
        limits = self.engine.limits
        return Model(
            id=one.name,
            created=self.created,
            parent=None if adapter is None else self.settings.name,
            methods=one.methods or self.methods(folder) or None,
            virtual_tokens=one.virtual if loaded else None,
            bytes=one.bytes if loaded else size(folder),
            loaded=loaded,
            on_device=one.slot is not None,
            chat=self.prompts.speaks(adapter),
            max_model_len=min(limits.context, limits.cached),
        )

    def methods(self, folder: Path | None) -> str:
        """The methods that a folder's config names, looked up once."""
        if folder is not None and folder not in self.announced:
            self.announced[folder] = formats.announced(folder)
        return "" if folder is None else self.announced[folder]

    def ready(self, adapter: str | None) -> None:
        """Check the folder of an adapter that the engine is about to read. Raises ServeError."""
        if adapter is not None and self.root is not None and not self.engine.library.served(adapter).methods:
            self.root.folder(adapter)

    def load(self, name: str) -> Model:
        """Read an adapter of the root, in place of what has its name. Raises ServeError."""
        if self.root is None:
            raise ServeError("no adapter can be loaded: the server was started without a folder of adapters (--adapters)")
        if name == self.settings.name:
            raise ServeError(f"{name!r} is the base's name: rename the adapter's folder")
        served = self.engine.load(name, self.root.folder(name))
        self.announced.clear()
        return self.listed(served)

    def unload(self, name: str, *, cancel: bool) -> None:
        """Forget an adapter. Raises ServeError."""
        self.engine.unload(name, cancel=cancel)


def used(usage: Usage) -> Used:
    """A usage as it is told."""
    prompt = usage.prompt + usage.virtual
    return Used(
        prompt_tokens=prompt,
        completion_tokens=usage.completion,
        total_tokens=usage.total,
        prompt_tokens_details=PromptDetails(virtual_tokens=usage.virtual),
    )


def size(folder: Path | None) -> int | None:
    """The bytes of the files in a folder; None where it is gone."""
    try:
        return None if folder is None else sum(file.stat().st_size for file in folder.iterdir() if file.is_file())
    except OSError:
        return None
