"""Questions answered by servers of leaves, each on a device of its own: the lines that one process would write."""

from collections.abc import Callable, Sequence
from typing import Any

from tinylora.answering.questions import Question
from tinylora.answering.writing import Drawing, OnBatch, answer_of, encoded, is_chat
from tinylora.bundle import inspect
from tinylora.generation import row_seed
from tinylora.reading.chat import TokenizerEncoder
from tinylora.routing.ways import n_deciding
from tinylora.serving.servers import LeafServers, Served


def answer_from_servers(
    servers: LeafServers,
    questions: Sequence[Question],
    drawing: Drawing,
    *,
    on_batch: OnBatch = lambda n_questions, n_tokens: None,
    on_text: Callable[[str], None] | None = None,
) -> list[dict[str, Any]]:
    """Answers to questions, in their order, as `answer_questions` gives them.

    Args:
        servers: Running.
        questions: Of any length that fits into the base's window with the new tokens.
        drawing: How to write.
        on_batch: Told after each answer: one question, and how many tokens.
        on_text: Called with each whole answer: pieces are not sent between processes.

    Raises:
        DataError: A conversation that the base's chat template refuses, or one that is too long.
        SettingError: A number is out of range.
        TinyLoraError: A process is gone or met with an error.
    """
    encoder = TokenizerEncoder(servers.tokenizer)
    window = inspect(servers.bundle_file)["base"]["max_window_tokens"]
    asked = encoded(encoder, questions, window, drawing.max_new_tokens)
    found: dict[int, dict[str, Any]] = {}
    for are_chats in (False, True):
        numbers = [number for number, question in enumerate(questions) if is_chat(question) == are_chats]
        rows = servers.generate(
            [asked[number] for number in numbers],
            seed=[row_seed(drawing.seed, number) for number in numbers],
            on_row=lambda _, row: on_batch(1, len(row.tokens)),
            **drawing.options(is_plain_chat=are_chats and encoder.template == "plain"),
        )
        for number, row in zip(numbers, rows, strict=True):
            found[number] = answer_of(questions[number], asked[number], row, _way(servers, row, len(asked[number])))
            if on_text is not None:
                on_text(found[number]["completion"])
    return [found[number] for number in range(len(questions))]


def _way(servers: LeafServers, row: Served, n_tokens: int) -> tuple[str, float] | None:
    """What was decided at the question's end already."""
    if row.path is None or row.probability is None or n_deciding(servers.policy, n_tokens) is None:
        return None
    return row.path, row.probability
