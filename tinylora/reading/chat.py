"""Examples to tokens, and which of them a model is to learn to say.

Of a text that is all of it; of a prompt and its completion, the completion; of a conversation, what the assistant says.
A conversation is written by the tokenizer's own chat template. A base without one gets a plain template.
"""

import hashlib
import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Protocol, TypeAlias, runtime_checkable

import numpy as np
from jaxtyping import Bool, Int32

from tinylora.errors import DataError
from tinylora.reading.layouts import Example, Part
from tinylora.reading.rows import Rejected

log = logging.getLogger(__name__)

PLAIN_TEMPLATE = "User: ...\\nAssistant: ...</s>\\n"
"""For people: what a base without a chat template is given; `</s>` stands for its end token, if it has one."""
PLAIN_STOP = "\nUser:"
"""Behind an answer by the plain template, where a base goes on without its end token."""
_LABELS = {"system": "System", "user": "User", "assistant": "Assistant", "tool": "Tool"}
_BATCH_EXAMPLES = 256
_BATCH_CHARS = 2**19
"""Texts are tokenised together up to so many characters: as fast as can be, and no burden on memory."""
PIECE_CHARS = 2**20
"""Longer texts are tokenised in pieces: the tokenizers library takes 190 bytes a byte (measured), all at once."""
MAX_MASKED_CHARS = 2**22
"""Of one conversation, which cannot be cut, because places in it must be told."""


@dataclass(frozen=True, eq=False)
class Encoded:
    """An example in tokens."""

    tokens: Int32[np.ndarray, " token"]
    is_target: Bool[np.ndarray, " token"] | None
    """None: all of them."""


@runtime_checkable
class Encoder(Protocol):
    """What makes tokens of examples."""

    def encode(self, examples: Sequence[Example]) -> list[Encoded | Rejected]:
        """Each in tokens, or why it cannot be."""
        ...


Pieces: TypeAlias = list[tuple[str, bool]]
"""A text in pieces that follow each other, each with whether it is a target."""


class _WrongError(Exception):
    """Why an example cannot be written by the template."""


class TokenizerEncoder:
    """Examples by a tokenizer of transformers.

    Args:
        tokenizer: As `base_model.load_base` loads it.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._bos = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
        self._eos = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
        self._has_told = False
        self.template = "the base's own" if getattr(tokenizer, "chat_template", None) else "plain"
        """For people: by which template conversations are written."""
        self.fingerprint = hashlib.sha256(str(getattr(tokenizer, "chat_template", None)).encode()).hexdigest()
        """Of the template, which is no part of the tokenizer's own."""

    def encode(self, examples: Sequence[Example]) -> list[Encoded | Rejected]:
        """Each in tokens; texts all at once, which is several times faster than one by one."""
        texts = [example.text for example in examples if example.layout == "text"]
        short = iter(self._ids([text for text in texts if len(text) <= PIECE_CHARS]))
        ids = (next(short) if len(text) <= PIECE_CHARS else self._long(text) for text in texts)
        return [self._text(next(ids)) if example.layout == "text" else self._masked(example) for example in examples]

    def question(self, parts: Sequence[Part]) -> list[int]:
        """Tokens that a model goes on from: a prompt without an end, or a conversation up to where its answer begins.

        Raises:
            DataError: The base's chat template refuses the conversation.
        """
        if [part.role for part in parts] == ["prompt"]:
            return [*self._bos, *self._ids([parts[0].text])[0]]
        if self.template == "plain":
            pieces = self._plain_pieces([*_plain_texts(parts), (f"{_LABELS['assistant']}:", False)])
            return [token for ids, _ in pieces for token in ids]
        messages = [{"role": part.role, "content": part.text} for part in parts]
        try:
            written = self._apply(messages, tokenize=False, add_generation_prompt=True)
        except _WrongError as wrong:
            raise DataError(str(wrong)) from None
        return self._tokenizer(written, add_special_tokens=False, truncation=False, verbose=False)["input_ids"]

    def _text(self, ids: list[int]) -> Encoded:
        return Encoded(_frozen([*self._bos, *ids, *self._eos]), None)

    def _long(self, text: str) -> list[int]:
        """Piece by piece; as a whole it would be the same, but for a token or two at each cut."""
        return [token for piece in pieces(text, PIECE_CHARS) for ids in self._ids([piece]) for token in ids]

    def _masked(self, example: Example) -> Encoded | Rejected:
        n_chars = sum(len(part.text) for part in example.parts)
        if n_chars > MAX_MASKED_CHARS:
            return Rejected(example.where, f"{n_chars:,} characters; the most for one example is {MAX_MASKED_CHARS:,}")
        try:
            if example.layout == "prompt+completion":
                prompt, completion = self._ids([part.text for part in example.parts])
                return _encoded([(self._bos + prompt, False), (completion + self._eos, True)])
            return self._conversation(example.parts)
        except _WrongError as wrong:
            return Rejected(example.where, str(wrong))

    def _ids(self, texts: list[str]) -> list[list[int]]:
        """Markup that looks like a special token is text like any other."""
        from tinylora.base_model import encode_plain  # late: it brings torch and transformers

        return encode_plain(self._tokenizer, texts)

    # --- conversations -----------------------------------------------------------------------------------------------

    def _conversation(self, parts: Sequence[Part]) -> Encoded:
        if self.template == "plain":
            return self._by_plain_template(parts)
        messages = [{"role": part.role, "content": part.text} for part in parts]
        if "generation" in _tags(self._tokenizer.chat_template):
            marked = self._by_marks(messages)
            if marked is not None:
                return marked
        text, spans = self._by_prefixes(messages)
        return self._with_spans(text, spans)

    def _by_plain_template(self, parts: Sequence[Part]) -> Encoded:
        """`User: ...` and `Assistant: ...`, a line each; the assistant ends with the base's end token."""
        if not self._has_told:
            log.warning("this base has no chat template: conversations are written as %s", PLAIN_TEMPLATE)
            self._has_told = True
        return _encoded(self._plain_pieces(_plain_texts(parts)))

    def _plain_pieces(self, texts: Pieces) -> list[tuple[list[int], bool]]:
        found: list[tuple[list[int], bool]] = [(self._bos, False)]
        for (_, is_target), ids in zip(texts, self._ids([text for text, _ in texts]), strict=True):
            found.append((ids + self._eos if is_target else ids, is_target))
        return found

    def _by_marks(self, messages: list[dict[str, str]]) -> Encoded | None:
        """As the template marks what the assistant generates; None where it marks nothing after all."""
        found = self._apply(messages, tokenize=True, return_dict=True, return_assistant_tokens_mask=True)
        is_target = np.asarray(found["assistant_masks"], dtype=bool)
        return Encoded(_frozen(found["input_ids"]), _read_only(is_target)) if is_target.any() else None

    def _by_prefixes(self, messages: list[dict[str, str]]) -> tuple[str, list[tuple[int, int]]]:
        """The conversation as the template writes it, and where in it the assistant speaks.

        What an answer adds is the difference between the conversation with it and the one that asks for it. Both must
        be the beginning of the whole, or the template rewrites what was said before, and no place can be told.
        """
        whole = self._apply(messages, tokenize=False)
        spans = []
        for number, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            answered = self._apply(messages[: number + 1], tokenize=False)
            if not whole.startswith(answered):
                raise _WrongError(
                    f"message {number + 1}: the base's chat template writes it otherwise once more messages follow, so "
                    "the answer's place cannot be told; give conversations of one answer each"
                )
            spans.append((self._start_of(message["content"].strip(), messages[:number], answered), len(answered)))
        return whole, spans

    def _start_of(self, content: str, before: list[dict[str, str]], answered: str) -> int:
        """Where an answer begins: behind what asks for it, or where the template asks in other words, as it is."""
        plain = self._apply(before, tokenize=False) if before else ""
        asked = self._apply(before, tokenize=False, add_generation_prompt=True) if before else ""
        if asked != plain and answered.startswith(asked) and content in answered[len(asked) :]:
            return len(asked)
        start = answered.find(content, len(plain)) if answered.startswith(plain) else -1
        if start < 0:
            raise _WrongError("the base's chat template does not write answers as they stand, so no place can be told")
        return start

    def _apply(self, messages: list[dict[str, str]], **options: Any) -> Any:
        try:
            return self._tokenizer.apply_chat_template(messages, **options)
        except Exception as error:  # jinja's own, and whatever a template makes of odd input
            reason = str(error).partition("\n")[0]
            raise _WrongError(f"the base's chat template refuses this conversation: {reason}") from None

    def _with_spans(self, text: str, spans: list[tuple[int, int]]) -> Encoded:
        """A written conversation in tokens; a token is a target where it begins inside of a span."""
        found = self._tokenizer(
            text, add_special_tokens=False, truncation=False, return_offsets_mapping=True, verbose=False
        )
        starts = np.array([start for start, _ in found["offset_mapping"]], dtype=np.int64)
        is_target = np.zeros(len(starts), dtype=bool)
        for start, end in spans:
            is_target |= (starts >= start) & (starts < end)
        return Encoded(_frozen(found["input_ids"]), _read_only(is_target))


def _plain_texts(parts: Sequence[Part]) -> Pieces:
    return [
        piece
        for part in parts
        for piece in ((f"{_LABELS[part.role]}:", False), (f" {part.text}", part.role == "assistant"), ("\n", False))
    ]


def pieces(text: str, most: int) -> Iterator[str]:
    """A text in pieces of at most so many characters, cut before a line break or a space where there is one.

    There nearly every tokenizer cuts, too.
    """
    start = 0
    while len(text) - start > most:
        end = max(text.rfind(sign, start + 1, start + most) for sign in "\n ")
        end = end if end > start else start + most
        yield text[start:end]
        start = end
    yield text[start:]


def encode_all(examples: Iterable[Example], encoder: Encoder) -> Iterator[tuple[Example, Encoded | Rejected]]:
    """Every example with its tokens, in order; so many are taken at once as are tokenised fast."""
    waiting = iter(examples)
    while batch := list(islice(_up_to(waiting, _BATCH_CHARS), _BATCH_EXAMPLES)):
        yield from zip(batch, encoder.encode(batch), strict=True)


def _up_to(examples: Iterator[Example], n_chars: int) -> Iterator[Example]:
    """Examples until they have so many characters."""
    while n_chars > 0 and (example := next(examples, None)) is not None:
        n_chars -= sum(len(part.text) for part in example.parts)
        yield example


def _tags(template: object) -> set[str]:
    """Names of a template's `{% ... %}` tags; a tokenizer may have several templates by name."""
    text = "".join(template.values()) if isinstance(template, dict) else str(template)
    return {part.strip("-+ \n\t").partition(" ")[0].partition("%")[0].strip("-+ ") for part in text.split("{%")[1:]}


def _encoded(pieces: Sequence[tuple[list[int], bool]]) -> Encoded:
    ids = [token for part, _ in pieces for token in part]
    is_target = np.repeat([is_target for _, is_target in pieces], [len(part) for part, _ in pieces])
    return Encoded(_frozen(ids), _read_only(is_target))


def _frozen(ids: Sequence[int]) -> Int32[np.ndarray, " token"]:
    return _read_only(np.asarray(ids, dtype=np.int32))


def _read_only(array: np.ndarray) -> np.ndarray:
    array.flags.writeable = False
    return array
