"""Questions to answers, batch by batch, and answers to lines of JSON: all of them, or none."""

import errno
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from tinylora.answering.leaves import answering_leaf
from tinylora.answering.questions import Question
from tinylora.errors import DataError, DiskFull, SettingError, StorageError
from tinylora.generation import Continuation, continue_prompts, row_seed
from tinylora.model import TreeModel
from tinylora.reading.chat import PLAIN_STOP, TokenizerEncoder
from tinylora.tree import NodePath

OnBatch = Callable[[int, int], None]


@dataclass(frozen=True)
class Drawing:
    """How answers are written; see `generation.continue_prompts`."""

    max_new_tokens: int = 64
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int | None = None
    seed: int = 0
    stop: tuple[str, ...] = ()

    def options(self, *, is_plain_chat: bool) -> dict[str, Any]:
        """For `continue_prompts`, but the seed."""
        return {
            "max_new_tokens": self.max_new_tokens,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "top_k": self.top_k,
            "stop": (*self.stop, PLAIN_STOP) if is_plain_chat else self.stop,
        }


def answer_questions(
    model: TreeModel,
    questions: Sequence[Question],
    drawing: Drawing,
    *,
    batch_size: int = 8,
    on_batch: OnBatch = lambda n_questions, n_tokens: None,
    on_text: Callable[[str], None] | None = None,
) -> list[dict[str, Any]]:
    """Answers to questions, in their order, whatever leaves they belong to.

    Batches are of questions of nearly equal length, the longest first, so that memory runs out at once or never. Each
    question draws by a seed of its own number, so the size of the batches changes no answer.

    Args:
        model: A tree.
        questions: Of any length that fits into the base's window with the new tokens.
        drawing: How to write.
        batch_size: Questions that are answered at once.
        on_batch: Told after each batch how many questions were answered, with how many tokens.
        on_text: Called with pieces of text as they are written, where there is one question.

    Returns:
        The question's own fields and `completion`, `leaf`, `probability`, `n_prompt_tokens`, `n_tokens`, `finish`.

    Raises:
        DataError: A conversation that the base's chat template refuses, or one that is too long.
        SettingError: A number is out of range.
    """
    encoder = TokenizerEncoder(model.base.tokenizer)
    asked = encoded(encoder, questions, model.base.facts.max_window_tokens, drawing.max_new_tokens)
    found: dict[int, dict[str, Any]] = {}
    for numbers in _batches(questions, asked, batch_size):
        is_plain = encoder.template == "plain" and is_chat(questions[numbers[0]])
        written = continue_prompts(
            model,
            [asked[number] for number in numbers],
            seed=[row_seed(drawing.seed, number) for number in numbers],
            on_text=None if on_text is None else lambda _row, piece: on_text(piece),
            **drawing.options(is_plain_chat=is_plain),
        )
        for number, continuation in zip(numbers, written, strict=True):
            leaf = answering_leaf(model, asked[number])
            way = None if leaf is None else (leaf.path, leaf.probability)
            found[number] = answer_of(questions[number], asked[number], continuation, way)
        on_batch(len(numbers), sum(len(continuation.tokens) for continuation in written))
    return [found[number] for number in range(len(questions))]


def encoded(
    encoder: TokenizerEncoder, questions: Sequence[Question], window: int, max_new_tokens: int
) -> list[list[int]]:
    """Tokens of the questions, of which none is too long.

    Args:
        encoder: Of the base.
        questions: What is asked.
        window: Tokens that the base attends to.
        max_new_tokens: For an answer.

    Raises:
        DataError: A conversation that the base's chat template refuses, or one that is empty or too long.
        SettingError: The prompt of a command is too long.
    """
    asked = [_encoded(encoder, question) for question in questions]
    _check_lengths(window, questions, asked, max_new_tokens)
    return asked


def _encoded(encoder: TokenizerEncoder, question: Question) -> list[int]:
    try:
        return encoder.question(question.parts)
    except DataError as error:
        raise DataError(f"{question.where}: {error}") from None


def _check_lengths(
    window: int, questions: Sequence[Question], asked: Sequence[Sequence[int]], max_new_tokens: int
) -> None:
    """Before anything is answered: which question is too long or empty, and by how much."""
    for question, ids in zip(questions, asked, strict=True):
        if not ids:
            raise DataError(f"{question.where}: no text, and this base has no token to begin with")
        if len(ids) + max_new_tokens > window:
            kind = SettingError if question.where == "prompt" else DataError
            raise kind(
                f"{question.where}: {len(ids)} tokens and {max_new_tokens} new ones: this base attends to {window} at "
                "most; shorten the prompt or ask for fewer with --max-new-tokens"
            )


def _batches(
    questions: Sequence[Question], asked: Sequence[Sequence[int]], batch_size: int
) -> Iterator[tuple[int, ...]]:
    """Numbers of questions that go together: conversations apart from prompts, which other texts end."""
    order = sorted(range(len(asked)), key=lambda number: (is_chat(questions[number]), -len(asked[number]), number))
    for are_chats in (False, True):
        alike = [number for number in order if is_chat(questions[number]) == are_chats]
        yield from (tuple(alike[first : first + batch_size]) for first in range(0, len(alike), batch_size))


def is_chat(question: Question) -> bool:
    """Whether it is a conversation, which other texts end than a prompt."""
    return question.parts[0].role != "prompt"


def answer_of(
    question: Question, ids: Sequence[int], written: Continuation, way: tuple[NodePath, float] | None
) -> dict[str, Any]:
    """The line of one answer.

    Args:
        question: What was asked.
        ids: In tokens.
        written: What came after it.
        way: The leaf that it belongs to, and how probable that is; None where nothing was decided at its end.
    """
    return {
        **question.fields,
        "completion": written.text.lstrip(" ") if is_chat(question) else written.text,
        "leaf": None if way is None else way[0],
        "probability": None if way is None else round(way[1], 6),
        "n_prompt_tokens": len(ids),
        "n_tokens": len(written.tokens),
        "finish": written.finish,
    }


# --- lines of JSON ---------------------------------------------------------------------------------------------------


@contextmanager
def place_for_lines(file: Path) -> Iterator[TextIO]:
    """A stream whose lines become `file` when all went well, and nothing otherwise; refused at once if that cannot be.

    Raises:
        StorageError: The place cannot be written, or the disk is full.
    """
    if file.exists() and not file.is_file():
        raise StorageError(f"{file}: not a file; expected a file name to write to")
    beside = file.with_name(f".{file.name}.part")
    try:
        with beside.open("w", encoding="utf-8") as stream:
            yield stream
        beside.replace(file)
    except OSError as error:
        kind = DiskFull if error.errno in (errno.ENOSPC, errno.EDQUOT) else StorageError
        raise kind(f"{file}: cannot be written: {error.strerror or error}; choose another place") from None
    finally:
        with suppress(OSError):
            beside.unlink(missing_ok=True)


def line_of(answer: dict[str, Any]) -> str:
    """One line of JSON, text as it is."""
    return json.dumps(answer, ensure_ascii=False, default=str)
