"""Which request may pass, judged by its head alone: nothing of its body has been read, and none of it is decoded.

The path is compared as the bytes that came, so an odd spelling is another path and there is nothing to normalise.
What is not public does not exist: 404, with one sentence for all; 405 only where the path is public and the method not.
"""

from collections.abc import Iterable

from starlette.types import Scope

from tinylora_coordinator.heads import Headers, Refusal, values

NOT_PUBLIC = Refusal(404, "not_found", "this address is not public")


class AllowList:
    """The public paths and their methods.

    Attributes:
        routes: (METHOD, path), sorted.
    """

    def __init__(self, routes: Iterable[tuple[str, str]]) -> None:
        self.routes = sorted(routes)
        self._methods: dict[bytes, list[str]] = {}
        for method, path in self.routes:
            self._methods.setdefault(path.encode("ascii"), []).append(method)

    def judge(self, scope: Scope) -> Refusal | None:
        """Whether this very path is public, with this method, and without a query."""
        methods = self._methods.get(scope["raw_path"])
        if methods is None or scope["query_string"]:
            return NOT_PUBLIC
        if scope["method"] not in methods:
            allowed = ", ".join(methods)
            return Refusal(405, "method", f"only {allowed} is answered here", {"allow": allowed})
        return None


def judge_head(headers: Headers, limit_bytes: int) -> Refusal | None:
    """Whether the headers are small enough; `4` counts what separates name, value and line."""
    if sum(len(key) + len(value) + 4 for key, value in headers) > limit_bytes:
        return Refusal(431, "headers", f"at most {limit_bytes} bytes of headers")
    return None


def judge_length(headers: Headers, limit_bytes: int) -> Refusal | None:
    """Whether the declared length will do; the HTTP protocol reads no further than declared.

    Args:
        headers: Of the request.
        limit_bytes: The longest body; 0 where none is expected, and then no length need be declared.
    """
    lengths = values(headers, b"content-length")
    if values(headers, b"transfer-encoding") or (limit_bytes and not lengths):
        return Refusal(411, "length", "a body needs a content-length")
    if len(lengths) > 1 or not all(length.isdigit() for length in lengths):
        return Refusal(400, "length", "content-length: expected one number")
    if lengths and (len(lengths[0]) > 18 or int(lengths[0]) > limit_bytes):
        return Refusal(413, "length", f"at most {limit_bytes} bytes")
    return None


def length_of(headers: Headers) -> int:
    """The declared length of a body that `judge_length` let pass."""
    return int(next(iter(values(headers, b"content-length")), b"0"))
