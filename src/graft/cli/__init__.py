"""The command line: arguments to one function call each, no logic.

Our own modules are imported inside the commands, and only here, so that `graft --help` needs no torch. One of Graft's own errors is
printed as one sentence and exits with 2, as is the system's (a full disk); Ctrl-C exits with 130.
"""

import os
import sys

from graft.cli import chatting, comparing, delivering, planning, serving, training
from graft.cli.root import app, err, out
from graft.errors import GraftError

__all__ = ["app", "err", "main", "out"]

for part in (comparing, training, delivering, serving, chatting, planning):  # the order of the help
    app.add_typer(part.app)


def main() -> None:
    """Run the command line and exit."""
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # threads that wait sleep: beside other work spinning costs tenfold
    for cache in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):
        os.environ.setdefault(cache, "128")  # a CPU keeps 0.5 MB for each shape in bfloat16, 1,024 twice, and batches have every length
    try:
        app()
    except (GraftError, OSError) as error:
        err.print(f"Error: {error}", style="red", highlight=False, markup=False)
        sys.exit(2)
