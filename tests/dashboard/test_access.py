"""What a token or a cookie is good for: by forms, by time, by run, and by every flipped byte."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tinylora_coordinator.access_tokens import (
    AccessToken,
    KnownToken,
    TokenRole,
    hash_secret,
    judge_token,
    mark_of,
    parse_access,
)
from tinylora_coordinator.dashboard.access import (
    cookie_name,
    judge_session,
    make_session,
    session_token_id,
    shown_bearer,
    shown_cookies,
)

from tinylora.errors import SettingError
from tinylora.flower.join_token import SYSTEM, JoinToken, new_secret, new_token_id

NOW = 1_700_000_000.0
DAY_S = 86_400.0
MARK = mark_of("ab" * 32)
OTHER = mark_of("cd" * 32)
KEY = b"a key of the run"


def made(role: TokenRole = "viewer", *, days: float = 1.0, **changes: float) -> tuple[AccessToken, KnownToken]:
    token = AccessToken(role, MARK, new_token_id(), new_secret())
    known = KnownToken(token.token_id, role, hash_secret(token.secret), NOW, NOW + days * DAY_S, **changes)  # type: ignore[arg-type]
    return token, known


# --- tokens -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("role", "version"), [("viewer", "tlv1"), ("admin", "tla1")])
def test_a_token_reads_back_as_it_was_written(role: TokenRole, version: str) -> None:
    token, known = made(role)
    assert token.text.startswith(f"{version}.{MARK}.") and parse_access(f" {token.text}\n", MARK) == token
    assert judge_token(token, known, NOW) == ""


def test_wrong_tokens_have_sentences_of_their_own_that_repeat_nothing() -> None:
    token, _ = made()
    wrong = {
        "lets a worker join": JoinToken(SYSTEM, token.token_id, token.secret).text,
        "is of another run": AccessToken("viewer", OTHER, token.token_id, token.secret).text,
        "it is not whole": token.text[:-20],
        "expected it to begin with tlv1. or tla1.": f"tlx1.{token.secret}",
    }
    for sentence, text in wrong.items():
        with pytest.raises(SettingError, match=sentence) as raised:
            parse_access(text, MARK)
        assert token.secret[:8] not in str(raised.value) and token.token_id not in str(raised.value)


@given(st.text())
def test_no_text_gets_further_than_a_sentence(text: str) -> None:
    with pytest.raises(SettingError, match="token: "):
        parse_access(text, MARK)


def test_an_unknown_token_a_wrong_secret_and_a_wrong_role_have_one_answer() -> None:
    token, known = made()
    unknown = judge_token(token, None, NOW)
    assert "unknown or its secret is wrong" in unknown
    assert judge_token(AccessToken("viewer", MARK, token.token_id, new_secret()), known, NOW) == unknown
    assert judge_token(AccessToken("admin", MARK, token.token_id, token.secret), known, NOW) == unknown
    assert judge_token(AccessToken("viewer", MARK, token.token_id, ""), None, NOW) == unknown


def test_a_token_ends_and_a_revoked_one_says_so_to_its_holder_alone() -> None:
    token, known = made()
    assert judge_token(token, known, known.expires_s - 1) == "" != judge_token(token, known, known.expires_s)
    assert "has expired" in judge_token(token, known, known.expires_s)
    token, known = made(revoked_s=NOW + 5)
    assert "was revoked" in judge_token(token, known, NOW + 6)
    assert "unknown" in judge_token(AccessToken("viewer", MARK, token.token_id, new_secret()), known, NOW + 6)


# --- cookies ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("role", "days", "lasts_s"),
    [("viewer", 1, DAY_S), ("viewer", 100, 30 * DAY_S), ("admin", 1, DAY_S / 2), ("admin", 0.1, DAY_S / 10)],
)
def test_a_cookie_is_good_for_as_long_as_its_role_and_its_token(role: TokenRole, days: float, lasts_s: float) -> None:
    _, known = made(role, days=days)
    value, ends_s = make_session(known, KEY, NOW)
    assert ends_s == NOW + lasts_s and session_token_id(value) == known.token_id
    assert judge_session(value, known, KEY, ends_s - 1) == ends_s
    assert judge_session(value, known, KEY, ends_s) is None


def test_a_cookie_ends_with_its_token() -> None:
    _, known = made()
    value, _ = make_session(known, KEY, NOW)
    revoked = KnownToken(known.token_id, known.role, known.secret_sha256, NOW, known.expires_s, revoked_s=NOW)
    shorter = KnownToken(known.token_id, known.role, known.secret_sha256, NOW, NOW + 10)
    assert judge_session(value, revoked, KEY, NOW + 1) is None and judge_session(value, None, KEY, NOW + 1) is None
    assert judge_session(value, shorter, KEY, NOW + 11) is None


def test_a_cookie_of_another_key_role_or_token_is_none() -> None:
    _, known = made("viewer")
    value, _ = make_session(known, KEY, NOW)
    risen = KnownToken(known.token_id, "admin", known.secret_sha256, NOW, known.expires_s)
    remade = KnownToken(known.token_id, "viewer", hash_secret("another"), NOW, known.expires_s)
    for known_now, key in ((known, b"another"), (risen, KEY), (remade, KEY)):
        assert judge_session(value, known_now, key, NOW) is None


@given(st.integers(0, 200), st.integers(0, 127))
def test_a_cookie_with_one_character_changed_is_none(at: int, code: int) -> None:
    known = KnownToken("abcd1234", "viewer", hash_secret("secret"), NOW, NOW + DAY_S)
    value, _ = make_session(known, KEY, NOW)
    at %= len(value)
    changed = value[:at] + chr(code) + value[at + 1 :]
    assert (judge_session(changed, known, KEY, NOW) is not None) == (changed == value)


def test_two_runs_of_one_host_have_two_cookies() -> None:
    assert cookie_name(MARK) != cookie_name(OTHER)


# --- headers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("header", "token"),
    [("Bearer abc", "abc"), ("bearer  abc ", "abc"), ("", ""), ("Bearer", ""), ("Bearer ", ""), ("Basic abc", "")],
)
def test_the_bearer(header: str, token: str) -> None:
    assert shown_bearer(header) == token


def test_cookies_are_found_beside_those_that_no_parser_takes() -> None:
    header = 'a={"b": "c, d"}; tinylora-x=one; \u00e4=\u00f6; tinylora-xx=no; tinylora-x=two;; =;'
    assert shown_cookies(header, "tinylora-x") == ["one", "two"]
    assert shown_cookies("", "tinylora-x") == []
