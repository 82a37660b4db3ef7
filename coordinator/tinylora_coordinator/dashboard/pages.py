"""The page: one document for all its addresses, and the built files it loads; kept in memory, compressed once.

The addresses below are those of `coordinator/web/src`: which of its pages is shown, the page decides by itself.
"""

import gzip
import hashlib
import mimetypes
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response

from tinylora_coordinator.dashboard.answers import Refusal, has_it, takes_gzip

STATIC = Path(__file__).parent / "static"
PAGE_PATHS = (
    "/",
    "/node/{path}",
    "/workers",
    "/worker/{worker}",
    "/timeline",
    "/routing",
    "/artifacts",
    "/join",
    "/admin",
)
OF_THE_BUILD = frozenset({"licenses.md", "manifest.json", "sources.sha256"})
"""Files that say what was built of what: tests read them, no browser needs them."""
_FOREVER = "public, max-age=31536000, immutable"
_ASK = "no-cache"
_TEXT = ("text/", "application/javascript", "application/json", "image/svg+xml", "application/manifest+json")


@dataclass(frozen=True)
class File:
    """A built file."""

    body: bytes
    zipped: bytes | None
    """None where compressing gains nothing."""
    media_type: str
    tag: str
    keep: str

    def answer(self, headers: Mapping[str, str]) -> Response:
        """To a request with these headers."""
        is_zipped = self.zipped is not None and takes_gzip(headers)
        tag = f'"{self.tag}.gz"' if is_zipped else f'"{self.tag}"'
        more = {"etag": tag, "cache-control": self.keep, "vary": "accept-encoding"}
        if has_it(headers, tag):
            return Response(status_code=304, headers=more)
        if is_zipped:
            more["content-encoding"] = "gzip"
        return Response(self.zipped if is_zipped else self.body, headers=more, media_type=self.media_type)


class Pages:
    """All built files by address, such as `/assets/index-CX7FSm9C.js`.

    Args:
        folder: What `make web` wrote.
    """

    def __init__(self, folder: Path = STATIC) -> None:
        files = sorted(file for file in folder.rglob("*") if file.is_file() and file.name not in OF_THE_BUILD)
        self.files = {f"/{file.relative_to(folder).as_posix()}": _read(file, folder) for file in files}

    async def page(self, request: Request) -> Response:
        """The page, whichever of its addresses was asked.

        Raises:
            Refusal: It was never built.
        """
        found = self.files.get("/index.html")
        if found is None:
            raise Refusal(404, "not_found", "the page is not built (make web); /lite shows the same without it")
        return found.answer(request.headers)

    async def file(self, request: Request) -> Response:
        """A file of it.

        Raises:
            Refusal: There is none of that name.
        """
        found = self.files.get(request.url.path)
        if found is None:
            raise Refusal(404, "not_found", "there is no such file")
        return found.answer(request.headers)


def _read(file: Path, folder: Path) -> File:
    body = file.read_bytes()
    media_type = _media_type(file)
    zipped = gzip.compress(body, 9, mtime=0) if media_type.startswith(_TEXT) else None
    is_named_by_content = file.parent != folder  # Vite puts what it names by a hash into assets/
    return File(
        body=body,
        zipped=zipped if zipped is not None and len(zipped) < len(body) else None,
        media_type=media_type,
        tag=hashlib.sha256(body).hexdigest()[:32],
        keep=_FOREVER if is_named_by_content else _ASK,
    )


def _media_type(file: Path) -> str:
    """By our own table first: the system's may say text/plain of scripts, which browsers then refuse."""
    own = {".js": "text/javascript", ".css": "text/css", ".html": "text/html", ".svg": "image/svg+xml"}
    return own.get(file.suffix) or mimetypes.guess_type(file.name)[0] or "application/octet-stream"
