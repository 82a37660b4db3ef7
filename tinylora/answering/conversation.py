"""A conversation: what was said, as tokens that leave room in the window for an answer."""

from dataclasses import dataclass, field

from tinylora.errors import DataError
from tinylora.reading.chat import TokenizerEncoder
from tinylora.reading.layouts import Part


@dataclass
class Conversation:
    """Turns of a user and a model.

    Args:
        encoder: Of the base's tokenizer.
        window_tokens: What the base attends to.
        max_new_tokens: Longest answer; where the window is short, half of it at most.
    """

    encoder: TokenizerEncoder
    window_tokens: int
    max_new_tokens: int
    parts: list[Part] = field(default_factory=list)

    @property
    def room(self) -> int:
        """Tokens that are kept free for an answer."""
        return min(self.max_new_tokens, max(1, self.window_tokens // 2))

    def ask(self, text: str) -> tuple[list[int], int]:
        """Say something; returns tokens of what still fits, and how many of the oldest messages are forgotten for it.

        Whole turns are forgotten, a question with its answer, so that the next one always begins with the user.

        Raises:
            DataError: This one message alone is too long, or the chat template refuses it; it is as if never said.
        """
        parts, n_forgotten = [*self.parts, Part("user", text)], 0
        while len(ids := self.encoder.question(parts)) + self.room > self.window_tokens:
            next_turn = next((place for place, part in enumerate(parts) if place and part.role == "user"), None)
            if next_turn is None:
                raise DataError(
                    f"this message is {len(ids)} tokens long with what goes around it; the base attends to "
                    f"{self.window_tokens}, {self.room} of them kept for the answer: say it in fewer words"
                )
            parts, n_forgotten = parts[next_turn:], n_forgotten + next_turn
        self.parts = parts
        return ids, n_forgotten

    def answered(self, text: str) -> None:
        """Take down what was answered, however much it is."""
        self.parts.append(Part("assistant", text))

    def reset(self) -> None:
        """Forget all."""
        self.parts.clear()
