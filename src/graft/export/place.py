"""Where an export or a merge goes: a new folder that is there whole or not at all."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from graft.errors import AdapterError
from graft.files import atomic_dir


@contextmanager
def new_dir(path: Path) -> Iterator[Path]:
    """A temporary folder that becomes `path` when the block ends. Raises AdapterError, leaving nothing, where the disk refuses it."""
    try:
        with atomic_dir(path) as folder:
            yield folder
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise AdapterError(f"cannot save to {path}: {reason}; nothing was saved") from error
