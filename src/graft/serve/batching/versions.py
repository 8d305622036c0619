"""The minor versions of transformers whose private parts are known here, and what differs between them."""

from typing import NamedTuple

import transformers

from graft.errors import ServeError

KNOWN = ("5.17", "5.24")


class Names(NamedTuple):
    """What is called differently in the minor versions."""

    page: str
    wake: str
    complete: str
    paged: str  # before the attention's name


NAMES = {
    "5.17": Names("block_size", "_has_new_requests", "mark_shareable_blocks_as_complete", "paged|"),
    "5.24": Names("page_size", "_wake_up_loop", "mark_complete_blocks", ""),
}


def minor(version: str = transformers.__version__) -> str:
    """The minor version of transformers. Raises ServeError where its private parts are not known."""
    found = ".".join(version.split(".")[:2])
    if found not in NAMES:
        raise ServeError(
            f"serving rides on private parts of transformers that are known for {' and '.join(KNOWN)}, and this is {version}: "
            f"pip install 'transformers=={KNOWN[-1]}.*'"
        )
    return found
