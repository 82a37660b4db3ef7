"""How every command of ours ends: with a documented exit code and one sentence, never with a traceback.

| code | meaning |
| --- | --- |
| 0 | done |
| 1 | a foreseen failure without a class of its own |
| 2-9 | see `tinylora.errors` |
| 130 | interrupted by Ctrl-C |
"""

import errno
import sys
from collections.abc import Callable
from typing import Annotated

import click
import typer

import tinylora
from tinylora.errors import StorageError, TinyLoraError

INTERRUPTED = 130


def _show_version(context: click.Context, is_asked: bool | None) -> None:
    if is_asked:
        typer.echo(f"{context.find_root().info_name} {tinylora.__version__}")
        raise typer.Exit


Version = Annotated[
    bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
]
"""An option of every program, for its callback."""


def run(app: typer.Typer) -> None:
    """Run a typer application and leave the process with its exit code."""
    sys.exit(exit_code_of(lambda: app(standalone_mode=True)))


def exit_code_of(call: Callable[[], object]) -> int:
    """Call, turn every foreseen error into its sentence on stderr, and return the exit code."""
    try:
        call()
    except SystemExit as ending:  # typer's own: 0, or 2 after a usage message
        return ending.code if isinstance(ending.code, int) else 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    except TinyLoraError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        print(f"error: {error.filename or 'output'}: the disk is full; free some space and try again", file=sys.stderr)
        return StorageError.exit_code
    return 0
