"""Which base an adapter is for, so that strangers find it: name, revision, licence, from what lies on this machine.

A base in the hub's cache lies in `models--<org>--<name>/snapshots/<commit>/`: its folder tells name and revision, and
the front matter of its README.md the licence. Where the README was not downloaded the hub is asked once, and what it
does not answer stays open.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import huggingface_hub
import yaml

_SNAPSHOT = re.compile(r"models--(?P<name>.+)", re.DOTALL)
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_HUB_TIMEOUT_S = 10.0
_MAX_README_BYTES = 1 << 20


@dataclass(frozen=True)
class Origin:
    """A base, as those who load an adapter must name it."""

    base: str
    """Hub id, or a folder of this machine."""
    revision: str | None = None
    """The hub's commit."""
    licence: str = ""
    """Of the base, as its README names it; empty where nobody said."""

    @property
    def is_on_hub(self) -> bool:
        """Whether others can load the base by this name."""
        return bool(_HUB_ID.fullmatch(self.base)) and not Path(self.base).is_dir()


def find_origin(where: str | Path) -> Origin:
    """What is known of a base that was named as a folder or as a hub id."""
    folder = Path(where).expanduser()
    if folder.is_dir():
        return _of_folder(folder.resolve())
    name = str(where)
    config = huggingface_hub.try_to_load_from_cache(name, "config.json")
    if isinstance(config, str):  # its folder is a snapshot, whose name is the commit
        found = Path(config).parent
        return Origin(name, found.name, _licence_in(found) or _ask_hub(name))
    return Origin(name, None, _ask_hub(name))


def licence_in_readme(file: Path) -> str:
    """The licence that the front matter of a README.md names; empty where there is none that can be read."""
    try:
        fields = huggingface_hub.metadata_load(file) if file.stat().st_size <= _MAX_README_BYTES else None
    except (OSError, ValueError, RecursionError, yaml.YAMLError):
        return ""
    return _licence_of(fields)


def _of_folder(folder: Path) -> Origin:
    """A folder of its own, or a snapshot of the hub's cache that was named by its path."""
    cached = _SNAPSHOT.fullmatch(folder.parent.parent.name) if folder.parent.name == "snapshots" else None
    if cached is None:
        return Origin(str(folder), None, _licence_in(folder))
    return Origin(cached["name"].replace("--", "/"), folder.name, _licence_in(folder))


def _licence_in(folder: Path) -> str:
    return licence_in_readme(folder / "README.md")


def _licence_of(fields: Any) -> str:
    """`license`, or what it is called where that says "other"."""
    if not isinstance(fields, dict):
        return ""
    licence, name = fields.get("license"), fields.get("license_name")
    if licence == "other" and isinstance(name, str):
        return name
    if isinstance(licence, list):
        licence = ", ".join(str(one) for one in licence)
    return licence if isinstance(licence, str) else ""


def _ask_hub(name: str) -> str:
    if not _HUB_ID.fullmatch(name):
        return ""
    try:
        card = huggingface_hub.model_info(name, timeout=_HUB_TIMEOUT_S).card_data
    except Exception:  # offline, unknown, gated: whatever it is, the licence stays open
        return ""
    return _licence_of(card.to_dict()) if card is not None else ""
