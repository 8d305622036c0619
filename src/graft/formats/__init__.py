"""Reading and writing adapters."""

from pathlib import Path
from collections.abc import Sequence
from graft.adapter import Adapter
from graft.site import Site


def save(adapter: Adapter, folder: Path, sites: Sequence[Site]) -> None:
    raise NotImplementedError
