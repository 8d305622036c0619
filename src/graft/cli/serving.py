"""Commands that serve."""

from typing import Annotated

import typer

from graft.cli.options import Dtype, Nf4
from graft.cli.root import err

app = typer.Typer()


@app.command()
def serve(
    context: typer.Context,
    base: Annotated[str, typer.Argument(help="Hub id, local folder, .gguf file, or the alias smollm2.")],
    adapters: Annotated[str | None, typer.Option(help="Folder that holds adapters, a folder each; none when left out.")] = None,
    name: Annotated[str | None, typer.Option(help="What the base is called as a request's model; its own name when left out.")] = None,
    host: Annotated[str, typer.Option(help="Address to listen on; any but this machine's own needs an API key.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on; 0 for any that is free.")] = 8000,
    api_key_file: Annotated[str | None, typer.Option(help="File with the key that every request needs; else GRAFT_API_KEY.")] = None,
    admin_key_file: Annotated[str | None, typer.Option(help="File with the key to load and unload adapters; else GRAFT_ADMIN_KEY.")] = None,
    allow_host: Annotated[list[str], typer.Option(help="A name by which the server may be called too; may be repeated.")] = [],  # noqa: B006
    slots: Annotated[int, typer.Option(help="Adapters on the device at a time.")] = 8,
    cached_tokens: Annotated[int | None, typer.Option(help="Tokens whose keys and values are held; what fits when left out.")] = None,
    batch_tokens: Annotated[int | None, typer.Option(help="Tokens a step.")] = None,
    batch_requests: Annotated[int | None, typer.Option(help="Answers a step.")] = None,
    host_memory: Annotated[str | None, typer.Option(help="Memory for adapters that wait, such as 8GB; any when left out.")] = None,
    max_new_tokens: Annotated[int, typer.Option(help="Most tokens of an answer, whatever is asked for.")] = 4096,
    max_requests: Annotated[int, typer.Option(help="Most requests under way; more are refused (429).")] = 256,
    max_waiting: Annotated[int, typer.Option(help="Most answers under way or waiting; more are refused (429).")] = 1024,
    timeout: Annotated[float, typer.Option(help="Seconds until an answer must be whole.")] = 600.0,
    drain: Annotated[float, typer.Option(help="Seconds that what runs gets to finish when the server is told to stop.")] = 60.0,
    nf4: Nf4 = False,
    dtype: Dtype = "auto",
) -> None:
    """Serve a base and its adapters together, by OpenAI's API, with a playground page."""
    from graft.serve.extra import require

    require()
    from graft.plan.cards import bytes_of
    from graft.serve.http.launch import ServeJob, serve_job

    given = {"allow_host": tuple(allow_host), "host_memory": None if host_memory is None else bytes_of(host_memory)}
    serve_job(ServeJob(**context.params | given), err)
