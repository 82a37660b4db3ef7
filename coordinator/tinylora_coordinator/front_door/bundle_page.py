"""The published bundle over HTTP: whole or a range, always of one version.

The file is opened once and read through that opening; a new version replaces the name, not the opened file, so nobody
gets half of the old and half of the new. The ETag is the sha256: a broken download goes on only with the same version.
"""

import hashlib
import os
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.types import ASGIApp, Receive, Scope, Send

_PART_BYTES = 2**16
_NONE_YET = {"error": "not_found", "reason": "no bundle has been published yet; the operator or the run's end does so"}


@dataclass(frozen=True)
class Part:
    """Bytes `start` to before `stop`."""

    start: int
    stop: int


class Unsatisfiable(Exception):
    """The range begins behind the end."""


def read_range(text: str, size: int) -> Part | None:
    """What a Range header asks for; None for all of it, which is also the answer to more ranges and to nonsense.

    Raises:
        Unsatisfiable: See there.
    """
    match = re.fullmatch(r"bytes=(\d{0,18})-(\d{0,18})", text.strip(), re.ASCII)
    if not match or not any(match.groups()):
        return None
    first, last = match.groups()
    if not first:
        start, stop = max(size - int(last), 0), size
    else:
        start, stop = int(first), min(int(last) + 1, size) if last else size
        if last and int(last) < start:
            return None
    if start >= size or start >= stop:
        raise Unsatisfiable
    return Part(start, stop)


def bundle_page(file: Path) -> ASGIApp:
    """Answers GET and HEAD with the bundle in `file`."""
    hashes = _Hashes()

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        try:
            opened = open(file, "rb", buffering=0)  # noqa: SIM115  (closed below)
        except OSError:
            await JSONResponse(_NONE_YET, 404)(scope, receive, send)
            return
        with opened:
            etag = f'"{await run_in_threadpool(hashes.sha256, opened)}"'
            await _answer(opened, etag, scope, receive, send)

    return answer


async def _answer(opened: IO[bytes], etag: str, scope: Scope, receive: Receive, send: Send) -> None:
    size, asked = os.fstat(opened.fileno()).st_size, Request(scope).headers
    headers = {"etag": etag, "accept-ranges": "bytes", "cache-control": "no-cache"}
    if etag in (tag.strip() for tag in asked.get("if-none-match", "").split(",")):
        await Response(status_code=304, headers=headers)(scope, receive, send)
        return
    try:
        is_same = asked.get("if-range", etag) == etag
        part = read_range(asked.get("range", ""), size) if is_same else None
    except Unsatisfiable:
        headers |= {"content-range": f"bytes */{size}"}
        await Response(status_code=416, headers=headers)(scope, receive, send)
        return
    status = 206 if part else 200
    if part:
        headers["content-range"] = f"bytes {part.start}-{part.stop - 1}/{size}"
    part = part or Part(0, size)
    headers |= {
        "content-type": "application/octet-stream",
        "content-length": str(part.stop - part.start),
        "content-disposition": 'attachment; filename="bundle.safetensors"',
    }
    if scope["method"] == "HEAD":
        await Response(None, status, headers)(scope, receive, send)
    else:  # it stops reading the file when the client leaves
        await StreamingResponse(_read_part(opened, part), status, headers)(scope, receive, send)


async def _read_part(opened: IO[bytes], part: Part) -> AsyncIterator[bytes]:
    at = part.start
    while at < part.stop:
        data = await run_in_threadpool(os.pread, opened.fileno(), min(_PART_BYTES, part.stop - at), at)
        if not data:
            raise OSError("the bundle's file was shortened while it was sent")
        at += len(data)
        yield data


class _Hashes:
    """sha256 of the version there is: of a file of gigabytes one does not take it for each request."""

    def __init__(self) -> None:
        self._known: tuple[tuple[int, ...], str] = ((), "")

    def sha256(self, opened: IO[bytes]) -> str:
        """Of the opened file, from memory where it is the one of last time."""
        stat = os.fstat(opened.fileno())
        version = (stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns)
        if self._known[0] != version:
            self._known = (version, hashlib.file_digest(opened, "sha256").hexdigest())  # pyright: ignore[reportArgumentType]
        return self._known[1]
