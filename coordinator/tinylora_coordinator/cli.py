"""`tinylora-coordinator`: make a run, serve it, look at it, take its bundle. Verbs import what they need."""

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from tinylora.command_line import run

app = typer.Typer(
    help="Coordinate a TinyLoRA run: one folder, one port.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Folder = Annotated[Path, typer.Argument(metavar="DIR", help="The run's folder.")]


@app.command()
def init(
    folder: Folder,
    base: Annotated[str, typer.Option("--base", help="Base model: a local folder or a hub id.")],
    changes: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="A setting; give it several times.")
    ] = None,
) -> None:
    """Write a run's folder: settings with comments, facts about the base, a join token."""
    from tinylora_coordinator.folder import (
        RunFolder,
        changed,
        check_is_new,
        check_settings,
        parse_changes,
        write_run,
    )

    place = RunFolder(folder)
    check_is_new(place)
    settings = changed(parse_changes(changes or []))
    from tinylora.base_model import load_base  # after the cheap checks: it takes seconds
    from tinylora_coordinator.service import projection_bytes

    loaded = load_base(base).for_run(settings)
    check_settings(settings, loaded.facts)
    write_run(place, settings, loaded.facts, projection_bytes(loaded.routing_feature.projection))
    _say(f"{folder}: a run of depth {settings.depth} on {loaded.facts.base_id}; look at {place.settings_file}, then")
    _say(f"  tinylora-coordinator serve {folder}")


@app.command()
def serve(
    folder: Folder,
    host: Annotated[str, typer.Option(help="Address to listen on. Without TLS, keep to loopback.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 takes a free one.")] = 8443,
) -> None:
    """Serve a run until it is finished; called again, it goes on where it was stopped."""
    from tinylora_coordinator.folder import RunFolder, read_run

    place = RunFolder(folder)
    read_run(place)
    from tinylora.flower import use_home

    use_home(place.flower_home)
    from tinylora_coordinator.service import serve as serve_run

    serve_run(folder, host=host, port=port)


@app.command()
def bundle(
    folder: Folder,
    out: Annotated[Path, typer.Option("--out", help="File to write, *.safetensors.")],
) -> None:
    """Write the run's tree as it stands as one bundle."""
    from tinylora_coordinator.service import bundle as write

    _say(f"{out}: sha256 {write(folder, out)}")


@app.command()
def status(
    folder: Folder,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")] = False,
) -> None:
    """Tell how far a run is, from its ledger; works while it is being served."""
    from tinylora_coordinator.overview import overview

    found = overview(folder)
    typer.echo(json.dumps(found, indent=1, sort_keys=True) if as_json else _as_text(found))


def _as_text(found: dict[str, Any]) -> str:
    lines = [f"run {found['run']}: {found['phase']}"]
    lines += [f"  {node or 'root'}: {steps} of {found['leaf_steps']} steps" for node, steps in found["steps"].items()]
    lines += [
        f"  {row['name'] or row['worker']}: {row['units']} units, {row['tokens']} tokens, holds {_place(row['node'])}"
        for row in found["workers"]
    ]
    refused, expired = found["rejected"]["n"], found["expired"]["n"]
    lines.append(f"  {len(found['rounds'])} router versions, {refused} updates refused, {expired} leases expired")
    return "\n".join(lines)


def _place(node: str | None) -> str:
    return "nothing yet" if node is None else node or "root"


def _say(line: str) -> None:
    print(line, file=sys.stderr)


def main() -> None:
    """Entry point of the `tinylora-coordinator` command."""
    run(app)


if __name__ == "__main__":
    main()
