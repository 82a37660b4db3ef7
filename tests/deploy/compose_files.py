"""What compose makes of deploy/compose*.yaml: variables put in, files laid over each other, images looked up. Pure.

Only what these files use is known; everything else is an error, so that nothing is passed over in silence.
Source: the Compose specification, "Interpolation" and "Merge" (github.com/compose-spec/compose-spec).
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tests.deploy.dockerfile import stages

DEPLOY = Path(__file__).parents[2] / "deploy"
_VARIABLE = re.compile(r"\$(?:(?P<dollar>\$)|\{(?P<name>\w+)(?:(?P<how>:[-?])(?P<rest>[^}]*))?\})")
_FOLDERS = re.compile(r"install -d ([^&|;]*)")
_REPLACED = ("command", "entrypoint", "test")
"""Lists that the later file replaces; it adds to all others."""


def load(*names: str, env: Mapping[str, str]) -> dict[str, Any]:
    """These files of deploy/, merged in this order.

    Raises:
        KeyError: A variable has neither a value nor a default.
    """
    merged: dict[str, Any] = {}
    for name in names:
        merged = merge(merged, interpolate(yaml.safe_load((DEPLOY / name).read_text(encoding="utf-8")), env))
    return merged


def interpolate(value: Any, env: Mapping[str, str]) -> Any:
    """Put variables in, everywhere below `value`."""
    if isinstance(value, dict):
        return {key: interpolate(inner, env) for key, inner in value.items()}
    if isinstance(value, list):
        return [interpolate(inner, env) for inner in value]
    return _VARIABLE.sub(lambda match: _value_of(match, env), value) if isinstance(value, str) else value


def _value_of(match: re.Match[str], env: Mapping[str, str]) -> str:
    if match["dollar"]:
        return "$"
    if env.get(match["name"]):
        return env[match["name"]]
    if match["how"] != ":-":
        raise KeyError(f"{match['name']}: {match['rest']}")
    return match["rest"]


def variables(text: str) -> dict[str, set[str | None]]:
    """Variables that a file asks for, each with its defaults; None where it must be given."""
    found: dict[str, set[str | None]] = {}
    for match in _VARIABLE.finditer(text):
        if match["name"]:
            found.setdefault(match["name"], set()).add(match["rest"] if match["how"] == ":-" else None)
    return found


def merge(below: Any, above: Any, key: str = "") -> Any:
    """One file laid over another."""
    if isinstance(below, dict) and isinstance(above, dict):
        return {name: merge(below.get(name), above.get(name), name) for name in below | above}
    if above is None:
        return below
    if isinstance(below, list) and isinstance(above, list) and key not in _REPLACED:
        return [*below, *above]
    return above


# --- services ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Mount:
    """What a service sees at a place: a named volume, or a file or folder of this machine."""

    source: str
    target: str
    is_volume: bool
    is_read_only: bool


def mounts_of(service: Mapping[str, Any], secrets: Mapping[str, Any]) -> list[Mount]:
    """Volumes, folders and secrets of a service, in the file's order."""
    found = [_mount(each) for each in service.get("volumes", ())]
    for name in service.get("secrets", ()):
        found.append(Mount(secrets[name]["file"], f"/run/secrets/{name}", is_volume=False, is_read_only=True))
    return found


def _mount(told: str | Mapping[str, Any]) -> Mount:
    if not isinstance(told, str):
        assert told["type"] == "bind" and not told["bind"]["create_host_path"]
        return Mount(told["source"], told["target"], is_volume=False, is_read_only=told.get("read_only", False))
    source, target, *how = told.split(":")
    return Mount(source, target, is_volume="/" not in source, is_read_only=how == ["ro"])


def tmpfs_of(service: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Place and options of each."""
    return [(place, options) for place, _, options in (each.partition(":") for each in service.get("tmpfs", ()))]


def seconds(span: str) -> float:
    """Such as `30s` or `5m`."""
    found = re.fullmatch(r"(\d+)([sm])", span)
    assert found, span
    return float(found[1]) * {"s": 1, "m": 60}[found[2]]


# --- images -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Image:
    """What an image says of a process that is started from it."""

    env: Mapping[str, str]
    entrypoint: Sequence[str]
    user: str
    folders: Sequence[str]
    """Made for its user: a new volume that is mounted there is its user's, too."""


def image_of(target: str, path: str) -> Image:
    """The image of a target of deploy/Dockerfile; `path` is the base's PATH."""
    stage = stages()[target]
    env = {"PATH": path, **{name: value.replace("$PATH", path) for name, value in stage.environment.items()}}
    made = [words for how, text in stage.instructions if how == "RUN" for words in _FOLDERS.findall(text)]
    folders = [word for words in made for word in words.split() if word.startswith("/")]
    return Image(env, stage.words("ENTRYPOINT"), stage.last("USER"), folders)
