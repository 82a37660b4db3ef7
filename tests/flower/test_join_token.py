"""Tokens: what is written is what is read, and each malformation has its sentence, which repeats nothing of it."""

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinylora.errors import SettingError
from tinylora.flower.join_token import SYSTEM, JoinToken, new_secret, new_token_id, parse_token

PIN, SECRET = "a1" * 32, "S" * 32


@given(st.sampled_from([SYSTEM, PIN]), st.text(string.ascii_lowercase + string.digits, min_size=4, max_size=32))
def test_what_is_written_is_read(pin: str, token_id: str) -> None:
    token = JoinToken(pin, token_id, new_secret())
    assert parse_token(f" {token.text}\n") == token


def test_new_tokens_differ_and_fit_their_own_rules() -> None:
    made = {JoinToken(PIN, new_token_id(), new_secret()).text for _ in range(100)}
    assert len(made) == 100 and all(parse_token(text).text == text for text in made)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "begin with tl1"),
        ("hello", "begin with tl1"),
        (f"tl2.{PIN}.abcd.{SECRET}", "begin with tl1"),
        (f"TL1.{PIN}.abcd.{SECRET}", "begin with tl1"),
        ("tl1", "four parts between dots, got 1"),
        (f"tl1.{PIN}.abcd", "four parts between dots, got 3"),
        (f"tl1.{PIN}.abcd.{SECRET}.more", "four parts between dots, got 5"),
        (f"tl1.{PIN[:-1]}.abcd.{SECRET}", "as its second part, got 63 characters"),
        (f"tl1.{PIN.upper()}.abcd.{SECRET}", "64 hex digits or 'system'"),
        (f"tl1.SYSTEM.abcd.{SECRET}", "64 hex digits or 'system'"),
        (f"tl1.{PIN}..{SECRET}", "third part"),
        (f"tl1.{PIN}.ABCD.{SECRET}", "third part"),
        (f"tl1.{PIN}.abcd.", "last part, got 0 characters"),
        (f"tl1.{PIN}.abcd.{SECRET[:-1]}", "last part, got 31 characters"),
        (f"tl1.{PIN}.abcd.{SECRET} x", "last part"),
        (f"tl1.{PIN}.abcd.{SECRET}é", "last part"),
    ],
)
def test_what_is_no_token_is_told_why_and_not_repeated(text: str, reason: str) -> None:
    with pytest.raises(SettingError, match=reason) as caught:
        parse_token(text)
    assert "copy the whole token" in str(caught.value)
    assert SECRET[:-1] not in str(caught.value) and PIN[:8] not in str(caught.value)


@given(st.text(max_size=200))
def test_any_text_is_a_token_or_a_sentence(text: str) -> None:
    try:
        assert parse_token(text).text == text.strip()
    except SettingError as error:
        assert str(error).startswith("token: expected")


def test_a_token_shows_no_secret() -> None:
    token = JoinToken(PIN, "abcd", SECRET)
    assert SECRET not in repr(token) and SECRET not in str(token) and SECRET not in f"{token}"
