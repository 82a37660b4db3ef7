"""The connection to the server that has the leaves. Which headers pass is named here; others do not."""

from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from http.cookiejar import CookieJar, DefaultCookiePolicy

import httpx

from tinylora.proxy.asking import RefusedRequest

REQUEST_HEADERS = frozenset(
    {
        "accept", "accept-encoding", "authorization", "content-type", "openai-beta", "openai-organization",
        "openai-project", "traceparent", "tracestate", "user-agent", "x-request-id",
    }
)  # fmt: skip
RESPONSE_HEADERS = frozenset(
    {
        "cache-control", "content-encoding", "content-length", "content-type", "openai-processing-ms",
        "openai-version", "retry-after", "www-authenticate", "x-request-id",
    }
)  # fmt: skip
RESPONSE_PREFIX = b"x-ratelimit-"
CONNECT_S, WRITE_S = 5.0, 60.0
ASK_S = 2.0
"""For small questions: is it there, what does it serve."""


class Upstream:
    """An OpenAI-compatible server.

    Args:
        url: Such as http://127.0.0.1:8000; a trailing /v1 is understood.
        timeout_s: Longest silence: before the answer begins, and between two parts of it.
        base: What the server calls the base; empty: it is asked.
        fallback: What the base is called if the server does not tell.
        transport: For tests.
    """

    def __init__(
        self,
        url: str,
        *,
        timeout_s: float,
        base: str = "",
        fallback: str = "",
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self.url = url.rstrip("/").removesuffix("/v1")
        self._base, self._fallback, self._timeout_s = base, fallback, timeout_s
        self._client = httpx.AsyncClient(
            base_url=self.url,
            timeout=httpx.Timeout(timeout_s, connect=CONNECT_S, write=WRITE_S),
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=64),
            cookies=CookieJar(DefaultCookiePolicy(allowed_domains=())),  # else one client's go to all others
            trust_env=False,  # a proxy for the internet has no business between us and a server of this machine
            transport=transport,
        )

    async def close(self) -> None:
        """Give up all connections."""
        await self._client.aclose()

    @asynccontextmanager
    async def post(self, path: str, headers: dict[str, str], content: bytes) -> AsyncIterator[httpx.Response]:
        """The beginning of the answer; its body is read by whoever asked, and closed at the end of the block.

        Raises:
            RefusedRequest: The server cannot be reached, says nothing in time, or what it says is no HTTP.
        """
        request = self._client.build_request("POST", path, headers=headers, content=content)
        try:
            response = await self._client.send(request, stream=True)
        except httpx.HTTPError as error:
            raise self._failed(error) from None
        try:
            yield response
        finally:
            await response.aclose()

    def _failed(self, error: httpx.HTTPError) -> RefusedRequest:
        if isinstance(error, httpx.TimeoutException) and not isinstance(error, httpx.ConnectTimeout):
            told, status, code = f"said nothing for {self._timeout_s:g} s", 504, "upstream_timeout"
        elif isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
            told, status, code = "cannot be reached", 502, "upstream_unreachable"
        else:
            told, status, code = f"broke off ({type(error).__name__})", 502, "upstream_broken"
        return RefusedRequest(f"the server behind this router {told}", status=status, code=code, kind="upstream_error")

    async def is_well(self) -> bool:
        """Whether it answers `/health` with a success."""
        try:
            return (await self._client.get("/health", timeout=ASK_S)).is_success
        except httpx.HTTPError:
            return False

    async def models(self, headers: Mapping[str, str] | None = None) -> list[dict] | None:
        """What it serves; None where it does not tell."""
        try:
            key = {name: value for name, value in (headers or {}).items() if name == "authorization"}
            found = (await self._client.get("/v1/models", headers=key, timeout=ASK_S)).json()["data"]
            return [one for one in found if isinstance(one, dict) and isinstance(one.get("id"), str)]
        except (httpx.HTTPError, ValueError, KeyError, TypeError):
            return None

    async def base_name(self, headers: Mapping[str, str] | None = None) -> str:
        """What it calls the base without a leaf: its first model that is no LoRA."""
        if not self._base:
            names = [one["id"] for one in await self.models(headers) or () if not one.get("parent")]
            self._base = next((name for name in names if not name.startswith("leaf-")), "")
        return self._base or self._fallback


def passing_in(given: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Of a client's headers those that the server gets. Without the client's word nothing is compressed."""
    kept = {name.lower(): value for name, value in given if name.lower() in REQUEST_HEADERS}
    return {"accept-encoding": "identity", **kept}


def passing_out(response: httpx.Response) -> list[tuple[bytes, bytes]]:
    """Of the server's headers those that the client gets."""
    lowered = [(name.lower(), value) for name, value in response.headers.raw]
    return [
        (name, value)
        for name, value in lowered
        if name.decode("latin-1") in RESPONSE_HEADERS or name.startswith(RESPONSE_PREFIX)
    ]
