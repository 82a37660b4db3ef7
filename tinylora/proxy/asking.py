"""What a request asks for: its model, its texts, whether it streams. Only what routing needs is looked at."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

MAX_PROMPTS = 1024
"""In one request."""

Prompt: TypeAlias = str | list[int]
Message: TypeAlias = dict[str, str]
"""Role and text, whatever else it had."""


class RefusedRequest(Exception):
    """This request is answered here, by an error.

    Args:
        message: For people.
        status: Of HTTP.
        code: For programs.
        param: Field of the request that is wrong.
        kind: OpenAI's `type`.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        code: str | None = None,
        param: str | None = None,
        kind: str = "invalid_request_error",
    ) -> None:
        super().__init__(message)
        self.message, self.status, self.code, self.param, self.kind = message, status, code, param, kind


@dataclass(frozen=True)
class Asked:
    """A request to complete or to chat."""

    body: dict[str, Any]
    model: str | None
    """None where it named none."""
    is_stream: bool

    @property
    def prompts(self) -> list[Prompt]:
        """Of a completion, each to be routed.

        Raises:
            RefusedRequest: There is none, too many, or it is neither text nor tokens.
        """
        given: Any = self.body.get("prompt")
        if isinstance(given, str) or _are_tokens(given):
            return [given]
        if isinstance(given, list) and given and all(isinstance(one, str) or _are_tokens(one) for one in given):
            if len(given) > MAX_PROMPTS:
                raise RefusedRequest(f"prompt: expected at most {MAX_PROMPTS}, got {len(given)}", param="prompt")
            return given
        raise RefusedRequest(
            "prompt: expected a text, a list of token ids, or a list of these; without one there is nothing to route",
            param="prompt",
        )

    @property
    def messages(self) -> list[Message]:
        """Of a conversation, its texts alone; what is no text is no part of them.

        Raises:
            RefusedRequest: There are none.
        """
        given = self.body.get("messages")
        if not isinstance(given, list) or not given or not all(isinstance(one, dict) for one in given):
            raise RefusedRequest("messages: expected a list of messages, at least one", param="messages")
        return [{"role": str(one.get("role", "user")), "content": _text_of(one.get("content"))} for one in given]


def read_request(data: bytes) -> Asked:
    """A request's body.

    Raises:
        RefusedRequest: It is no JSON object, or its model is no name.
    """
    try:
        body = json.loads(data)
    except (ValueError, RecursionError):
        raise RefusedRequest("body: expected JSON", code="bad_json") from None
    if not isinstance(body, dict):
        raise RefusedRequest("body: expected a JSON object", code="bad_json")
    model = body.get("model")
    if model is not None and not isinstance(model, str):
        raise RefusedRequest("model: expected a name", param="model")
    return Asked(body, model, bool(body.get("stream")))


def by_model(models: Sequence[str]) -> dict[str, list[int]]:
    """Numbers of the prompts that go to each model, in the order in which they appear."""
    found: dict[str, list[int]] = {}
    for number, model in enumerate(models):
        found.setdefault(model, []).append(number)
    return found


def _are_tokens(given: Any) -> bool:
    return isinstance(given, list) and bool(given) and all(type(token) is int for token in given)


def _text_of(content: Any) -> str:
    """A message's content is a text, or parts of which some are text."""
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else []
    texts = [part.get("text") for part in parts if isinstance(part, dict)]
    return "\n".join(text for text in texts if isinstance(text, str))
