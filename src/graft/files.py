"""Files that are whole or absent: written under a temporary name in the same folder, synced, then renamed over the old one."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def no_place(path: Path, *, beside: bool = True) -> str:
    """Why no folder can be written at `path`, as a sentence; "" where one can. `beside` says that it is made beside it and exchanged."""
    if path.exists() and not path.is_dir():
        return f"{path} is a file: name a folder"
    there = next(folder for folder in (path.absolute(), *path.absolute().parents)[beside:] if folder.exists())
    try:
        os.rmdir(tempfile.mkdtemp(prefix=f".{path.name}.", dir=there))
    except OSError as error:
        return f"{path} cannot be {'written to' if path.exists() else 'made'}: {error.strerror} ({there})"
    return ""


def atomic_write(path: Path, data: bytes | str) -> None:
    """Write `data` to `path` so that a reader sees the old file or the new one, never a part.

    Raises OSError (a full disk, no permission); the old file is then untouched and the temporary one is gone.
    """
    with atomic_file(path) as tmp:
        tmp.write_bytes(data.encode() if isinstance(data, str) else data)


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a temporary file that takes `path`'s place when the block ends without an error, and is removed on any."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fd, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    os.close(fd)
    tmp = Path(name)
    try:
        yield tmp
        sync_file(tmp)
        os.chmod(tmp, 0o644)
        os.replace(tmp, path)
    except BaseException:
        tmp.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


@contextmanager
def atomic_dir(path: Path) -> Iterator[Path]:
    """Yield a temporary folder that takes `path`'s place when the block ends without an error.

    An existing folder is kept until the new one is complete; on any error it stays and the temporary one is removed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    tmp = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent))
    try:
        yield tmp
        for file in tmp.rglob("*"):
            if file.is_file():
                sync_file(file)
        os.chmod(tmp, 0o755)
        swap(tmp, path)
    except BaseException:
        shutil.rmtree(tmp, ignore_errors=True)
        raise
    sync_folder(path.parent)


def swap(new: Path, path: Path) -> None:
    """Rename folder `new` to `path`; a folder already there is moved aside first and deleted last."""
    if not path.exists():
        os.replace(new, path)
        return
    old = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".old", dir=path.parent))
    try:
        os.replace(path, old / path.name)
    except BaseException:
        old.rmdir()
        raise
    try:
        os.replace(new, path)
    except BaseException:
        os.replace(old / path.name, path)  # where even this fails, the old folder stays in `.old`
        old.rmdir()
        raise
    shutil.rmtree(old, ignore_errors=True)


def sync_file(path: Path) -> None:
    """Flush one file's bytes to the disk."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def sync_folder(path: Path) -> None:
    """Flush a folder's entries, so that a rename in it survives a power cut (a no-op where folders cannot be opened)."""
    if os.name == "posix":
        sync_file(path)
