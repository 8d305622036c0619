"""The command that talks."""

import os
from pathlib import Path
from typing import Annotated

import typer

from graft.cli.options import Dtype, Nf4
from graft.cli.root import err, out

app = typer.Typer()


@app.command()
def chat(
    base: Annotated[str | None, typer.Argument(help="A base to run in this process; a running server is asked when left out.")] = None,
    url: Annotated[str, typer.Option(help="The server's URL.")] = "http://127.0.0.1:8000",
    adapters: Annotated[Path | None, typer.Option(help="With BASE: a folder of adapters, each in a folder of its name.")] = None,
    adapter: Annotated[str, typer.Option(help="The adapter to begin with; the base when left out.")] = "",
    api_key_env: Annotated[str, typer.Option(help="The environment variable that holds the server's API key.")] = "GRAFT_API_KEY",
    nf4: Nf4 = False,
    dtype: Dtype = "auto",
) -> None:
    """Chat in the terminal, switching between adapters in the middle; /help lists the commands."""
    if base is not None:
        from graft.chat.local import chat_with_base

        err.print(f"Loading {base} ...", style="dim", highlight=False)
        return chat_with_base(base, adapters, out, adapter=adapter, nf4=nf4, dtype=dtype)
    from graft.chat.remote import Remote
    from graft.chat.terminal import chat as talk

    return talk(Remote(url, os.environ.get(api_key_env, "")), out, adapter)
