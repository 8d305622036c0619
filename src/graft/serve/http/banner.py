"""What a server says of itself when it starts."""

from rich.panel import Panel
from rich.table import Table

from graft.serve.engine import Engine
from graft.serve.http.settings import Settings
from graft.serve.root import Root

NAMED = 8  # adapters named


def banner(engine: Engine, settings: Settings, root: Root | None, left_out: list[str], port: int) -> Panel:
    """The base, the adapters, the address, who may ask, and how much fits."""
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    model, room, names = engine.model, engine.room, [one.name for one in engine.adapters()]
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim")
    table.add_column(overflow="fold")
    rows = {
        "base": f"{settings.name}  ({str(model.dtype).removeprefix('torch.')} on {model.device})",
        "adapters": f"{some(names)}{'' if root is None else f'  in {root.path}'}",
        "address": f"http://{host}:{port}/v1",
        "playground": f"http://{host}:{port}/",
        "API key": "needed" if settings.api_key else "none: this machine alone can ask",
        "admin key": "set: adapters can be loaded and unloaded" if settings.admin_key else "none: adapters stay as they are",
        "room": f"{room.requests} requests a batch, {room.cached:,} tokens in the cache, {engine.slots.count} adapters on the device",
    }
    for name, value in rows.items():
        table.add_row(name, value)
    for one in left_out[:NAMED]:
        table.add_row("left out", one)
    if len(left_out) > NAMED:
        table.add_row("left out", f"{len(left_out) - NAMED} more")
    return Panel(table, title="graft serve", title_align="left", expand=False)


def some(names: list[str]) -> str:
    """How many there are, and the first by name."""
    if not names:
        return "none"
    shown = ", ".join(names[:NAMED]) + (", ..." if len(names) > NAMED else "")
    return f"{len(names)}: {shown}"
