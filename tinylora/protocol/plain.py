"""Text from strangers, made plain: one line, bounded, nothing in it that acts on whoever shows it.

What is left may still be markup, a formula or a query in its letters: it is text, and whoever shows it shows it as
text. What goes is what no escaping helps against: control characters (among them ANSI's escape), bidirectional
overrides, zero-width and other invisible signs, unassigned and private ones, and floods of marks on one letter.
"""

import unicodedata
from collections.abc import Iterator

MAX_MARKS = 3
"""On one letter; Vietnamese and pointed Hebrew need no more."""
_BLANK_LETTERS = frozenset("\u115f\u1160\u2800\u3164\uffa0")
"""Letters and symbols by their category that show nothing: a name of these looks like no name."""


def plain(text: str, *, at_most: int) -> str:
    """The text as one line of at most so many characters, composed (NFC), without anything that is not seen."""
    # What is not seen goes first: between two marks, it would begin a new flood.
    seen = "".join(letter if letter.isprintable() else " " for letter in text[: 4 * at_most] if not _is_unseen(letter))
    line = " ".join("".join(_without_floods(unicodedata.normalize("NFC", seen))).split())
    return line[:at_most].strip()


def _is_unseen(letter: str) -> bool:
    return letter in _BLANK_LETTERS or unicodedata.category(letter) == "Cf"


def _without_floods(letters: str) -> Iterator[str]:
    n_marks = 0
    for letter in letters:
        n_marks = n_marks + 1 if unicodedata.category(letter)[0] == "M" else 0
        if n_marks <= MAX_MARKS:
            yield letter
