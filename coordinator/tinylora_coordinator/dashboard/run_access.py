"""Who a request to a run's dashboard comes from, by the operator's file; `access` decides, here it is looked up."""

import threading
import time
from collections.abc import Callable, Mapping

from tinylora.errors import RefusedError, SettingError, StorageError
from tinylora_coordinator.access_tokens import AccessToken, KnownToken, judge_token, parse_access
from tinylora_coordinator.dashboard.access import (
    Viewers,
    cookie_name,
    judge_session,
    make_session,
    session_token_id,
    shown_bearer,
    shown_cookies,
)
from tinylora_coordinator.dashboard.services import Who
from tinylora_coordinator.operator_store import OperatorStore

TRUST_S = 0.75
"""So long what was looked up is believed: who is revoked is out after that."""
_MOST_KNOWN = 1000


class RunAccess:
    """Implements `services.Access`.

    Args:
        store: The operator's file.
        mark: Of the run, see `access_tokens.mark_of`.
        key: What cookies are sealed with.
        viewers: Who may look.
        now: Seconds since 1970.
        clock: Seconds.
    """

    def __init__(
        self,
        store: OperatorStore,
        *,
        mark: str,
        key: bytes,
        viewers: Viewers = "anybody",
        now: Callable[[], float] = time.time,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._known = _Known(store, clock)
        self._mark, self._key, self._viewers, self._now = mark, key, viewers, now

    @property
    def cookie_name(self) -> str:
        """Of the cookie that a reader who signed in sends along."""
        return cookie_name(self._mark)

    @property
    def needs_token(self) -> bool:
        """Whether nobody may look without a token."""
        return self._viewers == "token"

    def who(self, headers: Mapping[str, str], is_local: bool) -> Who:
        """Who sent these headers: what they show counts where it is good, else he is one of many.

        Args:
            headers: Of the request.
            is_local: Whether the request came by the loopback listener.
        """
        if is_local:
            return Who("admin", None, is_local=True)
        shown = self._by_token(shown_bearer(headers.get("authorization", "")))
        shown = shown or self._by_cookie(shown_cookies(headers.get("cookie", ""), self.cookie_name))
        return shown or Who("nobody" if self.needs_token else "viewer")

    def sign_in(self, token: str) -> tuple[str, str, int, Who]:
        """The cookie for a token: name, value, age in seconds, and whose it is.

        Raises:
            RefusedError: The token is good for nothing here, and why.
            StorageError: The operator's file cannot be read.
        """
        now_s = self._now()
        try:
            shown = parse_access(token, self._mark)
        except SettingError as error:
            raise RefusedError(str(error)) from None
        known = self._known.look_up(shown.token_id)
        why_not = judge_token(shown, known, now_s)
        if known is None or why_not:
            raise RefusedError(why_not)
        value, ends_s = make_session(known, self._key, now_s)
        return self.cookie_name, value, max(0, int(ends_s - now_s)), Who(known.role, ends_s)

    def _by_token(self, text: str) -> Who | None:
        try:
            shown: AccessToken | None = parse_access(text, self._mark) if text else None
            known = None if shown is None else self._known.look_up(shown.token_id)
        except (SettingError, StorageError):
            return None
        if shown is None or known is None or judge_token(shown, known, self._now()):
            return None
        return Who(known.role, known.expires_s)

    def _by_cookie(self, values: list[str]) -> Who | None:
        found: Who | None = None
        for value in values[:4]:
            token_id = session_token_id(value)
            try:
                known = None if token_id is None else self._known.look_up(token_id)
            except StorageError:
                continue
            ends_s = judge_session(value, known, self._key, self._now())
            if known is not None and ends_s is not None and (found is None or known.role == "admin"):
                found = Who(known.role, ends_s)
        return found


class _Known:
    """Tokens of the file, looked up no more often than needed; may be asked from any thread."""

    def __init__(self, store: OperatorStore, clock: Callable[[], float]) -> None:
        self._store, self._clock = store, clock
        self._lock = threading.Lock()
        self._found: dict[str, tuple[float, KnownToken | None]] = {}

    def look_up(self, token_id: str) -> KnownToken | None:
        """A token.

        Raises:
            StorageError: The file cannot be read.
        """
        now = self._clock()
        with self._lock:
            looked_at, known = self._found.get(token_id, (float("-inf"), None))
        if now - looked_at < TRUST_S:
            return known
        known = self._store.find_access(token_id)
        with self._lock:
            if len(self._found) >= _MOST_KNOWN:  # of tokens that never were
                self._found.clear()
            self._found[token_id] = (now, known)
        return known
