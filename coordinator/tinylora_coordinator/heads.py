"""The head of a request as it came, and our no to it: what whoever judges heads has in common."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

Headers: TypeAlias = Collection[tuple[bytes, bytes]]


@dataclass(frozen=True)
class Refusal:
    """An answer of ours to a request that may not pass."""

    status: int
    error: str
    reason: str
    headers: Mapping[str, str] = field(default_factory=dict)


def values(headers: Headers, name: bytes) -> list[bytes]:
    """All values of a header."""
    return [value for key, value in headers if key == name]
