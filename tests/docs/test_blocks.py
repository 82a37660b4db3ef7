"""Without running them: commands name verbs and options that exist, and what is not run says why."""

import re
import shlex
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import click
import pytest
import typer
from tinylora_coordinator.cli import app as coordinator
from tinylora_worker.cli import app as worker

from tests.docs.reading import ROOT, RUNNABLE, Block, Command, blocks, pages
from tests.docs.shell import pattern
from tinylora.cli import app as core

MOST_NOT_RUN = 40
BLOCKS = [block for page in pages() for block in blocks(page)]
NOT_RUN = [block for block in BLOCKS if block.reason]
PROGRAMS = {"tinylora": core, "tinylora-coordinator": coordinator, "tinylora-worker": worker}


@cache
def program(name: str) -> click.Command:
    return typer.main.get_command(PROGRAMS[name])


def simple_commands(command: Command) -> Iterator[list[str]]:
    """Words of each program called, whatever the shell does between them."""
    text = re.sub(r"<<-?'?(\w+)'?.*?^\1$", "", command.text, flags=re.DOTALL | re.MULTILINE)
    for row in re.sub(r"\\\n", " ", text).splitlines():
        lexer = shlex.shlex(row, posix=True, punctuation_chars="();|&<>")
        lexer.whitespace_split, lexer.commenters = True, "#"
        words: list[str] = []
        for word in [*lexer, ";"]:
            if set(word) <= set("();|&<>"):
                yield words
                words = []
            else:
                words.append(word)


def complaint(words: list[str]) -> str:
    """What is wrong with a call of one of our programs."""
    words = [word for at, word in enumerate(words) if at or "=" not in word]
    if not words or words[0] not in PROGRAMS:
        return ""
    command, name, rest = program(words[0]), words[0], words[1:]
    while isinstance(command, click.Group) and rest and not rest[0].startswith("-"):
        found = command.commands.get(rest[0])
        if found is None:
            # `workers DIR` lists, beside `workers revoke DIR ...`.
            return "" if command.name == "workers" else f"{name}: no verb {rest[0]}"
        command, name, rest = found, f"{name} {rest[0]}", rest[1:]
    options = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
    used = {word.split("=")[0] for word in rest if re.match(r"-[-a-z]", word)} - {"--help", "--version"}
    return "" if used <= options else f"{name}: no option {', '.join(sorted(used - options))}"


@pytest.mark.parametrize("page", pages(), ids=lambda page: str(page.relative_to(ROOT)))
def test_verbs_and_options_exist(page: Path) -> None:
    calls = [
        (block.where, words)
        for block in BLOCKS
        if block.page == page and block.language in ("console", "bash")
        for command in block.written
        for words in simple_commands(command)
    ]
    assert [f"{where}: {wrong}" for where, words in calls if (wrong := complaint(words))] == []


def verbs_of_make() -> set[str]:
    return set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))


def test_verbs_of_make_exist() -> None:
    calls = [
        (block.where, words[1])
        for block in BLOCKS
        for command in block.written
        for words in simple_commands(command)
        if words[:1] == ["make"] and len(words) > 1
    ]
    assert [call for call in calls if call[1] not in verbs_of_make()] == []


def is_there(reference: str) -> bool:
    file, _, test = reference.partition("::")
    path = ROOT / file
    return path.exists() and (not test or re.search(rf"^def {test}\b", path.read_text(), re.MULTILINE) is not None)


@pytest.mark.parametrize("block", NOT_RUN, ids=lambda block: block.where)
def test_what_is_not_run_is_tried_elsewhere(block: Block) -> None:
    named = re.findall(r"[\w/.-]+\.(?:py::test_\w+|md)", block.reason)
    assert named, f"{block.where}: say which test or page tries it: {block.reason!r}"
    assert [reference for reference in named if not is_there(reference)] == []


@pytest.mark.parametrize("page", pages(), ids=lambda page: str(page.relative_to(ROOT)))
def test_tests_that_a_page_names_exist(page: Path) -> None:
    named = re.findall(r"tests/[\w/]+\.py(?:::test_\w+)?", page.read_text(encoding="utf-8"))
    assert [reference for reference in named if not is_there(reference)] == []


def test_few_are_not_run() -> None:
    n_run = len(BLOCKS) - len(NOT_RUN)
    print(f"{n_run} blocks are run, {len(NOT_RUN)} are not")
    assert len(NOT_RUN) <= MOST_NOT_RUN


def test_commands_stand_in_fences() -> None:
    """An indented block is read by nobody here."""
    indented = re.compile(r"^    \$? ?(?:tinylora|make |pip |tinylora-\w+) ?.*", re.MULTILINE)
    wrong = []
    for page in pages():
        text = re.sub(r"^ *(`{3,}).*?^ *\1", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
        wrong += [f"{page.relative_to(ROOT)}: {line}" for line in indented.findall(text)]
    assert wrong == []


def test_fences_say_a_language_that_is_known() -> None:
    """`sh` and `shell` would be played by nobody."""
    wrong = [
        f"{page.relative_to(ROOT)}: {language}"
        for page in pages()
        for language in re.findall(r"^ *`{3,}(\w+)", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
        if language in ("sh", "shell", "shell-session", "zsh", "pycon", "py", "cmd")
    ]
    assert wrong == [], f"commands are written as {', '.join(RUNNABLE)}"


@pytest.mark.parametrize(
    ("shown", "said", "is_like"),
    [
        (["a ... c"], "a b c\n", True),
        (["a ... c"], "a b\nc\n", False),
        (["a", "...", "c"], "a\nx\ny\nc\n", True),
        (["a", "...", "c"], "a\nc\n", True),
        (["..."], "", True),
        (["a"], "a\nb\n", False),
        (["a (b)*"], "a (b)*\n", True),
    ],
)
def test_what_is_shown(shown: list[str], said: str, is_like: bool) -> None:
    assert (pattern(shown).fullmatch(said) is not None) == is_like
