"""What the HTTP server needs beyond Graft itself: the extra `serve`."""

from importlib.util import find_spec

from graft.errors import ServeError

PACKAGES = ("fastapi", "uvicorn", "prometheus_client")


def require() -> None:
    """Raise ServeError, which says what to install, where a package of the extra is missing."""
    missing = [name for name in PACKAGES if find_spec(name) is None]
    if missing:
        raise ServeError(f"graft serve needs {', '.join(missing)}: pip install 'graft-peft[serve]'")
