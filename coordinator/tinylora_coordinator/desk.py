"""The operator's commands on a run's folder, whether it is being served or not: tokens, workers, orders.

Each function opens the operator's file, does one thing, and closes it. What they return is ready for JSON.
"""

import os
import secrets
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import psutil

from tinylora.errors import SettingError, StorageError
from tinylora.federation.ports import Order
from tinylora.flower.reach import Address
from tinylora.ledger.sqlite import FILE as LEDGER_FILE
from tinylora.ledger.sqlite import SqliteLedger
from tinylora.tree import is_path
from tinylora_coordinator.access_tokens import KnownToken, TokenRole, mark_of
from tinylora_coordinator.durations import as_date, parse_duration
from tinylora_coordinator.folder import RunFolder, read_run
from tinylora_coordinator.keys import join_url, pin_of, run_public
from tinylora_coordinator.operator_store import OperatorStore, Token
from tinylora_coordinator.overview import overview

DEFAULT_PORT = 8443


def opened(root: Path) -> OperatorStore:
    """The operator's file of the run in `root`.

    Raises:
        SettingError: There is no run in `root`.
        StorageError: The folder cannot be written.
    """
    read_run(RunFolder(root))
    return OperatorStore(root)


# --- tokens ---------------------------------------------------------------------------------------------------------


def create_token(
    root: Path, *, now_s: float, uses: int, expires: str, tags: Sequence[str], needs_approval: bool, url: str
) -> dict[str, Any]:
    """Make a token; the only time that its secret is seen.

    Raises:
        SettingError: There is no run in `root`, or an argument makes no sense.
        StorageError: The folder cannot be written.
    """
    expires_in_s = parse_duration(expires)
    odd = next((tag for tag in tags if not (1 <= len(tag) <= 40 and tag.isprintable())), None)
    if odd is not None:
        raise SettingError(f"--tag {odd!r}: expected 1 to 40 printable characters")
    if url:
        url = Address.parse(url).url()
    with opened(root) as store:
        keys = RunFolder(root).keys
        made = store.create_token(
            pin_of(keys),
            now_s=now_s,
            expires_in_s=expires_in_s,
            max_workers=uses,
            tags=tags,
            needs_approval=needs_approval,
        )
    url = url or join_url(keys, DEFAULT_PORT)
    return {
        "token": made.text,
        "token_id": made.token_id,
        "expires": as_date(now_s + expires_in_s),
        "max_workers": uses,
        "command": f"tinylora-worker join {url} --data TEXTS",
    }


def tokens(root: Path, *, now_s: float) -> list[dict[str, Any]]:
    """All tokens without their secrets: the workers', then those for people.

    Raises:
        SettingError: There is no run in `root`.
        StorageError: The folder cannot be read.
    """
    with opened(root) as store:
        people = [_access_row(token, now_s) for token in store.access_tokens()]
        return [*(_token_row(token) for token in store.tokens(now_s)), *people]


def create_access(root: Path, role: TokenRole, *, now_s: float, expires: str, note: str) -> dict[str, Any]:
    """Make a token for somebody who wants to look or to steer; the only time that its secret is seen.

    Raises:
        SettingError: There is no run in `root`, or an argument makes no sense.
        StorageError: The folder cannot be written.
    """
    expires_in_s = parse_duration(expires)
    if len(note) > 80 or not note.isprintable():
        raise SettingError("--note: expected at most 80 printable characters")
    with opened(root) as store:
        mark = mark_of(run_public(RunFolder(root).keys))
        made = store.create_access(role, mark, now_s=now_s, expires_in_s=expires_in_s, note=note)
    return {"token": made.text, "token_id": made.token_id, "role": role, "expires": as_date(now_s + expires_in_s)}


def _access_row(token: KnownToken, now_s: float) -> dict[str, Any]:
    return {
        "token_id": token.token_id,
        "role": token.role,
        "state": token.state(now_s),
        "created": as_date(token.created_s),
        "expires": as_date(token.expires_s),
        "note": token.note,
    }


def _token_row(token: Token) -> dict[str, Any]:
    return {
        "token_id": token.token_id,
        "role": "worker",
        "state": token.state,
        "created": as_date(token.created_s),
        "expires": as_date(token.expires_s),
        "max_workers": token.max_workers,
        "n_workers": token.n_workers,
        "needs_approval": token.needs_approval,
        "tags": list(token.tags),
    }


def revoke_token(root: Path, token_id: str, *, with_workers: bool, now_s: float) -> list[str]:
    """Let nobody in by a token any more; returns the workers that were revoked with it.

    Raises:
        SettingError: There is no run in `root`, or no such token.
        StorageError: The folder cannot be written.
    """
    with opened(root) as store:
        store.revoke_token(token_id, now_s)
        came = [worker.worker for worker in store.workers() if worker.token_id == token_id and with_workers]
        for worker in came:
            store.revoke(worker, reason=f"token {token_id} was revoked", now_s=now_s)
    return came


# --- workers --------------------------------------------------------------------------------------------------------


def workers(root: Path) -> list[dict[str, Any]]:
    """All workers: who they are, whether they may take part, and what they have done.

    Raises:
        SettingError: There is no run in `root`.
        StorageError: The folder cannot be read.
    """
    done = {row["worker"]: row for row in overview(root)["workers"]}
    with opened(root) as store:
        known = store.workers()
    return [
        {
            "worker": worker.worker,
            "name": worker.name,
            "state": worker.state,
            "token_id": worker.token_id,
            "tags": list(worker.tags),
            "first_seen": as_date(worker.first_seen_s),
            "units": done.get(worker.worker, {}).get("units", 0),
            "tokens": done.get(worker.worker, {}).get("tokens", 0),
            "node": done.get(worker.worker, {}).get("node"),
        }
        for worker in known
    ]


def approve(root: Path, worker: str) -> None:
    """Let a waiting worker in.

    Raises:
        SettingError: There is no run in `root`, no such worker, or it was revoked.
        StorageError: The folder cannot be written.
    """
    with opened(root) as store:
        store.approve(worker)


def remove(root: Path, worker: str, *, kind: Literal["revoke", "erase"], reason: str, now_s: float) -> Order:
    """Shut the door on a worker at once, and order the rest.

    Raises:
        SettingError: There is no run in `root`, or no such worker.
        StorageError: The folder cannot be written.
    """
    with opened(root) as store:
        act = store.revoke if kind == "revoke" else store.erase
        return act(worker, reason=reason, now_s=now_s)


def steer(
    root: Path,
    worker: str,
    *,
    kind: Literal["release", "reassign"],
    node: str = "",
    reason: str = "",
    now_s: float,
) -> Order:
    """Order that a worker's unit is free for others, or that the worker gets another leaf.

    Args:
        root: The run's folder.
        worker: Whom it is about.
        kind: What is ordered.
        node: Of `reassign`: the leaf's path; the root is spelled `root`.
        reason: Stands in the run's log.
        now_s: The time, seconds since 1970.

    Raises:
        SettingError: There is no run in `root`, no such worker, or `node` is no path.
        StorageError: The folder cannot be written.
    """
    path = "" if node == "root" else node
    if not is_path(path) or (kind == "reassign" and not node):
        raise SettingError(f"node {node!r}: expected digits 0 and 1 such as 01, or root")
    with opened(root) as store:
        return store.steer(kind, worker, node=path, reason=reason, now_s=now_s)


def order(root: Path, kind: Literal["pause", "resume", "finish"], *, reason: str, now_s: float) -> Order:
    """Leave an order for the rounds.

    Raises:
        SettingError: There is no run in `root`.
        StorageError: The folder cannot be written.
    """
    with opened(root) as store:
        return store.order(kind, reason=reason, now_s=now_s)


def verify_log(root: Path) -> dict[str, Any]:
    """Everything that is wrong with the ledger, and how far it goes.

    Raises:
        SettingError: There is no run in `root`.
        StorageError: The ledger cannot be opened at all.
    """
    read_run(RunFolder(root))
    if not (root / LEDGER_FILE).exists():
        return {"n_events": 0, "chain": "", "faults": []}
    with SqliteLedger.open_readonly(root) as ledger:
        faults = [str(fault) for fault in ledger.verify()]
        n_events, chain = ledger.head()
    return {"n_events": n_events, "chain": chain, "faults": faults}


# --- places ---------------------------------------------------------------------------------------------------------


def is_served(root: Path) -> bool:
    """Whether a coordinator seems to be at work here; for sentences only, the lock itself decides."""
    with suppress(OSError, ValueError):
        return psutil.pid_exists(int(RunFolder(root).lock_file.read_text(encoding="ascii")))
    return False


def check_output(file: Path) -> None:
    """Refuse a file that could not be written, before any work; what is there stays as it is.

    Raises:
        StorageError: Its folder is missing or not writable, or it is a folder itself.
    """
    if file.is_dir():
        raise StorageError(f"{file}: is a folder; name a file")
    if not file.parent.is_dir():
        raise StorageError(f"{file}: no such folder; make it first")
    probe = file.parent / f".{file.name}.{secrets.token_hex(4)}"
    try:
        os.close(os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
        probe.unlink()
    except OSError as error:
        raise StorageError(f"{file}: {error.strerror or error}; choose another place") from None
