"""Root: the one folder that adapters to be served come from, each a folder in it whose name is the adapter's.

    root/NAME/adapter_config.json, adapter_model.safetensors, ...

A name is a name and never a path: what it leads to lies in the root itself. Nothing there may be a link, be it the adapter's folder or a
file in it, since a link leads out; nothing is larger than an adapter is. What the files say is checked where they are read (graft.formats).
"""

import os
import stat
from pathlib import Path

from graft.errors import ServeError, UnknownAdapter
from graft.formats.folder import CONFIG
from graft.serve.shelf import check_name

MOST_BYTES = 4 << 30  # of one adapter's files
MOST_FILES = 100
MOST_ADAPTERS = 10_000


class Root:
    """Adapters by name in one folder."""

    def __init__(self, folder: str | Path, most_bytes: int = MOST_BYTES) -> None:
        """Raises ServeError where there is no such folder."""
        self.path, self.most_bytes = Path(folder).expanduser().resolve(), most_bytes
        if not self.path.is_dir():
            raise ServeError(f"there is no folder {folder} to take adapters from")
        if (self.path / CONFIG).is_file():
            raise ServeError(f"{folder} is an adapter itself: name the folder that it lies in, {self.path.parent}")

    def names(self) -> list[str]:
        """The names of all folders that hold an adapter's config, sorted; links too, of which `folder` says what is wrong.

        Raises ServeError where there are too many.
        """
        found = []
        with os.scandir(self.path) as entries:
            for entry in entries:
                if entry.is_dir() and (self.path / entry.name / CONFIG).is_file():
                    found.append(entry.name)
        if len(found) > MOST_ADAPTERS:
            raise ServeError(f"{self.path} holds {len(found)} adapters, and at most {MOST_ADAPTERS} are served: take another folder")
        return sorted(found)

    def folder(self, name: str) -> Path:
        """The folder of an adapter. Raises UnknownAdapter, or ServeError where it is not a plain folder of plain files in the root."""
        check_name(name)
        folder, what = self.path / name, f"the adapter {name!r} cannot be served"
        if folder.is_symlink():
            raise ServeError(f"{what}: its folder is a link, which may lead out of {self.path}: put a copy there")
        if not (folder / CONFIG).is_file():
            raise UnknownAdapter(f"no adapter {name!r} is here: there is no {CONFIG} in {folder}")
        if folder.resolve().parent != self.path:
            raise ServeError(f"{what}: it does not lie in {self.path}")
        size = 0
        for number, file in enumerate(os.listdir(folder)):
            found = (folder / file).lstat()
            if stat.S_ISLNK(found.st_mode):
                raise ServeError(f"{what}: {file[:100]!r} in its folder is a link, which may lead out of it: put a copy there")
            if not (stat.S_ISREG(found.st_mode) or stat.S_ISDIR(found.st_mode)):
                raise ServeError(f"{what}: {file[:100]!r} in its folder is no plain file")
            size += found.st_size if stat.S_ISREG(found.st_mode) else 0
            if number >= MOST_FILES or size > self.most_bytes:
                raise ServeError(f"{what}: its folder holds more than {MOST_FILES} files or {self.most_bytes >> 20} MiB")
        return folder
