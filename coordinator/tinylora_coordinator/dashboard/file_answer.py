"""A file as an answer, whole or one range of it; what is wrong with a range is told like every other refusal."""

import re
from collections.abc import Mapping
from pathlib import Path

from starlette.datastructures import Headers
from starlette.responses import FileResponse
from starlette.types import Receive, Scope, Send

from tinylora_coordinator.dashboard.answers import NEVER_KEEP, Refusal

_ONE_RANGE = re.compile(r"bytes=(?:(\d{1,18})-(\d{0,18})|-(\d{1,18}))", re.ASCII)


class FileAnswer(FileResponse):
    """See the module.

    Args:
        file: The file.
        name: Under which a browser keeps it.
        media_type: Of its content.
        headers: Further ones.
    """

    def __init__(self, file: Path, name: str, media_type: str, headers: Mapping[str, str] | None = None) -> None:
        more = {"cache-control": NEVER_KEEP, **(headers or {})}
        super().__init__(file, media_type=media_type, filename=name, headers=more)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer.

        Raises:
            Refusal: The file is gone, or the range begins behind its end.
        """
        try:
            size = Path(self.path).stat().st_size
        except OSError:
            raise Refusal(404, "not_found", "this file is gone") from None
        asked = Headers(scope=scope).get("range", "")
        if not _is_range(asked, size):  # several ranges, and nonsense, are answered with the whole
            scope = {**scope, "headers": [(name, value) for name, value in scope["headers"] if name != b"range"]}
        await super().__call__(scope, receive, send)


def _is_range(asked: str, size: int) -> bool:
    found = _ONE_RANGE.fullmatch(asked.strip())
    if found is None:
        return False
    first, last, n_last = found.groups()
    if n_last is not None:
        return int(n_last) > 0 and size > 0
    if last and int(last) < int(first):
        return False
    if int(first) >= size:
        raise Refusal(416, "range", "the range begins behind the end", {"content-range": f"bytes */{size}"})
    return True
