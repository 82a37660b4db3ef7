"""Command lines that stand in files, read by the programs' own parsers without being run."""

from collections.abc import Sequence

import click
import typer
from tinylora_coordinator.cli import app as coordinator_app
from tinylora_worker.cli import app as worker_app

PROGRAMS = {"tinylora-coordinator": coordinator_app, "tinylora-worker": worker_app}


def parse(words: Sequence[str]) -> dict[str, object]:
    """What the last verb of a command line would be called with.

    Raises:
        click.UsageError: The program has no such verb, the verb no such option, or an argument is missing.
    """
    program, *rest = words
    command = typer.main.get_command(PROGRAMS[program])
    while isinstance(command, click.Group):
        if not rest or rest[0] not in command.commands:
            raise click.UsageError(f"{' '.join(words)}: no such verb")
        command = command.commands[rest.pop(0)]
    return command.make_context(program, rest).params
