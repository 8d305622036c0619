"""`python -m graft.cli` is `graft`."""

from graft.cli import main

main()
