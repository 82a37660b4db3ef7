"""A program's page: every command with usage, arguments, options, exit codes and an example."""

import re
from collections.abc import Iterator
from pathlib import PurePath
from typing import Any

import click
import typer

from tests.docs.reference.markdown import anchor, block, code, page, prose, table
from tinylora.command_line import command_of

_ENDING = re.compile(r"(\d+) (.*)", re.DOTALL)
_KINDS = {"text": "text", "integer": "number", "float": "number", "path": "file", "boolean": "switch"}


def walk(app: typer.Typer, name: str) -> Iterator[tuple[str, click.Command]]:
    """Every command and group of a program by the words that call it, the program itself first."""

    def below(words: str, command: click.Command) -> Iterator[tuple[str, click.Command]]:
        yield words, command
        for verb, inner in getattr(command, "commands", {}).items():
            if not inner.hidden:
                yield from below(f"{words} {verb}", inner)

    yield from below(name, command_of(app))


def program_page(app: typer.Typer, name: str) -> str:
    """The page of one program."""
    (_, program), *commands = walk(app, name)
    endings, example = read_epilog(program)
    rows = [
        (f"[{code(words.removeprefix(name).strip())}](#{anchor(words)})", prose(summary(command)))
        for words, command in commands
        if not is_group(command)
    ]
    return page(
        name,
        prose(program.help or ""),
        "Every command answers to `--help`. What is data goes to stdout, talk to stderr. All exit codes stand in "
        "[Errors](errors.md#exit-codes).",
        table(("command", "what it does"), rows),
        _options(program),
        _tail(endings, example),
        *(_section(words, command) for words, command in commands),
    )


def _section(words: str, command: click.Command) -> str:
    endings, example = read_epilog(command)
    parts = [
        f"## {words}",
        "\n\n".join(prose(paragraph) for paragraph in (command.help or "").split("\n\n")),
        block(usage(words, command)),
        _arguments(command),
        _options(command),
        _tail(endings, example),
    ]
    return "\n\n".join(part for part in parts if part)


def is_group(command: click.Command) -> bool:
    """Whether a command only has others below it, and does nothing alone."""
    return hasattr(command, "commands") and not getattr(command, "invoke_without_command", False)


def summary(command: click.Command) -> str:
    """The first sentence or paragraph of its help."""
    return (command.help or "").strip().partition("\n\n")[0]


def usage(words: str, command: click.Command) -> str:
    """The line that shows how a command is called."""
    pieces = [words]
    if any(isinstance(parameter, click.Option) and not parameter.hidden for parameter in command.params):
        pieces.append("[OPTIONS]")
    pieces += [_metavar(parameter) for parameter in command.params if isinstance(parameter, click.Argument)]
    if hasattr(command, "commands"):
        pieces.append("COMMAND [ARGS]...")
    return " ".join(pieces)


def _metavar(argument: click.Argument) -> str:
    name = (argument.metavar or argument.name or "").strip("[]")
    return name if argument.required else f"[{name}]"


def read_epilog(command: click.Command) -> tuple[list[tuple[str, str]], str]:
    """Exit codes with their meanings, and the example, as an epilog says them."""
    text = " ".join((command.epilog or "").split())
    codes, _, example = text.partition("Example: ")
    listed = codes.strip().removeprefix("Exit codes:").strip().rstrip(".")
    found = (_ENDING.fullmatch(entry.strip()) for entry in re.split(r"[;.] (?=\d+ )", listed) if entry)
    return [(match[1], match[2].strip()) for match in found if match], example.strip()


def _arguments(command: click.Command) -> str:
    rows = [
        (code(_metavar(parameter)), prose(getattr(parameter, "help", None) or ""))
        for parameter in command.params
        if isinstance(parameter, click.Argument)
    ]
    return table(("argument", "meaning"), rows) if rows else ""


def _options(command: click.Command) -> str:
    rows = [
        (_names(option), _kind(option), _default(option), prose(option.help or ""))
        for option in command.params
        if isinstance(option, click.Option) and not option.hidden
    ]
    return table(("option", "value", "default", "meaning"), rows) if rows else ""


def _names(option: click.Option) -> str:
    names = ", ".join(code(name) for name in (*option.opts, *option.secondary_opts))
    variable = f"<br>variable {code(option.envvar)}" if option.envvar else ""
    return names + variable


def _kind(option: click.Option) -> str:
    kind = option.type
    if option.is_flag:
        return "switch"
    if isinstance(kind, click.Choice):
        return ", ".join(code(getattr(choice, "value", choice)) for choice in kind.choices)
    told = code(option.metavar) if option.metavar else _KINDS.get(kind.name.split(" ")[0], kind.name)
    low, high = getattr(kind, "min", None), getattr(kind, "max", None)
    if low is not None or high is not None:
        told = "number" + (f" from {low}" if low is not None else "") + (f" to {high}" if high is not None else "")
    return ("required: " if option.required else "") + told


def _default(option: click.Option) -> str:
    """What holds without the option; a place on this machine is told by the help's own words."""
    value: Any = option.default
    if option.required or value is None or value is False or value == "" or not _is_plain(value):
        return ""
    return code(getattr(value, "value", value))


def _is_plain(value: Any) -> bool:
    is_place = isinstance(value, str | PurePath) and PurePath(value).is_absolute()
    return isinstance(value, str | int | float | PurePath) and not is_place


def _tail(endings: list[tuple[str, str]], example: str) -> str:
    parts = []
    if endings:
        told = (f"* [{number}](errors.md#exit-{number}): {prose(meaning)}" for number, meaning in endings)
        parts.append("Exit codes:\n\n" + "\n".join(told))
    if example:
        parts.append("Example:\n\n" + block(example))
    return "\n\n".join(parts)
