"""What stands in the sources of the three packages, found in their syntax: nothing is imported or run."""

import ast
import re
from collections.abc import Iterable, Iterator
from functools import cache
from itertools import pairwise
from pathlib import Path

ROOT = Path(__file__).parents[3]
PACKAGES = ("tinylora", "coordinator/tinylora_coordinator", "worker/tinylora_worker")
_ENVIRONMENTS = ("environ", "environment", "_environment")


@cache
def trees() -> dict[str, ast.Module]:
    """Every module of the packages by its path in the repository, generated ones left out."""
    files = (file for package in PACKAGES for file in sorted((ROOT / package).rglob("*.py")) if "_pb2" not in file.name)
    return {file.relative_to(ROOT).as_posix(): ast.parse(file.read_text(encoding="utf-8")) for file in files}


def calls(tree: ast.AST) -> Iterator[tuple[str, ast.Call]]:
    """Calls by the last part of what is called."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            called = node.func
            yield (called.attr if isinstance(called, ast.Attribute) else getattr(called, "id", "")), node


def texts(nodes: Iterable[ast.AST]) -> Iterator[str]:
    """Those of the nodes that are texts, and both sides of a choice between two."""
    for node in nodes:
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value
        elif isinstance(node, ast.IfExp):
            yield from texts((node.body, node.orelse))
        elif isinstance(node, ast.BoolOp):
            yield from texts(node.values)


# --- rules of files and numbers --------------------------------------------------------------------------------------

_RULE_FILES = (
    "tinylora/bundle/",
    "tinylora/tensors.py",
    "tinylora/tree.py",
    "tinylora/hub.py",
    "tinylora/numerics.py",
    "tinylora/routing/",
)
"""Where errors are raised that a bundle's reader or the check of a payload passes on with their rule."""
_RULE_PLACE = {"_refuse": 0, "altered": 2}


def rules() -> set[str]:
    """Every name of a rule that these modules give to an error."""
    found: set[str] = set()
    for file, tree in trees().items():
        if file.startswith(_RULE_FILES):
            found |= set(_rules_of(tree))
    return {rule for rule in found if rule and "." not in rule} | set(_rules_of_refusals())


def _rules_of(tree: ast.Module) -> Iterator[str]:
    for name, call in calls(tree):
        yield from texts(keyword.value for keyword in call.keywords if keyword.arg == "rule")
        if name in _RULE_PLACE and len(call.args) > _RULE_PLACE[name]:
            yield from texts([call.args[_RULE_PLACE[name]]])
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and any(getattr(target, "id", "") == "rule" for target in node.targets):
            yield from texts([node.value])
        if isinstance(node, ast.Return) and isinstance(choice := node.value, ast.IfExp):  # a sentence and its rule
            yield from texts(choice.body.elts[1:2] if isinstance(choice.body, ast.Tuple) else ())


def _rules_of_refusals() -> Iterator[str]:
    """The rules of statistics that acceptance itself finds."""
    for name, call in calls(trees()["tinylora/federation/acceptance.py"]):
        if name == "Refusal" and len(call.args) == 3 and getattr(call.args[0], "attr", "") == "BAD_STATISTICS":
            yield from texts([call.args[2]])


# --- what HTTP answers say -------------------------------------------------------------------------------------------


def http_errors() -> dict[str, set[int]]:
    """Every `error` of an answer, with the statuses that it comes with; joins have a list of their own."""
    found: dict[str, set[int]] = {}
    for file, tree in trees().items():
        if file.startswith("coordinator/") and not file.endswith(("joining.py", "operator_store.py")):
            for status, error in _answers(tree):
                found.setdefault(error, set()).add(status)
            for name, call in calls(tree):  # what is said where no status has words of its own
                if name == "get" and len(call.args) == 2 and isinstance(call.args[1], ast.Tuple):
                    found |= {error: set() for error in texts(call.args[1].elts[:1]) if error not in found}
    return found


def _answers(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Status and error, wherever the two stand next to each other: as arguments, in a tuple, as an entry by status."""
    for node in ast.walk(tree):
        elements = node.args if isinstance(node, ast.Call) else node.elts if isinstance(node, ast.Tuple) else []
        for first, second in pairwise(elements):
            yield from _pair(first, second)
            if isinstance(first, ast.Dict):
                yield from ((status, error) for error in _error_in(first) for status in _status([second]))
        if isinstance(node, ast.Tuple | ast.Assign | ast.Return):
            yield from _told(node)
        if isinstance(node, ast.Dict):
            for key, value in zip(node.keys, node.values, strict=True):
                if isinstance(value, ast.Tuple) and value.elts and key is not None:
                    yield from _pair(key, value.elts[0])


def _pair(first: ast.AST, second: ast.AST) -> Iterator[tuple[int, str]]:
    for error in texts([second]) if isinstance(second, ast.Constant) else ():
        if re.fullmatch("[a-z_]+", error):
            yield from ((status, error) for status in _status([first]))


def _told(node: ast.Tuple | ast.Assign | ast.Return) -> Iterator[tuple[int, str]]:
    """`400, {"error": ...}`, and documents that were given a name: their status is 404 or 401 by what they say."""
    if isinstance(node, ast.Tuple) and len(node.elts) == 2 and isinstance(node.elts[1], ast.Dict):
        yield from ((status, error) for error in _error_in(node.elts[1]) for status in _status([node.elts[0]]))


def _error_in(document: ast.Dict) -> Iterator[str]:
    for key, value in zip(document.keys, document.values, strict=True):
        if isinstance(key, ast.Constant) and key.value == "error":
            yield from texts([value])


def _status(nodes: Iterable[ast.AST]) -> list[int]:
    return [
        node.value
        for node in nodes
        if isinstance(node, ast.Constant) and type(node.value) is int and 400 <= node.value < 600
    ]


# --- the environment -------------------------------------------------------------------------------------------------


def variables() -> dict[str, set[str]]:
    """Every variable of the environment that is read, with the modules that read it."""
    found: dict[str, set[str]] = {}
    for file, tree in trees().items():
        constants = _constants(tree)
        for name in _read_in(tree, constants):
            found.setdefault(name, set()).add(file)
    return found


def _read_in(tree: ast.Module, constants: dict[str, list[str]]) -> Iterator[str]:
    for name, call in calls(tree):
        if name in ("get", "getenv", "pop") and call.args and (name == "getenv" or _is_environment(call.func)):
            yield from _named(call.args[0], constants)
        for keyword in call.keywords:
            if keyword.arg == "envvar":
                yield from _named(keyword.value, constants)
    for node in ast.walk(tree):
        if isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Load) and _names_environment(node.value):
            yield from _named(node.slice, constants)
    yield from constants.get("KEPT_VARIABLES", ())


def _is_environment(called: ast.expr) -> bool:
    return isinstance(called, ast.Attribute) and _names_environment(called.value)


def _names_environment(node: ast.expr) -> bool:
    return (node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")) in _ENVIRONMENTS


def _named(node: ast.expr, constants: dict[str, list[str]]) -> Iterator[str]:
    if isinstance(node, ast.Name):
        yield from constants.get(node.id, ())
    else:
        yield from texts([node])


def _constants(tree: ast.Module) -> dict[str, list[str]]:
    """Texts, and lists of texts, that a module gives a name."""
    found = {}
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(target := node.targets[0], ast.Name):
            values = node.value.elts if isinstance(node.value, ast.Tuple | ast.List) else [node.value]
            found[target.id] = list(texts(values))
    return found
