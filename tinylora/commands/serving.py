"""Which leaf a text belongs to: `route`. No forward pass, and of the base only tokenizer and embeddings."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from tinylora.commands.options import DEMO_BASE, AsJson, BaseWhere, BundleFile, PolicyText, print_json

app = typer.Typer()
CheckBase = Annotated[
    bool, typer.Option("--check-base", help="Compare all weights of the base, not its tokenizer and widths alone.")
]


@app.command()
def route(
    bundle: BundleFile,
    text: Annotated[str | None, typer.Argument(metavar="TEXT", help="Default: --in, else standard input.")] = None,
    file: Annotated[Path | None, typer.Option("--in", help="File with the text.")] = None,
    base: BaseWhere = DEMO_BASE,
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
    way = TextRouter.open(bundle, base, check_base=check_base).way(read, wanted)
    found = report(way, wanted, n_leaves=top)
    if as_json:
        print_json(found)
        return
    for line in report_lines(found):
        typer.echo(line)


def _read(file: Path | None) -> str:
    from tinylora.errors import DataError

    try:
        return sys.stdin.buffer.read().decode(errors="replace") if file is None else file.read_text("utf-8", "replace")
    except OSError as error:
        raise DataError(f"{file}: cannot be read: {error.strerror or error}") from None
