"""From a text to the leaf that answers, and to the name that the server knows it by."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from anyio import to_thread

from tinylora.errors import DataError
from tinylora.proxy.asking import Asked, Message, Prompt, RefusedRequest
from tinylora.text_router import TextRouter
from tinylora.tree import NodePath

MAX_ROUTED_CHARS = 2**18
"""A longer text is routed by its beginning: tokenising takes some 190 bytes of memory for each character."""
MAX_ROUTED_TOKENS = 2**17
SHORT_CHARS = 2**12
"""Read in about a millisecond."""


def leaf_name(leaf: NodePath) -> str:
    """What a leaf is called outside, as the exports call it."""
    return f"leaf-{leaf or 'root'}"


@dataclass(frozen=True)
class Choice:
    """Which leaf answers one text."""

    leaf: NodePath | None
    """None: an empty text, of which nothing can be said."""
    is_trained: bool

    def model(self, base: str) -> str:
        """What the server is asked for: the leaf; or its base, where nobody has trained the leaf."""
        return leaf_name(self.leaf) if self.leaf is not None and self.is_trained else base


class Chooser:
    """Chooses leaves, one request at a time: tokenizers are not for several threads at once.

    Long texts are read beside the event loop; a short one is read sooner than it is handed over.

    Args:
        router: Of the bundle.
    """

    def __init__(self, router: TextRouter) -> None:
        self._router, self._turn = router, asyncio.Lock()

    @property
    def names(self) -> tuple[str, ...]:
        """Of the leaves that somebody has trained."""
        return tuple(map(leaf_name, self._router.trained_leaves))

    async def completion(self, asked: Asked) -> list[Choice]:
        """For each prompt of a completion.

        Raises:
            RefusedRequest: There is no prompt, or a token is none of the base's.
        """
        prompts = asked.prompts
        return await self._in_turn(sum(map(len, prompts)), lambda: list(map(self._of_prompt, prompts)))

    async def chat(self, asked: Asked) -> list[Choice]:
        """For a conversation, in a list of one.

        Raises:
            RefusedRequest: There are no messages.
        """
        messages = asked.messages
        n_chars = sum(len(message["content"]) for message in messages)
        return await self._in_turn(n_chars, lambda: [self._of_chat(messages)])

    async def _in_turn(self, n_chars: int, choose: Callable[[], list[Choice]]) -> list[Choice]:
        async with self._turn:
            return choose() if n_chars <= SHORT_CHARS else await to_thread.run_sync(choose)

    def _of_prompt(self, prompt: Prompt) -> Choice:
        if isinstance(prompt, str):
            return self._of_ids(self._router.ids_of(prompt[:MAX_ROUTED_CHARS]) if prompt else [])
        return self._of_ids(prompt)

    def _of_chat(self, messages: Sequence[Message]) -> Choice:
        return self._of_ids(self._router.ids_of_chat(messages, max_chars=MAX_ROUTED_CHARS))

    def _of_ids(self, ids: Sequence[int]) -> Choice:
        if not ids:
            return Choice(None, is_trained=False)
        try:
            leaf = self._router.way_of_ids(ids[:MAX_ROUTED_TOKENS]).path
        except DataError as error:
            raise RefusedRequest(f"prompt: {error}", param="prompt") from None
        return Choice(leaf, leaf in self._router.trained_leaves)
