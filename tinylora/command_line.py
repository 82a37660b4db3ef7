"""How every command of ours ends: with a documented exit code and one sentence, never with a traceback.

`EXIT_CODES` says what each code means; `tinylora.errors` which error ends with which.
"""

import errno
import sys
from collections.abc import Callable, Mapping
from typing import Annotated, get_type_hints

import click
import typer
import typer.main
from typer.models import ArgumentInfo

import tinylora
from tinylora.errors import Explanation, StorageError, TinyLoraError

INTERRUPTED = 130
EXIT_CODES: Mapping[int, Explanation] = {
    0: Explanation("Done.", "Nothing to do. A worker also ends so when its owner told it to leave."),
    1: Explanation(
        "What was asked for was found not to hold, or something failed that has no class of its own.",
        "Read the sentence. `selfcheck` ends so when a check fails, `diff --exit-code` when the files differ. A "
        "traceback is a bug: please report it.",
    ),
    2: Explanation(
        "An option, an argument or a setting is unknown, out of range, or contradicts another one.",
        "The sentence names it and says what was expected; `--help` lists what there is.",
    ),
    3: Explanation(
        "Text is missing, empty, too small, binary, or a line of it cannot be read; or there is nothing yet to make a "
        "bundle of.",
        "Name other files, or repair the line that is named; `tinylora-worker data check` looks at all of them.",
    ),
    4: Explanation(
        "The base model was not found, is no causal language model, is not the one that is needed, or does not fit "
        "into memory.",
        "Give the right one with `--base`, a folder or a hub id; for memory: `--quantise nf4`, a smaller batch, "
        "another machine.",
    ),
    5: Explanation(
        "A bundle is truncated, altered, not signed by the key that was asked for, or of an unknown format.",
        "Fetch it again from the run itself. [Bundle rules](#bundle-rules) say what each refusal means.",
    ),
    6: Explanation(
        "Nobody answers at an address, or a port is taken.",
        "Check address, network and whether the other side runs; for a taken port choose another one with `--port`.",
    ),
    7: Explanation(
        "The other side answered, and refused: a wrong token, a removed worker, another CA or protocol than expected.",
        "The sentence says why; [Joining](#joining-refused) has each reason with its cure.",
    ),
    8: Explanation(
        "A file or folder cannot be read or written, the disk is full, or a ledger is locked or was altered.",
        "Free some space, mend the permissions, or stop the other process that holds it; an altered ledger is restored "
        "from a backup.",
    ),
    9: Explanation(
        "A document or tensors that came over the network, or from a file, break their contract.",
        "Install the version that the other side runs; if it is the same already, tell whoever runs it.",
    ),
    INTERRUPTED: Explanation(
        "Interrupted by Ctrl-C; of a worker or a coordinator, by a second one.",
        "Call it again: what was written is whole.",
    ),
}
"""Every code that a command ends with, as the reference explains it (docs/reference/errors.md)."""


_ENDS = {
    0: "done",
    1: "it was found not to be so",
    2: "an option or an argument makes no sense",
    3: "a text is missing or cannot be read",
    4: "the base cannot be loaded, or is another one",
    5: "a bundle is damaged, or is none",
    6: "an address cannot be reached or opened",
    8: "a file or folder cannot be written",
    9: "tensors or a document break their contract",
    INTERRUPTED: "interrupted",
}


def ending(example: str, *numbers: int, other: Mapping[int, str] | None = None) -> str:
    """The last lines of a command's help: how it can end, by its exit codes besides 0, and how it is called.

    `other` says what a code means for this command where it is something else than for most.
    """
    meanings = {**_ENDS, **(other or {})}
    told = {number: meanings[number] for number in (0, *numbers)}
    return f"Exit codes: {'; '.join(f'{number} {meaning}' for number, meaning in told.items())}. Example: {example}"


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
    sys.exit(exit_code_of(lambda: command_of(app)(standalone_mode=True)))


def command_of(app: typer.Typer) -> click.Command:
    """The application as click runs it.

    typer below 0.21 gives no help to arguments under click 8.5, which sets the attribute once more behind its back. It
    is put back here.
    """
    command = typer.main.get_command(app)
    _explain_arguments(command)
    return command


def _explain_arguments(command: click.Command) -> None:
    hints = get_type_hints(command.callback, include_extras=True) if command.callback else {}
    for argument in command.params:
        said = getattr(hints.get(argument.name or ""), "__metadata__", ())
        for info in said:
            if isinstance(info, ArgumentInfo) and not getattr(argument, "help", None):
                vars(argument)["help"] = info.help
    for inner in getattr(command, "commands", {}).values():
        _explain_arguments(inner)


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
