"""No step that must reach the disk without a failpoint before it: seen in the source, wherever it stands.

The ledger's own test looks at what a run really does to the disk; this one keeps watch over the rest of the product.
"""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MODULES = sorted(path for package in ("tinylora", "coordinator", "worker") for path in (ROOT / package).rglob("*.py"))
OF_OS = {"fsync", "replace", "rename", "link", "symlink"}
OF_PATHS = {"replace", "rename", "hardlink_to", "symlink_to"}
OTHER_PROGRAMS = {"quality", "demo", "report"}
"""Parts that measure and show: what they write can be made again."""
WAYS_BACK = {"adopt: file.replace(source)"}
"""Undo a step that failed, which its own failpoint made fail."""


NEED_NOT_LAST = {
    "_open_log: self.log_file.replace(self.log_file.with_suffix('.log.1'))",
    "_make: fresh.rename(place / fresh.name[1:])",
    "place_for_lines: beside.replace(file)",
    "write_recording: beside.replace(file)",
    "take_leaf: file.replace(target)",
    "write_leaf: beside.replace(out)",
    "_flush: os.fsync(stream.fileno())",
    "whole_folder: out.replace(old)",
    "whole_folder: beside.replace(out)",
    "_hold: os.link(root / blob_name(sha256), links / sha256)",
}
"""Steps for what may be lost: an old log, a folder that dies with its process, what can be made again."""


def is_durable(call: ast.Call) -> bool:
    """Whether a call flushes, renames or commits. A path is replaced by one argument, text by two."""
    function = call.func
    if not isinstance(function, ast.Attribute):
        return False
    if isinstance(function.value, ast.Name) and function.value.id == "os":
        return function.attr in OF_OS
    is_of_path = function.attr in OF_PATHS and len(call.args) == 1 and not call.keywords
    return function.attr == "commit" or is_of_path


def is_before(call: ast.Call) -> bool:
    """Whether a call reaches a failpoint that stands before a step."""
    if not (isinstance(call.func, ast.Name) and call.func.id == "reach"):
        return False
    return ast.unparse(call.args[0]).rstrip("'\"").endswith(".before")


def bare_steps(source: str) -> list[str]:
    """Durable calls of a module that have no failpoint between them and the one before, function by function."""
    found = []
    for function in ast.walk(ast.parse(source)):
        if not isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        is_guarded = False
        calls = (node for node in ast.walk(function) if isinstance(node, ast.Call))
        for call in sorted(calls, key=lambda call: (call.lineno, call.col_offset)):
            if is_before(call):
                is_guarded = True
            elif is_durable(call):
                step = f"{function.name}: {ast.unparse(call)}"
                if not is_guarded and step not in WAYS_BACK | NEED_NOT_LAST:
                    found.append(step)
                is_guarded = False
    return found


@pytest.mark.parametrize(
    ("body", "n_bare"),
    [
        ("os.fsync(3)", 1),
        ("reach('a.before'); os.fsync(3)", 0),
        ("reach('a.before'); os.fsync(3); file.replace(other)", 1),
        ("reach('a.after'); database.commit()", 1),
        ("text.replace('a', 'b')", 0),
    ],
)
def test_the_rule_itself(body: str, n_bare: int) -> None:
    assert len(bare_steps(f"def f():\n    {body}")) == n_bare


def test_every_durable_step_has_a_failpoint() -> None:
    bare = {
        path.relative_to(ROOT).as_posix(): steps
        for path in MODULES
        if not OTHER_PROGRAMS & set(path.parts) and (steps := bare_steps(path.read_text(encoding="utf-8")))
    }
    assert bare == {}
