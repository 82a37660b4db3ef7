"""Bundle in, facts or another bundle out: `verify`, `inspect`, `cut`, `mush`. No base is loaded."""

import json
from pathlib import Path
from typing import Annotated

import typer

from tinylora.commands.options import AsJson, BundleFile, print_json

app = typer.Typer()


@app.command()
def verify(
    bundle: BundleFile,
    key: Annotated[
        str | None, typer.Option("--key", help="Public key of the run that must have signed it, 64 hex digits.")
    ] = None,
    base: Annotated[
        str | None, typer.Option("--base", help="Base that it must have been made for: a local folder or a hub id.")
    ] = None,
) -> None:
    """Check a bundle: structure, names, shapes, hashes, finite values, signature; with --base, that it fits."""
    from tinylora.bundle import check_fingerprint
    from tinylora.bundle import verify as verify_bundle

    for line in verify_bundle(bundle, key=key):
        typer.echo(line)
    if base is not None:
        from tinylora.base_model import fingerprint_of

        check_fingerprint(bundle, fingerprint_of(base), of=base)
        typer.echo(f"{base}: the base that it was made for")


@app.command()
def inspect(bundle: BundleFile, as_json: AsJson = False) -> None:
    """Tell what is in a bundle."""
    from tinylora.bundle import inspect as inspect_bundle

    found = inspect_bundle(bundle)
    if as_json:
        print_json(found)
        return
    for key, value in found.items():
        typer.echo(f"{key}: {value if isinstance(value, str | int | float) else json.dumps(value, default=str)}")


@app.command()
def cut(
    bundle: BundleFile,
    rank: Annotated[int, typer.Option("--rank", min=1, help="Rows of every adapter that are kept.")],
    out: Annotated[Path, typer.Option("--out", help="Bundle to write.")],
    ranks: Annotated[str, typer.Option("--ranks", help="Other ranks, such as mlp.up_proj=4,mlp.down_proj=2.")] = "",
    force: Annotated[bool, typer.Option("--force", help="Cut plain LoRAs too: expect them to be bad.")] = False,
) -> None:
    """Cut the nested adapters of a bundle to a lower rank; no training, no base."""
    from tinylora.adapters.spec import parse_ranks
    from tinylora.derive import cut_file

    typer.echo(cut_file(bundle, out, rank=rank, ranks=parse_ranks(ranks), is_forced=force))


@app.command()
def mush(
    bundle: BundleFile,
    out: Annotated[Path, typer.Option("--out", help="Bundle to write.")],
    how: Annotated[str, typer.Option("--how", help="uniform: the mean of the leaves; concat: their sum.")] = "uniform",
    rank: Annotated[int | None, typer.Option("--rank", help="Compress to it; default: all ranks, exact.")] = None,
    leaves: Annotated[str | None, typer.Option("--leaves", help="Such as 00,01; default: all trained ones.")] = None,
) -> None:
    """Mix several leaves of a bundle into a bundle of one adapter without routing."""
    from tinylora.derive import mush_file

    chosen = None if leaves is None else [leaf.strip() for leaf in leaves.split(",")]
    typer.echo(mush_file(bundle, out, how=how, rank=rank, leaves=chosen))
