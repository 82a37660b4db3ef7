"""Servers on real sockets, in threads: an OpenAI-compatible one with odd moods, and whatever app is under test."""

import asyncio
import json
import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

PATIENCE_S = 20.0
WORDS = 3
"""Parts of every stream, besides its end."""


@contextmanager
def served(app: Any) -> Iterator[str]:
    """An app at an address of this machine."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        options = {"log_level": "critical", "access_log": False, "server_header": False, "ws": "none"}
        config = uvicorn.Config(app, timeout_graceful_shutdown=1, **options)
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(PATIENCE_S)


@dataclass
class LeafServer:
    """Serves leaves as models; the field `user` of a request says in which mood.

    `busy` 429, `junk` no completion, `silent` nothing until the client leaves, `steps` a stream of which each part
    waits for `go`, `endless` one that goes on until the client leaves, `breaks` one that ends in the middle.
    """

    names: Sequence[str]
    complete: Callable[[str, Any], str] = lambda model, prompt: f"{model} says {prompt}"
    seen: list[tuple[str, dict[str, str], dict[str, Any]]] = field(default_factory=list)
    go: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    arrived: threading.Event = field(default_factory=threading.Event)
    left: threading.Event = field(default_factory=threading.Event)

    @property
    def app(self) -> Starlette:
        return Starlette(
            routes=[
                Route("/v1/completions", self.answer, methods=["POST"]),
                Route("/v1/chat/completions", self.answer, methods=["POST"]),
                Route("/v1/models", self.models),
                Route("/health", lambda _request: Response()),
            ]
        )

    def models(self, _request: Request) -> Response:
        parents = {name: "the-base" if name.startswith("leaf-") else None for name in self.names}
        return JSONResponse({"data": [{"id": name, "parent": parent} for name, parent in parents.items()]})

    async def answer(self, request: Request) -> Response:
        body = await request.json()
        self.seen.append((request.url.path, dict(request.headers), body))
        mood, model = body.get("user"), body.get("model")
        headers = {"x-request-id": "r1", "x-ratelimit-remaining-requests": "7", "set-cookie": "secret=1"}
        if model not in self.names:
            return JSONResponse({"error": {"message": f"no {model}", "code": 404}}, 404, headers)
        if mood == "busy":
            return JSONResponse({"error": {"message": "busy"}}, 429, headers | {"retry-after": "3"})
        if mood == "junk":
            return JSONResponse({"hello": "world"}, headers=headers)
        if mood == "silent":
            self.arrived.set()
            await self.until_left(request)
            return Response()
        if body.get("stream"):
            parts = self.parts(request, body, mood)
            return StreamingResponse(parts, media_type="text/event-stream", headers=headers)
        return JSONResponse(self.document(request.url.path, body), headers=headers)

    def document(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """Whole answers, `n` for each prompt; each prompt and each answer of one is worth a token."""
        given, n = body.get("prompt", body.get("messages")), body.get("n", 1)
        prompts = given if isinstance(given, list) and "prompt" in body and not isinstance(given[0], int) else [given]
        texts = [self.complete(body["model"], prompt) + "+" * i for prompt in prompts for i in range(n)]
        is_chat = path.endswith("chat/completions")
        choices = [
            {"index": i, "finish_reason": "stop"}
            | ({"message": {"role": "assistant", "content": text}} if is_chat else {"text": text})
            for i, text in enumerate(texts)
        ]
        usage = {
            "prompt_tokens": len(prompts),
            "completion_tokens": len(texts),
            "total_tokens": len(prompts) + len(texts),
            "prompt_tokens_details": {"cached_tokens": 1},
        }
        kind = "chat.completion" if is_chat else "text_completion"
        return {"id": "c1", "object": kind, "created": 1, "model": body["model"], "choices": choices, "usage": usage}

    async def parts(self, request: Request, body: dict[str, Any], mood: str | None) -> AsyncIterator[bytes]:
        text = self.complete(body["model"], body.get("prompt"))
        for number in range(WORDS):
            if mood == "steps":
                await asyncio.to_thread(self.go.acquire, timeout=PATIENCE_S)
            yield f"data: {json.dumps({'choices': [{'index': 0, 'text': f'{text} {number}'}]})}\n\n".encode()
            self.arrived.set()
            if mood == "breaks":
                raise ConnectionAbortedError
            if mood == "endless":
                await self.until_left(request)
                return
        yield b"data: [DONE]\n\n"

    async def until_left(self, request: Request) -> None:
        """Wait for the client to leave, in whichever way that is told: by a message, or by an end to this task."""
        try:
            while (await request.receive())["type"] != "http.disconnect":
                pass
        finally:
            self.left.set()
