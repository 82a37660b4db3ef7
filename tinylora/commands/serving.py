"""Which leaf a text belongs to: `route`; and in front of a server that has them all: `route-proxy`. No forward pass."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from tinylora.command_line import ending
from tinylora.commands.options import AsJson, BundleBase, BundleFile, PolicyText, base_for, print_json

app = typer.Typer()
CheckBase = Annotated[
    bool, typer.Option("--check-base", help="Compare all weights of the base, not its tokenizer and widths alone.")
]


@app.command(epilog=ending("tinylora route bundle.safetensors 'SELECT name FROM t'", 2, 3, 4, 5))
def route(
    bundle: BundleFile,
    text: Annotated[
        str | None, typer.Argument(metavar="TEXT", help="The text; default: --in, else standard input.")
    ] = None,
    file: Annotated[Path | None, typer.Option("--in", help="File with the text.")] = None,
    base: BundleBase = None,
    policy: PolicyText = "hard",
    top: Annotated[int, typer.Option("--top", min=1, help="Leaves that are shown.")] = 16,
    check_base: CheckBase = False,
    as_json: AsJson = False,
) -> None:
    """Show a text's way through the tree: each gate, the probabilities of leaves, what their workers said of theirs."""
    from tinylora.routing.decision import Policy
    from tinylora.text_router import TextRouter, report, report_lines

    wanted = Policy.parse(policy)
    read = text if text is not None else _read(file)
    way = TextRouter.open(bundle, base_for(bundle, base), check_base=check_base).way(read, wanted)
    found = report(way, wanted, n_leaves=top)
    if as_json:
        print_json(found)
        return
    for line in report_lines(found):
        typer.echo(line)


@app.command(
    "route-proxy",
    epilog=ending("tinylora route-proxy bundle.safetensors --upstream http://127.0.0.1:8000", 2, 4, 5, 6),
)
def route_proxy(
    bundle: BundleFile,
    upstream: Annotated[str, typer.Option("--upstream", help="OpenAI-compatible server that has the leaves.")],
    base: BundleBase = None,
    host: Annotated[str, typer.Option("--host", help="Address to listen at; others than this one need trust.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="Port to listen at; 0: a free one.")] = 8001,
    name: Annotated[str, typer.Option("--name", help="Model name by which the tree is asked for.")] = "tree",
    base_model: Annotated[
        str, typer.Option("--base-model", help="What the server calls the base; default: it is asked.")
    ] = "",
    timeout_s: Annotated[float, typer.Option("--timeout", min=1, help="Longest silence of the server, seconds.")] = 600,
    max_body_mib: Annotated[float, typer.Option("--max-body-mib", min=0.001, help="Largest request.")] = 16,
    check_base: CheckBase = False,
) -> None:
    """Choose a leaf for each request, and pass it to a server such as vLLM as model "leaf-PATH"; until stopped."""
    from tinylora.proxy.serving import Place, serve
    from tinylora.text_router import TextRouter

    place = Place(host=host, port=port, name=name, upstream=upstream, base_model=base_model)
    place.check()
    router = TextRouter.open(bundle, base_for(bundle, base), check_base=check_base)
    serve(router, place, timeout_s=timeout_s, max_body_bytes=int(max_body_mib * 2**20), say=typer.echo)


def _read(file: Path | None) -> str:
    from tinylora.errors import DataError

    try:
        return sys.stdin.buffer.read().decode(errors="replace") if file is None else file.read_text("utf-8", "replace")
    except OSError as error:
        raise DataError(f"{file}: cannot be read: {error.strerror or error}") from None
