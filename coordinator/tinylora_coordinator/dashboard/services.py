"""What the app is made of: whoever serves a run, or plays one again, hands these in.

Each is a port with few methods, so that a test or a replay can stand in for any of them.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from tinylora_coordinator.dashboard import documents as doc
from tinylora_coordinator.dashboard.machine import Machine
from tinylora_coordinator.dashboard.source import LookUp, Views


@dataclass(frozen=True)
class Who:
    """Who a request comes from."""

    role: doc.Role
    expires_s: float | None = None
    """When that ends, seconds since 1970; None: it does not."""
    is_local: bool = False
    """Whether he is who he is because he came by the loopback listener."""


class Access(Protocol):
    """Tells readers, operators and strangers apart. May be called from any thread."""

    @property
    def cookie_name(self) -> str:
        """Of the cookie that a reader who signed in sends along."""
        ...

    @property
    def needs_token(self) -> bool:
        """Whether nobody may look without a token."""
        ...

    def who(self, headers: Mapping[str, str], is_local: bool) -> Who:
        """Who sent these headers.

        Args:
            headers: Of the request, by name in lower case or as Starlette gives them.
            is_local: Whether the request came by the loopback listener.
        """
        ...

    def sign_in(self, token: str) -> tuple[str, str, int, Who] | None:
        """Name, value and age in seconds of the cookie that a token is good for, and whose it is; else None.

        Raises:
            RefusedError: It is good for nothing here, and why.
        """
        ...


class ArtifactDesk(Protocol):
    """What can be taken away. May be called from any thread."""

    def list(self, can_make: bool) -> doc.Artifacts:
        """All there is."""
        ...

    def make(self) -> None:
        """Have a bundle of the present tree written; returns at once.

        Raises:
            RefusedError: One is being written.
            StorageError: There is no space.
        """
        ...

    def bundle(self, sha256: str) -> Path | None:
        """The file of a bundle; None where there is none of that hash."""
        ...

    def leaf(self, path: str) -> Path | None:
        """A leaf as a zipped PEFT adapter; None where the tree has no such leaf. May take a second.

        Raises:
            SettingError: PEFT knows no such adapter.
            StorageError: A blob is missing, or there is no space.
        """
        ...


class AdminDesk(Protocol):
    """The operator's desk. May be called from any thread.

    Each method raises `SettingError` with a sentence where what is asked makes no sense, `StorageError` where it
    cannot be written down.
    """

    def state(self) -> doc.AdminState:
        """Who waits for approval, and the orders."""
        ...

    def order(self, request: doc.OrderRequest) -> doc.OrderRow:
        """Give an order to the rounds."""
        ...

    def approve(self, worker: str) -> None:
        """Let a worker in that waits."""
        ...

    def tokens(self) -> doc.TokenList:
        """The join tokens, without their secrets."""
        ...

    def make_token(self, request: doc.TokenRequest, address: str) -> doc.NewToken:
        """Make a join token.

        Args:
            request: What it is good for.
            address: scheme://host[:port] by which the operator came; empty where that is not known.
        """
        ...

    def revoke_token(self, token_id: str) -> None:
        """Let nobody in with it any more."""
        ...


@dataclass(frozen=True)
class Services:
    """All that the app asks."""

    views: Views
    look_up: LookUp
    artifacts: ArtifactDesk
    admin: AdminDesk | None
    """None: nobody can be told anything, as in a replay."""
    join: Callable[[str], doc.JoinInfo]
    """Given scheme://host[:port] by which the reader came; empty where that is not known."""
    access: Access
    is_replay: bool = False
    machine: Callable[[], Machine] | None = None
    """What Prometheus is told beside the run; None in a replay. May be called from any thread."""
