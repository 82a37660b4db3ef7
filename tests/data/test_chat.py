"""Which tokens a model is to learn to say: completions and answers, by the base's own template or a plain one."""

import copy
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers import tiny_base_model
from tinylora.reading import chat
from tinylora.reading.chat import Encoded, TokenizerEncoder, encode_all, pieces
from tinylora.reading.layouts import Example, Part
from tinylora.reading.rows import Rejected

CHATML = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
MARKED = (
    "{% for m in messages %}<|{{ m.role }}|>{% if m.role == 'assistant' %}{% generation %}{{ m.content }}<|end|>"
    "{% endgeneration %}{% else %}{{ m.content }}<|end|>{% endif %}\n{% endfor %}"
)
THINKING = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|><think>{% endif %}"
)
FORGETFUL = (
    "{% for m in messages %}<|{{ m.role }}|>"
    "{% if m.role == 'assistant' and not loop.last %}{{ m.content | upper }}{% else %}{{ m.content }}{% endif %}<|end|>"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SHOUTING = "{% for m in messages %}<|{{ m.role }}|>{{ m.content | upper }}<|end|>{% endfor %}"
STRICT = "{{ raise_exception('Conversation roles must alternate') }}"
BASE = tiny_base_model()


def encoder(template: str | None) -> TokenizerEncoder:
    tokenizer = copy.deepcopy(BASE.tokenizer)
    tokenizer.chat_template = template
    return TokenizerEncoder(tokenizer)


def conversation(*parts: tuple[str, str]) -> Example:
    return Example("x:1", "x, line 1", "messages", tuple(Part(role, text) for role, text in parts))  # type: ignore[arg-type]


TALK = conversation(("user", "Wer da?"), ("assistant", "Ich."), ("user", "Du?"), ("assistant", "Ja, ich é."))


def said(encoded: Encoded | Rejected) -> tuple[str, list[str]]:
    """All that is written, and the runs of targets in it."""
    assert isinstance(encoded, Encoded) and encoded.is_target is not None
    assert len(encoded.tokens) == len(encoded.is_target)
    runs: list[list[int]] = []
    previous = False
    for token, is_target in zip(encoded.tokens.tolist(), encoded.is_target.tolist(), strict=True):
        if is_target:
            if not previous:
                runs.append([])
            runs[-1].append(token)
        previous = is_target
    return BASE.tokenizer.decode(encoded.tokens), [BASE.tokenizer.decode(run) for run in runs]


WRITTEN = "<|user|>Wer da?<|end|>\n<|assistant|>Ich.<|end|>\n<|user|>Du?<|end|>\n<|assistant|>Ja, ich é.<|end|>\n"


def test_by_prefixes_an_answer_is_what_is_added_to_the_question():
    (found,) = encoder(CHATML).encode([TALK])
    assert said(found) == (WRITTEN, ["Ich.<|end|>\n", "Ja, ich é.<|end|>\n"])


def test_by_the_marks_of_the_template():
    (found,) = encoder(MARKED).encode([TALK])
    assert said(found) == (WRITTEN.replace("\n", ""), ["Ich.<|end|>", "Ja, ich é.<|end|>"])


def test_a_template_that_asks_in_other_words_than_it_writes():
    (found,) = encoder(THINKING).encode([TALK])
    assert said(found) == (WRITTEN, ["Ich.<|end|>\n", "Ja, ich é.<|end|>\n"])


def test_a_base_without_a_template_gets_the_plain_one_and_says_so(caplog):
    plain = encoder(None)
    assert plain.template == "plain"
    (found,) = plain.encode([conversation(("system", "Kurz."), *((part.role, part.text) for part in TALK.parts))])
    written = "<s>System: Kurz.\nUser: Wer da?\nAssistant: Ich.</s>\nUser: Du?\nAssistant: Ja, ich é.</s>\n"
    assert said(found) == (written, [" Ich.</s>", " Ja, ich é.</s>"])
    plain.encode([TALK, TALK])
    assert caplog.text.count("this base has no chat template: conversations are written as User: ...") == 1


@pytest.mark.parametrize(
    ("template", "talk", "reason"),
    [
        (FORGETFUL, TALK, "message 2: the base's chat template writes it otherwise once more messages follow"),
        (SHOUTING, TALK, "does not write answers as they stand"),
        (STRICT, TALK, "the base's chat template refuses this conversation: Conversation roles must alternate"),
    ],
)
def test_what_a_template_makes_impossible_is_told(template, talk, reason):
    (found,) = encoder(template).encode([talk])
    assert isinstance(found, Rejected)
    assert reason in found.reason and found.where == "x, line 1"


def test_one_answer_at_the_end_is_fine_with_a_template_that_rewrites_earlier_ones():
    (found,) = encoder(FORGETFUL).encode([conversation(("user", "a"), ("assistant", "b"))])
    assert said(found) == ("<|user|>a<|end|><|assistant|>b<|end|>", ["b<|end|>"])


@pytest.mark.parametrize("template", [CHATML, None])
def test_of_a_prompt_and_its_completion_the_completion_is_learnt(template):
    example = Example("x", "x", "prompt+completion", (Part("prompt", "2 + 2 ="), Part("completion", " 4")))
    (found,) = encoder(template).encode([example])
    assert said(found) == ("<s>2 + 2 = 4</s>", [" 4</s>"])


def test_texts_together_are_as_texts_alone_and_all_of_them_are_targets():
    texts = [Example(f"x:{n}", "x", "text", (Part("text", "word " * n + "</s>"),)) for n in range(1, 40)]
    mixed = [*texts[:20], TALK, *texts[20:]]
    together = list(encode_all(mixed, encoder(CHATML)))
    assert [example for example, _ in together] == mixed
    for example, found in together:
        (alone,) = encoder(CHATML).encode([example])
        assert isinstance(found, Encoded) and isinstance(alone, Encoded)
        assert np.array_equal(found.tokens, alone.tokens)
        assert (found.is_target is None) == (example.layout == "text")


@given(st.text(alphabet="ab \n", max_size=60), st.integers(2, 9))
def test_pieces_are_the_text(text, most):
    found = list(pieces(text, most))
    assert "".join(found) == text
    assert all(0 < len(piece) <= most for piece in found) or text == ""
    assert all(piece[0] in " \n" or len(before) == most for before, piece in pairwise(found))


def test_a_long_text_in_pieces_has_the_tokens_of_the_whole(monkeypatch):
    examples = [Example(f"x:{n}", "x", "text", (Part("text", "word\nwörd " * n),)) for n in (3, 50, 4, 60)]
    whole = encoder(None).encode(examples)
    monkeypatch.setattr(chat, "PIECE_CHARS", 64)
    for left, right in zip(encoder(None).encode(examples), whole, strict=True):
        assert isinstance(left, Encoded) and isinstance(right, Encoded)
        assert np.array_equal(left.tokens, right.tokens)


def test_a_conversation_without_end_is_refused(monkeypatch):
    monkeypatch.setattr(chat, "MAX_MASKED_CHARS", 16)
    (found,) = encoder(None).encode([TALK])
    assert isinstance(found, Rejected) and "24 characters; the most for one example is 16" in found.reason


def test_the_template_is_part_of_what_tokens_follow_from():
    assert len({encoder(template).fingerprint for template in (None, CHATML, MARKED)}) == 3
