"""The ASGI application: a request in, the leaf chosen, the answer passed through as it comes.

A request that names another model than the tree is passed on as it stands. What the server answers, errors too, reaches
the client byte by byte; only a batch whose prompts belong to several leaves is put together here.
"""

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias

import httpx
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from tinylora.proxy.answering import error_document, merged, model_card, model_list
from tinylora.proxy.asking import Asked, RefusedRequest, by_model, read_request
from tinylora.proxy.choosing import Choice, Chooser
from tinylora.proxy.upstream import Upstream, passing_in, passing_out

log = logging.getLogger(__name__)

LEAF_HEADER, MODEL_HEADER = "x-tinylora-leaf", "x-tinylora-model"
Headers: TypeAlias = list[tuple[bytes, bytes]]
Choose: TypeAlias = Callable[[Asked], Awaitable[list[Choice]]]


@dataclass(frozen=True)
class Limits:
    """Of one request."""

    body_bytes: int = 16 << 20
    body_s: float = 60.0
    """For the whole body to arrive."""


class _PartFailed(Exception):
    """The server answered a part of a batch otherwise than with a success."""

    def __init__(self, response: httpx.Response) -> None:
        super().__init__(response.status_code)
        self.response = response


def make_app(chooser: Chooser, upstream: Upstream, *, name: str, limits: Limits | None = None) -> Starlette:
    """The router as an ASGI application.

    Args:
        chooser: Finds leaves.
        upstream: Has them.
        name: Model name by which clients ask for the tree as a whole.
        limits: Of requests.
    """
    bounds = limits or Limits()

    async def models(_request: Request) -> JSONResponse:
        return JSONResponse(model_list([name, *chooser.names]))

    async def model(request: Request) -> JSONResponse:
        wanted = request.path_params["wanted"]
        if wanted not in (name, *chooser.names):
            raise HTTPException(404, f"model {wanted[:80]!r}: not known here; see /v1/models")
        return JSONResponse(model_card(wanted))

    async def health(_request: Request) -> JSONResponse:
        is_well = await upstream.is_well()
        told = {"status": "ok" if is_well else "the server behind this router does not answer", "upstream": is_well}
        return JSONResponse(told, 200 if is_well else 503)

    @asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[None]:
        yield
        await upstream.close()

    return Starlette(
        routes=[
            Route("/v1/completions", Endpoint(chooser.completion, upstream, name, bounds), methods=["POST"]),
            Route("/v1/chat/completions", Endpoint(chooser.chat, upstream, name, bounds), methods=["POST"]),
            Route("/v1/models", models),
            Route("/v1/models/{wanted}", model),
            Route("/health", health),
        ],
        exception_handlers={HTTPException: _http_error, Exception: _bug},
        lifespan=lifespan,
    )


class Endpoint:
    """One of the addresses to which texts are sent.

    Args:
        choose: Leaves of a request's texts.
        upstream: Where they are.
        name: Model name of the tree.
        limits: Of requests.
    """

    def __init__(self, choose: Choose, upstream: Upstream, name: str, limits: Limits) -> None:
        self._choose, self._upstream, self._name, self._limits = choose, upstream, name, limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request; whatever is under way for it ends when the client leaves."""
        request = Request(scope, receive)
        try:
            data = await _read_body(request, self._limits)
            await _while_there(self._answer(request, data, send), receive)
        except ClientDisconnect:
            return
        except RefusedRequest as refused:
            answer = JSONResponse(error_document(refused), refused.status)
            await answer(scope, receive, send)

    async def _answer(self, request: Request, data: bytes, send: Send) -> None:
        asked, headers = read_request(data), passing_in(request.headers.items())
        if asked.model not in (None, self._name):
            await self._pass(request.url.path, headers, data, send, [])
            return
        choices = await self._choose(asked)
        base = "" if all(choice.is_trained for choice in choices) else await self._upstream.base_name(headers)
        told = _told(choices, base)
        groups = by_model([choice.model(base) for choice in choices])
        headers["content-type"] = "application/json"
        if len(groups) == 1:
            content = _written(asked, model=next(iter(groups)))
            await self._pass(request.url.path, headers, content, send, told)
            return
        if asked.is_stream:
            raise RefusedRequest(
                f"these prompts belong to {len(groups)} leaves, whose answers cannot be one stream; send them one by "
                "one, or without stream",
                code="several_leaves",
                param="stream",
            )
        await self._pass_in_parts(request, asked, groups, headers, send, told)

    async def _pass(self, path: str, headers: dict[str, str], content: bytes, send: Send, told: Headers) -> None:
        """The server's answer, each part as soon as it is there."""
        async with self._upstream.post(path, headers, content) as response:
            kept = [*passing_out(response), *told]
            await send({"type": "http.response.start", "status": response.status_code, "headers": kept})
            try:
                async for part in response.aiter_raw():
                    await send({"type": "http.response.body", "body": part, "more_body": True})
            except httpx.HTTPError as error:
                # The head is out: all that can still be told is that this was not the end, by breaking off, too.
                log.warning("the server broke off within an answer (%s)", type(error).__name__)
                return
            await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _pass_in_parts(
        self,
        request: Request,
        asked: Asked,
        groups: dict[str, list[int]],
        headers: dict[str, str],
        send: Send,
        told: Headers,
    ) -> None:
        """The prompts of each leaf in a request of their own, all at once, and their answers as one."""
        prompts = asked.prompts
        headers = {**headers, "accept-encoding": "identity"}

        async def ask(model: str, numbers: Sequence[int]) -> dict[str, Any]:
            content = _written(asked, model=model, prompt=[prompts[number] for number in numbers])
            async with self._upstream.post(request.url.path, headers, content) as response:
                return await _document(response)

        try:
            async with asyncio.TaskGroup() as together:
                tasks = [together.create_task(ask(model, numbers)) for model, numbers in groups.items()]
        except BaseExceptionGroup as failures:
            first = failures.exceptions[0]
            if not isinstance(first, _PartFailed):
                raise first from None
            await _resend(first.response, send, told)
            return
        parts = [(numbers, task.result()) for numbers, task in zip(groups.values(), tasks, strict=True)]
        answer = JSONResponse(merged(parts, model=self._name))
        answer.raw_headers += told
        await answer(request.scope, request.receive, send)


# --- bodies ----------------------------------------------------------------------------------------------------------


async def _read_body(request: Request, limits: Limits) -> bytes:
    too_long = RefusedRequest(f"body: expected at most {limits.body_bytes} bytes", status=413, code="body_too_large")
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length) > limits.body_bytes:
        raise too_long
    data = bytearray()
    try:
        async with asyncio.timeout(limits.body_s):
            async for part in request.stream():
                data += part
                if len(data) > limits.body_bytes:
                    raise too_long
    except TimeoutError:
        raise RefusedRequest("body: did not arrive in time", status=408, code="body_too_slow") from None
    return bytes(data)


def _written(asked: Asked, **changed: Any) -> bytes:
    """The request as the server gets it; all that is not changed stays as it was."""
    return json.dumps({**asked.body, **changed}, separators=(",", ":")).encode()


async def _document(response: httpx.Response) -> dict[str, Any]:
    """The answer to a part of a batch, whole."""
    try:
        await response.aread()
    except httpx.HTTPError as error:
        raise _bad_upstream(f"broke off ({type(error).__name__})") from None
    if not response.is_success:
        raise _PartFailed(response)
    try:
        found = response.json()
        if all(isinstance(choice["index"], int) for choice in found["choices"]):
            return found
    except (ValueError, KeyError, TypeError):
        pass
    raise _bad_upstream("answered with something that is no completion")


def _bad_upstream(what: str) -> RefusedRequest:
    return RefusedRequest(
        f"the server behind this router {what}", status=502, code="bad_upstream", kind="upstream_error"
    )


async def _resend(response: httpx.Response, send: Send, told: Headers) -> None:
    of_bytes = (b"content-encoding", b"content-length")  # which are those that were read, not those that came
    kept = [(name, value) for name, value in passing_out(response) if name not in of_bytes]
    length = (b"content-length", str(len(response.content)).encode())
    await send({"type": "http.response.start", "status": response.status_code, "headers": [*kept, length, *told]})
    await send({"type": "http.response.body", "body": response.content, "more_body": False})


# --- answers ---------------------------------------------------------------------------------------------------------


def _told(choices: Sequence[Choice], base: str) -> Headers:
    """Which leaves were chosen and which models asked, each once, in the order of the prompts."""
    leaves = dict.fromkeys("none" if choice.leaf is None else choice.leaf or "root" for choice in choices)
    models = dict.fromkeys(choice.model(base) for choice in choices)
    pairs = ((LEAF_HEADER, leaves), (MODEL_HEADER, models))
    return [(name.encode(), ",".join(values).encode("latin-1", "replace")) for name, values in pairs]


async def _while_there(work: Coroutine[Any, Any, None], receive: Receive) -> None:
    """Do this, unless the client leaves first: then it is cancelled, and with it what it asked of the server."""
    task, gone = asyncio.ensure_future(work), asyncio.ensure_future(_gone(receive))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        is_done = task.done()
        for either in (task, gone):
            either.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)
    if is_done:
        task.result()


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _http_error(_request: Request, error: Exception) -> JSONResponse:
    """Starlette's own, such as a path that is not there."""
    assert isinstance(error, HTTPException)
    code = "not_found" if error.status_code == 404 else None
    refused = RefusedRequest(error.detail, status=error.status_code, code=code)
    return JSONResponse(error_document(refused), error.status_code, headers=error.headers)


async def _bug(_request: Request, _error: Exception) -> JSONResponse:
    refused = RefusedRequest("a fault of this router; its log has more", status=500, kind="server_error")
    return JSONResponse(error_document(refused), 500)
