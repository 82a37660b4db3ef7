"""Tokens to text while they come: no half characters, and nothing of a stop text."""

from collections.abc import Sequence
from typing import Any

_BROKEN = "\ufffd"  # what decoders write for bytes that are no character, or not yet one
_MAX_BROKEN = 3  # bytes of a character that can be there without the last one


class TextStream:
    """What a growing row of tokens says, piece by piece.

    The pieces together are `text`. A piece is given out once no later token can change it: the bytes of a character
    come together, and what may be the beginning of a stop text waits until it is clear that it is not.

    Args:
        tokenizer: Of transformers; special tokens are left out.
        stop: Texts that end the row; they and what follows are no part of the text.
        after: Tokens that stand before the first one: decoders look back to see whether a space is due.
    """

    def __init__(self, tokenizer: Any, *, stop: Sequence[str] = (), after: Sequence[int] = ()) -> None:
        self._tokenizer, self._stop = tokenizer, tuple(stop)
        self._tokens = list(after)
        """Those that are looked at: not given out yet, and a few before them."""
        self._n_given = len(self._decode(self._tokens))
        self._held = ""
        self.text = ""
        self.is_stopped = False

    def push(self, *tokens: int) -> str:
        """Take the next token, or several at once; returns what is certain with them, which may be nothing."""
        if self.is_stopped or not tokens:
            return ""
        self._tokens.extend(tokens)
        now = self._decode(self._tokens)
        n_certain = len(now) - _n_broken_at_end(now)
        piece = now[self._n_given : n_certain]
        self._n_given = max(self._n_given, n_certain)
        if piece and n_certain == len(now):
            self._tokens = [tokens[-1]]  # so that the time for a token does not grow with the text
            self._n_given = len(self._decode(self._tokens))
        return self._give(piece, is_last=False)

    def finish(self) -> str:
        """There are no more tokens; returns what was waiting."""
        if self.is_stopped:
            return ""
        rest = self._decode(self._tokens)[self._n_given :]
        self._tokens, self._n_given = [], 0
        return self._give(rest, is_last=True)

    def _give(self, piece: str, *, is_last: bool) -> str:
        self._held += piece
        found = min((at for at in map(self._held.find, self._stop) if at >= 0), default=-1)
        if found >= 0:
            given, self._held, self.is_stopped = self._held[:found], "", True
        else:
            n_waiting = 0 if is_last else max((_n_begun(self._held, stop) for stop in self._stop), default=0)
            end = len(self._held) - n_waiting
            given, self._held = self._held[:end], self._held[end:]
        self.text += given
        return given

    def _decode(self, tokens: list[int]) -> str:
        return self._tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)


def _n_broken_at_end(text: str) -> int:
    return min(_MAX_BROKEN, len(text) - len(text.rstrip(_BROKEN)))


def _n_begun(text: str, stop: str) -> int:
    """How many of a text's last characters are the beginning of a stop text."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)
