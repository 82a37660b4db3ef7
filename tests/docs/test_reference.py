"""The reference against the code: up to date, whole, and without anything that is not there."""

import ast
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import get_args

import click
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from tinylora_coordinator.dashboard.openapi import FILE as OPENAPI
from tinylora_coordinator.http_errors import HTTP_ERRORS
from tinylora_worker.limits import KEYS
from tinylora_worker.preflight.codes import CODES

from tests.bundle.test_bundle import make, written
from tests.dashboard.fakes import FakeViews
from tests.docs.reference import codes, source
from tests.docs.reference.commands import is_group, read_epilog, walk
from tests.docs.reference.configuration import OF_LIBRARIES, VARIABLES
from tests.docs.reference.documents import DOCUMENTS
from tests.docs.reference.markdown import anchor, code, prose, table
from tests.docs.reference.metrics import exposed_name, families
from tests.docs.reference.pages import ANEW, FOLDER, PAGES, PROGRAMS
from tinylora.bundle import Signer
from tinylora.bundle.rules import BUNDLE_RULES, FILE_RULES, NUMBER_RULES
from tinylora.command_line import EXIT_CODES, INTERRUPTED
from tinylora.config import RunSettings
from tinylora.federation.acceptance import Code
from tinylora.federation.refusals import QUARANTINES, REFUSALS
from tinylora.federation.standing import CLASS_OF
from tinylora.flower.enrolment import JOIN_PATH, JOIN_REFUSALS, RECEIPTS_PATH, REPORT_PATH, STATE_PATH, RefusalCode
from tinylora.flower.link import FLEET_PATHS
from tinylora.flower.receipts import NO_RECEIPT
from tinylora.ledger import tables
from tinylora.protocol.standstill import REASONS, Reason

COMMANDS = [(words, command) for name, app in PROGRAMS.items() for words, command in walk(app, name)]
VERBS = [(words, command) for words, command in COMMANDS if not is_group(command)]


def page(name: str) -> str:
    return (FOLDER / name).read_text(encoding="utf-8")


# --- up to date ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_what_the_code_says(name: str) -> None:
    assert page(name) == PAGES[name](), f"docs/reference/{name} is not what the code says; {ANEW}"


def test_every_page_is_in_the_contents() -> None:
    listed = re.findall(r"^[\w-]+$", page("index.md").partition("{toctree}")[2], flags=re.MULTILINE)
    assert sorted(f"{name}.md" for name in listed) == sorted(
        file.name for file in FOLDER.glob("*.md") if file.stem != "index"
    )


@pytest.mark.parametrize("name", PAGES)
def test_nothing_of_this_machine_is_on_a_page(name: str) -> None:
    text = page(name)
    assert str(Path.home()) not in text and str(source.ROOT) not in text and sys.executable not in text


@pytest.mark.docs
def test_nothing_hangs_on_the_terminal_the_home_or_the_language(tmp_path: Path) -> None:
    """Another width, home and language, and no colours: the same pages, made by a process of its own."""
    names = ("tinylora-worker.md", "configuration.md")
    made = f"from tests.docs.reference.pages import PAGES; print(*(PAGES[name]() for name in {names}))"
    environment = {"COLUMNS": "40", "HOME": str(tmp_path), "LC_ALL": "C.UTF-8", "TERM": "dumb", "FORCE_COLOR": "1"}
    places = {"PYTHONPATH": ":".join(sys.path), "PATH": "/usr/bin:/bin"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", made], env=environment | places, capture_output=True, text=True,
        check=True, cwd=FOLDER.parents[1],
    )  # fmt: skip
    assert done.stdout == f"{' '.join(map(page, names))}\n"


def test_prose_and_anchors_are_as_a_code_host_reads_them() -> None:
    assert prose("needs tinylora\\[quant]; with --json, 2**depth | `a|b`") == (
        "needs tinylora[quant]; with `--json`, 2\\*\\*depth \\| `a\\|b`"
    )
    assert anchor("TL-TOK-002: The token is unknown, or its secret is wrong") == (
        "tl-tok-002-the-token-is-unknown-or-its-secret-is-wrong"
    )
    assert table(("a", "b"), [("1", "")]) == "| a | b |\n| --- | --- |\n| 1 | |" and code("") == ""


# --- commands --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("words", "command"), VERBS, ids=[words for words, _ in VERBS])
def test_a_command_says_what_it_does_how_it_ends_and_how_it_is_called(words: str, command: click.Command) -> None:
    endings, example = read_epilog(command)
    assert (command.help or "").strip(), f"{words}: no help"
    for parameter in command.params:
        assert getattr(parameter, "help", ""), f"{words}: {parameter.name}: no help"
    assert endings and endings[0][0] == "0", f"{words}: the epilog begins with Exit codes: 0 ..."
    assert all(int(number) in EXIT_CODES for number, _ in endings), f"{words}: an exit code that means nothing"
    assert example.startswith(words) or f" {words} " in f" {example} ", (
        f"{words}: the epilog ends with Example: {words} ..."
    )
    assert f"## {words}\n" in page(f"{words.split()[0]}.md")


# --- codes -----------------------------------------------------------------------------------------------------------


def test_exit_codes_are_those_of_the_errors() -> None:
    raised = {kind.exit_code for kind in codes.error_classes().values()}
    assert set(EXIT_CODES) == {0, INTERRUPTED} | raised


def test_refusals_of_updates_joins_receipts_and_workers_are_all_told() -> None:
    assert list(REFUSALS) == list(Code)
    assert set(JOIN_REFUSALS) == set(get_args(RefusalCode))
    assert list(REASONS) == list(Reason)
    constraints = " ".join(str(getattr(found, "sqltext", "")) for found in tables.unit.constraints)
    states = set(re.findall(r"'(\w+)'", constraints))
    assert set(NO_RECEIPT) == (states - {"leased", "accepted", "pending", "dropped", "rejected"}) | {"unknown"}
    assert set(QUARANTINES) == quarantines()
    assert {name.value for name in Code} | {"routing_capture"} == set(CLASS_OF)


def quarantines() -> set[str]:
    """Codes with which a worker is quarantined: what `why_quarantine` returns, and what is emitted directly."""
    standing, decisions = (source.trees()[f"tinylora/federation/{name}.py"] for name in ("standing", "decisions"))
    returned = (node.value for node in ast.walk(standing) if isinstance(node, ast.Return))
    made = (call.args[1:2] for name, call in source.calls(decisions) if name == "Quarantine")
    pairs = (value.elts[:1] for value in returned if isinstance(value, ast.Tuple))
    return {text for first in (*pairs, *made) for text in source.texts(first)}


def test_every_rule_that_a_file_or_numbers_can_break_is_told() -> None:
    told = [*FILE_RULES, *BUNDLE_RULES, *NUMBER_RULES]
    assert len(told) == len(set(told)) and set(told) == source.rules()


def test_every_error_of_an_http_answer_is_told() -> None:
    assert set(HTTP_ERRORS) == set(source.http_errors())


def test_every_code_has_an_anchor_of_its_own_with_cause_and_cure() -> None:
    text = page("errors.md")
    headings = re.findall(r"^### (.*)$", text, flags=re.MULTILINE)
    assert headings == [section.heading for section in codes.all_sections()]
    assert len({anchor(heading) for heading in headings}) == len(headings)
    for part in text.split("\n### ")[1:]:
        assert "\nCause: " in part and "\nCure: " in part, part.partition("\n")[0]
    assert [heading.partition(": ")[0] for heading in headings if heading.startswith("TL-")] == list(CODES)


# --- everything else -------------------------------------------------------------------------------------------------


def test_every_variable_that_is_read_is_told_and_no_other() -> None:
    assert set(VARIABLES) == set(source.variables())
    assert not set(VARIABLES) & set(OF_LIBRARIES)


def test_every_key_and_every_metric_has_a_line() -> None:
    configuration, metrics = page("configuration.md"), page("metrics.md")
    for key in (*RunSettings.model_fields, *KEYS):
        assert f"\n| `{key}` |" in configuration, key
    assert [exposed_name(family) for family in families()] == re.findall(r"^\| `(\w+)` \|", metrics, flags=re.MULTILINE)
    assert FakeViews().state().nodes  # else per-node metrics could not be found


def test_every_field_that_travels_has_a_meaning() -> None:
    rows = re.findall(
        r"^\| (`\w+`) \|.*\| ?(.*?) \|$", page("documents.md").partition("## Limits")[0], flags=re.MULTILINE
    )
    assert not [name for name, meaning in rows if not meaning]
    assert len(rows) == sum(len(model.model_fields) for model in DOCUMENTS)


def test_the_protocol_names_every_public_route() -> None:
    text = page("protocol.md")
    for path in (
        JOIN_PATH,
        RECEIPTS_PATH,
        REPORT_PATH,
        STATE_PATH,
        "/health",
        "/ca.pem",
        "/api/v1/status",
        "/api/v1/bundle",
    ):
        assert f" {path}`" in text, path
    for path in FLEET_PATHS:
        assert f"{path.rpartition('/')[2]}`" in text, path
    described = json.loads(OPENAPI.read_text(encoding="utf-8"))["paths"]
    assert all(f" {path}`" in page("documents.md") for path in described)


def test_the_twenty_lines_that_verify_a_bundle_do(tmp_path: Path) -> None:
    (block,) = re.findall(r"```python\n(.*?)```", page("bundle-format.md"), flags=re.DOTALL)
    signer = Signer.of(Ed25519PrivateKey.from_private_bytes(b"r" * 32))
    file, names = written(tmp_path, make(), sign=signer), {}
    exec(compile(block, "bundle-format.md", "exec"), names)
    told = names["check"](str(file), signer.public_key)
    assert told["run"] == "first" and told["format"] == 2
    for field in told:
        assert f"`{field}`" in page("bundle-format.md").partition("## Metadata")[2].partition("## Signature")[0], field
    whole = bytearray(file.read_bytes())
    for place in (len(whole) - 1, whole.index(b"first")):
        altered = tmp_path / "altered.safetensors"
        altered.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(Exception):  # noqa: B017  (whatever goes wrong first)
            names["check"](str(altered), signer.public_key)
