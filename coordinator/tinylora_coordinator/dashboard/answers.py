"""How the API answers: documents as JSON, refusals with a word and a sentence, and nothing twice to whoever has it."""

import asyncio
import gzip
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.responses import Response

from tinylora_coordinator.dashboard import documents as doc

P = ParamSpec("P")
T = TypeVar("T")

ALWAYS_ASK = "private, no-cache"
"""For what has a tag: kept by the reader's browser alone, and asked for again each time."""
NEVER_KEEP = "no-store"
GZIP_LEVEL = 5
_WORTH_IT_BYTES = 2000


class Refusal(HTTPException):
    """An answer that is not what was asked for; raised anywhere in a route, or while a body is read for one.

    Args:
        status: Of HTTP.
        error: A word for programs.
        reason: One sentence for people.
        headers: Further ones.
    """

    def __init__(self, status: int, error: str, reason: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(status, reason, dict(headers or {}))
        self.error = error


def refuse(refusal: Refusal) -> Response:
    """A refusal as an answer."""
    return answer(doc.Failure(error=refusal.error, reason=refusal.detail), refusal.status_code, refusal.headers)


def answer(document: BaseModel, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """A document as an answer that nobody keeps, without the fields that are at their default."""
    return json_answer(to_json(document), status, {"cache-control": NEVER_KEEP, **(headers or {})})


def json_answer(body: bytes, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """JSON as an answer."""
    return Response(body, status, headers, media_type="application/json")


def to_json(document: BaseModel) -> bytes:
    """A document as it is sent: without the fields that are at their default, of which a large tree has many."""
    return document.model_dump_json(exclude_defaults=True).encode()


def has_it(headers: Mapping[str, str], *tags: str) -> bool:
    """Whether the reader has one of these versions already, by If-None-Match."""
    known = {tag.strip().removeprefix("W/") for tag in headers.get("if-none-match", "").split(",")}
    return not known.isdisjoint(tags)


def takes_gzip(headers: Mapping[str, str]) -> bool:
    """Whether the reader's Accept-Encoding lets us compress."""
    for coding in headers.get("accept-encoding", "").lower().replace(" ", "").split(","):
        name, _, weight = coding.partition(";q=")
        if name == "gzip":
            return weight.strip("0.") != "" or weight == ""
    return False


def tagged_answer(body: bytes, tag: str, headers: Mapping[str, str]) -> Response:
    """JSON as an answer that is asked for again each time, compressed where that is worth it; some milliseconds then.

    Args:
        body: The JSON.
        tag: Of this version of it.
        headers: Of the request.
    """
    more = {"etag": tag, "cache-control": ALWAYS_ASK, "vary": "accept-encoding"}
    if len(body) >= _WORTH_IT_BYTES and takes_gzip(headers):
        body = gzip.compress(body, GZIP_LEVEL, mtime=0)
        more |= {"etag": zipped_tag(tag), "content-encoding": "gzip"}
    return json_answer(body, headers=more)


def packed(body: bytes, media_type: str, headers: Mapping[str, str]) -> Response:
    """An answer that nobody keeps, compressed where that is worth it; some milliseconds then.

    Args:
        body: Its content.
        media_type: Of the content.
        headers: Of the request.
    """
    more = {"cache-control": NEVER_KEEP, "content-type": media_type, "vary": "accept-encoding"}
    if len(body) >= _WORTH_IT_BYTES and takes_gzip(headers):
        body = gzip.compress(body, GZIP_LEVEL, mtime=0)
        more["content-encoding"] = "gzip"
    return Response(body, headers=more)


def zipped_tag(tag: str) -> str:
    """The tag of the same version, compressed: other bytes, so another tag."""
    return f'{tag[:-1]}.gz"'


def not_modified(tag: str) -> Response:
    """The reader has it already."""
    return Response(status_code=304, headers={"etag": tag, "cache-control": ALWAYS_ASK, "vary": "accept-encoding"})


class Threads:
    """Threads of the dashboard's own: what it asks of disk and of views takes none from those who serve workers.

    Args:
        n: As many at once; whoever comes later waits.
        name: Of the threads.
        most_waiting: As many wait; whoever comes later is refused.
    """

    def __init__(self, n: int, name: str, *, most_waiting: int = 1000) -> None:
        self._pool = ThreadPoolExecutor(n, thread_name_prefix=name)
        self._free = threading.BoundedSemaphore(n + most_waiting)

    async def __call__(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Do work in one of them.

        Raises:
            Refusal: Too many wait.
        """
        if not self._free.acquire(blocking=False):
            raise Refusal(503, "busy", "too many ask for this at once", {"retry-after": "2"})
        try:
            doing = self._pool.submit(work, *args, **kwargs)
        except RuntimeError:  # it was closed
            self._free.release()
            raise Refusal(503, "stopping", "the server is about to stop", {"retry-after": "5"}) from None
        doing.add_done_callback(lambda _: self._free.release())  # also where whoever asked has left meanwhile
        return await asyncio.wrap_future(doing)

    def close(self) -> None:
        """Begin nothing more."""
        self._pool.shutdown(wait=False, cancel_futures=True)


class Pace:
    """How often one place may ask for something costly; counts in minutes that begin with its first asking.

    Args:
        per_minute: As often.
        clock: Seconds.
    """

    _MINUTE_S = 60.0
    _N_PLACES = 10_000

    def __init__(self, per_minute: int, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_minute, self._clock = per_minute, clock
        self._asked: dict[str, tuple[float, int]] = {}
        self._lock = threading.Lock()

    def take(self, place: str) -> None:
        """Count one.

        Raises:
            Refusal: There were too many.
        """
        with self._lock:
            now = self._clock()
            begun, n = self._asked.get(place, (now, 0))
            if now - begun >= self._MINUTE_S:
                begun, n = now, 0
            if n >= self._per_minute:
                wait_s = max(1, round(begun + self._MINUTE_S - now))
                raise Refusal(429, "rate", "too often; wait a minute", {"retry-after": str(wait_s)})
            if len(self._asked) >= self._N_PLACES:
                self._forget(now)
            self._asked[place] = (begun, n + 1)

    def _forget(self, now: float) -> None:
        self._asked = {place: kept for place, kept in self._asked.items() if now - kept[0] < self._MINUTE_S}
        while len(self._asked) >= self._N_PLACES:
            self._asked.pop(next(iter(self._asked)))
