"""The operator's desk as the API has it: what `desk` does for the commands, as documents, on the link's own store."""

import time
from collections.abc import Callable
from pathlib import Path

from pydantic import ValidationError

from tinylora.errors import SettingError
from tinylora.federation.events import BundlePublished
from tinylora.federation.ports import Order
from tinylora_coordinator import desk
from tinylora_coordinator.dashboard import documents as doc
from tinylora_coordinator.operator_store import Job, OperatorStore, Token

MOST_ORDERS = 100
"""The latest orders that are shown."""


class RunAdmin:
    """Implements `services.AdminDesk` on a run's folder. May be used from any thread.

    Args:
        root: The run's folder.
        store: Its operator's file, which stays the caller's to close.
        as_workers_do: Where workers reach the run, for an operator who came by an address.
        clock: Seconds since 1970.
    """

    def __init__(
        self,
        root: Path,
        store: OperatorStore,
        *,
        as_workers_do: Callable[[str], str] = str,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._root, self._store, self._as_workers_do, self._clock = root, store, as_workers_do, clock

    def state(self) -> doc.AdminState:
        """Who waits for approval, and the latest orders.

        Raises:
            StorageError: The operator's file cannot be read.
        """
        pending = tuple(
            doc.PendingWorker(
                worker=worker.worker,
                name=worker.name,
                token_id=worker.token_id,
                tags=worker.tags,
                since_unix_s=worker.first_seen_s,
            )
            for worker in self._store.workers()
            if worker.state == "pending"
        )
        latest = self._store.jobs()[: -MOST_ORDERS - 1 : -1]
        return doc.AdminState(pending=pending, orders=tuple(map(order_row, latest)))

    def order(self, request: doc.OrderRequest) -> doc.OrderRow:
        """Give an order to the rounds; who is to be revoked is shut out at once.

        Raises:
            SettingError: The worker is unknown, or something is missing.
            StorageError: It cannot be written down.
        """
        given_s = self._clock()
        return order_row(Job(self._give(request, given_s), given_s, None))

    def _give(self, request: doc.OrderRequest, now_s: float) -> Order:
        reason = " ".join(request.reason.split())
        match request.kind:
            case "pause" | "resume" | "finish":
                return self._store.order(request.kind, reason=reason, now_s=now_s)
            case "revoke":
                return self._store.revoke(_worker(request), reason=reason, now_s=now_s)
            case "release":
                return self._store.steer("release", _worker(request), reason=reason, now_s=now_s)
            case "reassign":
                if request.node is None:
                    raise SettingError("reassign: name the leaf that the worker is to hold")
                worker = _worker(request)
                return self._store.steer("reassign", worker, node=request.node, reason=reason, now_s=now_s)

    def approve(self, worker: str) -> None:
        """Let a worker in that waits.

        Raises:
            SettingError: It is unknown, or was revoked.
            StorageError: It cannot be written down.
        """
        self._store.approve(worker)

    def tokens(self) -> doc.TokenList:
        """The join tokens, without their secrets.

        Raises:
            StorageError: The operator's file cannot be read.
        """
        return doc.TokenList(tokens=tuple(map(_token_row, self._store.tokens(self._clock()))))

    def make_token(self, request: doc.TokenRequest, address: str) -> doc.NewToken:
        """Make a join token.

        Args:
            request: What it is good for.
            address: scheme://host[:port] by which the operator came; empty where that is not known.

        Raises:
            SettingError: A tag is not printable, or the time is none.
            StorageError: It cannot be written down.
        """
        made = desk.create_token(
            self._root,
            now_s=self._clock(),
            uses=request.uses,
            expires=request.expires,
            tags=request.tags,
            needs_approval=request.needs_approval,
            url=self._as_workers_do(address),
        )
        return doc.NewToken(
            token=made["token"],
            token_id=made["token_id"],
            expires_unix_s=self._expires_s(made["token_id"]),
            max_workers=made["max_workers"],
            command=made["command"],
        )

    def _expires_s(self, token_id: str) -> float:
        return next(token.expires_s for token in self._store.tokens(self._clock()) if token.token_id == token_id)

    def revoke_token(self, token_id: str) -> None:
        """Let nobody in with a join token any more; workers that came with it stay.

        Raises:
            SettingError: There is no such join token.
            StorageError: It cannot be written down.
        """
        now_s = self._clock()
        if token_id not in {token.token_id for token in self._store.tokens(now_s)}:
            raise SettingError(f"token {token_id}: no such join token")
        self._store.revoke_token(token_id, now_s)


def order_row(job: Job) -> doc.OrderRow:
    """An order as people see it."""
    order = job.order
    reason = _bundle_of(order) if order.kind == "record" else order.reason
    if order.kind == "reassign":
        reason = f"to {order.node or 'root'}{f': {order.reason}' if order.reason else ''}"
    return doc.OrderRow(
        order_id=order.order_id,
        kind=order.kind,
        worker=order.worker,
        reason=reason,
        given_unix_s=job.given_s,
        outcome=job.outcome,
    )


def _bundle_of(order: Order) -> str:
    """Which bundle is to be named in the log."""
    try:
        return f"bundle {BundlePublished.model_validate_json(order.reason).sha256[:12]}"
    except ValidationError:
        return ""


def _worker(request: doc.OrderRequest) -> str:
    if not request.worker:
        raise SettingError(f"{request.kind}: name the worker")
    return request.worker


def _token_row(token: Token) -> doc.TokenRow:
    return doc.TokenRow(
        token_id=token.token_id,
        state=token.state,
        expires_unix_s=token.expires_s,
        max_workers=token.max_workers,
        n_workers=token.n_workers,
        needs_approval=token.needs_approval,
        tags=token.tags,
    )
