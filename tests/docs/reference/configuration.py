"""Every key of every file that is read as a configuration, and every variable of the environment."""

import ast
import inspect
import textwrap
import types
from collections.abc import Iterator, Mapping
from enum import Enum
from itertools import pairwise
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from tinylora_coordinator.folder import SECTIONS
from tinylora_worker.limits import EXAMPLES, Limits

from tests.docs.reference.markdown import code, page, prose, table
from tests.docs.reference.source import variables
from tinylora.config import RunSettings
from tinylora.quality.config import QualityConfig, Rate, Tuning

VARIABLES: Mapping[str, str] = {
    "TINYLORA_HOME": "Worker: its home, where `--home` is not given.",
    "TINYLORA_TOKEN": "Worker: the join token, where neither `--token` nor `--token-file` is given.",
    "TINYLORA_FAILPOINT": "Tests only: a place at which the process dies or a disk fails. Never set it.",
    "TINYLORA_FAILPOINT_MARK": "Tests only: of several processes with the same mark one reaches its failpoint.",
    "HF_HOME": "Where the hub's files are kept; bases are downloaded there.",
    "HF_HUB_CACHE": "The same for models alone; comes before `HF_HOME`.",
    "HUGGINGFACE_HUB_CACHE": "Older name of `HF_HUB_CACHE`.",
    "HF_HUB_OFFLINE": "`1`: nothing is downloaded; a base has to be there.",
    "HF_ENDPOINT": "Another address of the hub; the service keeps it.",
    "XDG_CACHE_HOME": "Where caches lie, where `HF_HOME` is not set.",
    "XDG_CONFIG_HOME": "Linux: where the worker's systemd user unit is written.",
    "XDG_RUNTIME_DIR": "Linux: where the socket between agent and trainer lies.",
    "USER": "Linux: named in the hint on `loginctl enable-linger`.",
    "CUDA_VISIBLE_DEVICES": "The GPUs that are seen, where the limit `gpu` names none.",
    "CI": "`tinylora demo`: no browser is opened.",
    "SSH_CONNECTION": "`tinylora demo`: no browser is opened.",
    "DISPLAY": "`tinylora demo`: a desktop is there, so a browser is opened.",
    "WAYLAND_DISPLAY": "The same as `DISPLAY`.",
    "LD_LIBRARY_PATH": "Kept by `service install`, as it was when it was called.",
    "PYTHONPATH": "Kept by `service install`.",
    "TZ": "Time zone of `schedule`; kept by `service install`.",
    "SSL_CERT_FILE": "Trust store, where a public CA vouches for the coordinator; kept by `service install`.",
    "SSL_CERT_DIR": "The same as a folder.",
    "HTTPS_PROXY": "Proxy for the way out; kept by `service install`.",
    "HTTP_PROXY": "The same for plain HTTP.",
    "NO_PROXY": "Hosts that are reached without a proxy.",
    "https_proxy": "As `HTTPS_PROXY`.",
    "http_proxy": "As `HTTP_PROXY`.",
    "no_proxy": "As `NO_PROXY`.",
}
OF_LIBRARIES: Mapping[str, str] = {
    "NO_COLOR": "Terminals: no colours (rich).",
    "HF_TOKEN": "The hub's token, for bases behind a licence (huggingface_hub).",
    "OMP_NUM_THREADS": "CPU threads of torch; `--threads` and the limit `cpu_threads` are what to use instead.",
}
"""Read by libraries that we use, and worth knowing."""


def configuration_page() -> str:
    """The page of all of them."""
    return page(
        "Configuration",
        "Four places: a run's `run.toml`, a worker's `limits.toml`, the file of `tinylora report`, and the "
        "environment. What a command takes on its line stands on the pages of the [three](tinylora.md) "
        "[programs](tinylora-coordinator.md) [themselves](tinylora-worker.md). `tinylora demo` and `tinylora "
        "simulate` have no file: their options are all there is.",
        "## run.toml",
        "`tinylora-coordinator init DIR` writes it with every key, its default and a comment; `init --set KEY=VALUE` "
        "sets one. Values may be changed until `serve` is called for the first time. After that they belong to the "
        "run's history, and nothing but a new run changes them. An unknown key is refused with the "
        "[exit code 2](errors.md#exit-2).",
        *_run_settings(),
        "## limits.toml",
        "In a worker's home. `tinylora-worker limits set KEY=VALUE` writes it, and it may be edited while the worker "
        "runs: a running worker follows within a second. What it does not name is not limited; only work on battery "
        "has to be allowed. [What each limit does](../how-to/join.md#limits) in detail.",
        table(("key", "default", "example", "value", "meaning"), _limits()),
        "## The file of tinylora report",
        "`--config FILE`, by default `benchmarks/quality.toml` of the repository. What stands at the top holds for all "
        "presets; `[presets.NAME]` overrides it for `--preset NAME`.",
        table(("key", "value", "default", "meaning"), model_rows(QualityConfig)),
        "`[rates.SYSTEM]`, which `--tune` finds:",
        table(("key", "value", "default", "meaning"), model_rows(Rate)),
        "`[tuning]`:",
        table(("key", "value", "default", "meaning"), model_rows(Tuning)),
        "## In Flower's own engines",
        "For `flwr run` and Flower's simulation, `[tool.flwr.app.config]` of a `pyproject.toml` names `base`, `out`, "
        "`settings` (a `run.toml`) and `data`; the components are `tinylora.flower.apps:server_app` and "
        "`tinylora.flower.apps:client_app`.",
        "## Environment",
        "An option on the command line comes before its variable.",
        table(("variable", "meaning"), ((code(name), prose(VARIABLES[name])) for name in _in_order())),
        "Read by libraries:",
        table(("variable", "meaning"), ((code(name), prose(told)) for name, told in OF_LIBRARIES.items())),
        "Set by us in every process, whatever stood there: `FLWR_TELEMETRY_ENABLED=0` and "
        "`FLWR_DISABLE_UPDATE_CHECK=1`, so that Flower calls nobody; `HF_HUB_DISABLE_TELEMETRY=1`, unless it is set.",
    )


def _in_order() -> list[str]:
    read = variables()
    return [name for name in VARIABLES if name in read]


def _run_settings() -> Iterator[str]:
    for section, keys in SECTIONS.items():
        yield f"### {section}"
        fields = {key: RunSettings.model_fields[key] for key in keys}
        rows = ((code(key), value_of(field), default_of(field), prose(keys[key])) for key, field in fields.items())
        yield table(("key", "value", "default", "meaning"), rows)


def _limits() -> Iterator[tuple[str, str, str, str, str]]:
    for key, field in Limits.model_fields.items():
        expected = str((field.examples or [""])[0])
        default = default_of(field) if field.default not in ("", None, ()) else "no limit"
        if key in ("note", "data_licence"):
            default = "nothing"
        yield code(key), default, code(EXAMPLES[key]), prose(expected), prose(str(field.description))


# --- models ----------------------------------------------------------------------------------------------------------


def model_rows(model: type[BaseModel]) -> Iterator[tuple[str, str, str, str]]:
    """Name, value, default and meaning of each field; what stands below a field in the source is its meaning."""
    told = field_texts(model)
    for name, field in model.model_fields.items():
        yield code(name), value_of(field), default_of(field), prose(field.description or told.get(name, ""))


def field_texts(model: type[BaseModel]) -> dict[str, str]:
    """The text below each field, of the model and those it is made from."""
    found: dict[str, str] = {}
    for kind in reversed(model.__mro__):
        if issubclass(kind, BaseModel) and kind is not BaseModel:
            (definition,) = ast.parse(textwrap.dedent(inspect.getsource(kind))).body
            body = definition.body if isinstance(definition, ast.ClassDef) else []
            for node, after in pairwise(body):
                is_text = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
                if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and is_text:
                    found[node.target.id] = str(after.value.value)  # pyright: ignore[reportAttributeAccessIssue]
    return found


def default_of(field: FieldInfo) -> str:
    """What holds where the field is left out."""
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if isinstance(value, BaseModel):
        return "see below"
    if value is None or value == "":
        return "" if value is None else code('""')
    return code(_toml(value))


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_toml, value))}]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {_toml(inner)}" for key, inner in value.items()) + "}"
    return f"{value:g}" if isinstance(value, float) else f'"{value}"' if isinstance(value, str) else str(value)


PATTERNS = {r"^[0-9a-f]{64}$": "sha256", r"^[01]{0,16}$": "path", r"^[A-Za-z0-9][A-Za-z0-9._:-]{0,127}$": "name"}
"""Texts of a form that has a word."""


def value_of(field: FieldInfo) -> str:
    """Type and range of a field, in words."""
    return _ranged(_words(field.annotation), field.metadata)


def _ranged(words: str, metadata: Any) -> str:
    found = _bounds(metadata)
    known = PATTERNS.get(str(found.get("pattern", "")))
    return known if known and words == "text" else f"{words}{_range(found)}"


def _words(kind: Any) -> str:
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Literal:
        return ", ".join(code(_toml(choice)) for choice in inner)
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(_words(part) for part in inner if part is not type(None)))
    if hasattr(kind, "__metadata__"):
        return _ranged(_words(inner[0]), kind.__metadata__)
    if origin in (tuple, list):
        return f"list of {_words(inner[0])}" if len(inner) == 1 or inner[-1] is Ellipsis else "list"
    if origin is dict:
        return f"table of {_words(inner[1])}"
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return kind.__name__
    if isinstance(kind, type) and issubclass(kind, Enum):
        return ", ".join(code(_toml(member.value)) for member in kind)
    names = {int: "whole number", float: "number", str: "text", bool: "`true` or `false`", type(None): "nothing"}
    return names.get(kind, getattr(kind, "__name__", str(kind)))


def _bounds(metadata: Any) -> dict[str, Any]:
    """Bounds, lengths and patterns among what a type is annotated with."""
    found: dict[str, Any] = {}
    for entry in metadata:
        for part in (entry, *getattr(entry, "metadata", ())):
            for name in ("ge", "gt", "le", "lt", "min_length", "max_length", "pattern"):
                if (bound := getattr(part, name, None)) is not None:
                    found[name] = getattr(bound, "pattern", bound)
    return found


def _range(found: dict[str, Any]) -> str:
    signs = {"ge": "≥", "gt": "\\>", "le": "≤", "lt": "\\<"}
    told = [f"{signs[name]} {_short(found[name])}" for name in signs if name in found]
    if "pattern" in found:
        told.append(code(found["pattern"]))
    if "max_length" in found:
        told.append(f"at most {found['max_length']} long")
    if "min_length" in found:
        told.append(f"at least {found['min_length']} long")
    return f" ({', '.join(told)})" if told else ""


def _short(number: Any) -> str:
    return {2**63: "2^63", 2**53: "2^53", 2**31: "2^31", 1e9: "10^9", 1e12: "10^12"}.get(number, f"{number:g}")
