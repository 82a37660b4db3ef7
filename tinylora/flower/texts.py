"""Text from outside, made harmless. No flwr."""

from tinylora.protocol.plain import plain


def printable(text: str, *, at_most: int) -> str:
    """Text from outside for logs and terminals: one line, nothing that moves a cursor or changes a colour."""
    return plain(text, at_most=at_most)
