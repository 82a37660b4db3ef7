"""What a backup holds: which names there are, with which permissions, and the manifest that lists them."""

import re
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tinylora.errors import StorageError

MANIFEST = "manifest.json"
FORMAT = 1
MAX_MANIFEST_BYTES = 64 * 2**20
SETTINGS = "run.toml"
WRITTEN_BY_INIT = (
    "base.json",
    "projection.safetensors",
    "lookup.safetensors",
    "tokenizer.json",
    "places.json",
    SETTINGS,
)
KEYS = tuple(
    f"keys/{name}"
    for name in ("ca.pem", "ca.key", "server.pem", "server.key", "run.key", "admin", "certificate.json", "public.json")
)
OPERATOR, LEDGER = "operator.sqlite", "ledger.sqlite"
_PLAIN = frozenset((*WRITTEN_BY_INIT, *KEYS, OPERATOR, LEDGER, "bundle.safetensors"))
_SPREAD = re.compile(r"blobs/([0-9a-f]{2})/\1[0-9a-f]{62}|bundles/[0-9a-f]{64}\.(json|safetensors)")
_PUBLIC = frozenset(
    (
        *WRITTEN_BY_INIT,
        "keys/ca.pem",
        "keys/server.pem",
        "keys/certificate.json",
        "keys/public.json",
        "bundle.safetensors",
    )
)

_Hash = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class Member(BaseModel):
    """One file of a backup."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    bytes: Annotated[int, Field(ge=0)]
    sha256: _Hash


class Manifest(BaseModel):
    """What a backup is of, and all that is in it, in this order."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: int
    program: str
    """Version of the TinyLoRA that took it."""
    run: str
    run_key: _Hash
    """Public half of the run's key."""
    taken_s: float
    """Seconds since 1970."""
    folder: str
    """Of the run, where it was taken."""
    host: str
    n_events: Annotated[int, Field(ge=0)]
    chain: str
    """Hash over these events; empty where there are none."""
    files: tuple[Member, ...]

    @property
    def blobs(self) -> frozenset[str]:
        """Names of its blobs."""
        return frozenset(member.name[-64:] for member in self.files if member.name.startswith("blobs/"))

    def has(self, name: str) -> bool:
        """Whether a file of this name is in it."""
        return any(member.name == name for member in self.files)


def is_known(name: str) -> bool:
    """Whether a run's folder has files of this name that belong into a backup."""
    return name in _PLAIN or _SPREAD.fullmatch(name) is not None


def mode_of(name: str) -> int:
    """Permissions that a run's folder has for this file."""
    return 0o644 if name in _PUBLIC else 0o600


def blob_name(sha256: str) -> str:
    """Where a blob is, in a run's folder and in a backup."""
    return f"blobs/{sha256[:2]}/{sha256}"


def read_manifest(data: bytes) -> Manifest:
    """The manifest in these bytes, once every name in it is one that we would write, each once.

    Raises:
        StorageError: It is none of ours, in a sentence that begins with what is wrong.
    """
    try:
        found = Manifest.model_validate_json(data)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "document"
        raise StorageError(f"its manifest makes no sense: {where}: {first['msg'][:100]}") from None
    if found.format != FORMAT:
        raise StorageError(
            f"format {found.format}, this program reads format {FORMAT}; install the TinyLoRA that took it"
        )
    seen: set[str] = set()
    for member in found.files:
        if not is_known(member.name):
            raise StorageError(f"its manifest names {member.name[:80]!r}, which no run's folder has")
        if member.name in seen:
            raise StorageError(f"its manifest names {member.name} twice")
        if member.name.startswith("blobs/") and member.name[-64:] != member.sha256:
            raise StorageError(f"its manifest gives {member.name} the hash of another file")
        seen.add(member.name)
    missing = next((name for name in (SETTINGS, "base.json", "keys/run.key") if name not in seen), None)
    if missing is not None:
        raise StorageError(f"it holds no {missing}")
    return found
