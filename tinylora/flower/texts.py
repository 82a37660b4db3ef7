"""Text from outside, made harmless. No flwr."""


def printable(text: str, *, at_most: int) -> str:
    """Text from outside for logs and terminals: one line, nothing that moves a cursor or changes a colour."""
    return "".join(letter if letter.isprintable() else " " for letter in text[:at_most]).strip()
