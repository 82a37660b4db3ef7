"""What a request's head decides, without a network."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tinylora_coordinator.front_door.guard import AllowList, judge_head, judge_length, length_of

ALLOWED = AllowList([("GET", "/health"), ("HEAD", "/bundle"), ("GET", "/bundle"), ("POST", "/join")])
LIMIT = 100


def scope(method: str, raw_path: bytes, query: bytes = b"") -> dict[str, object]:
    return {"type": "http", "method": method, "raw_path": raw_path, "query_string": query}


@given(st.binary(max_size=12), st.sampled_from(["GET", "POST", "HEAD", "PUT"]))
def test_only_the_exact_bytes_of_a_public_path_pass(path: bytes, method: str) -> None:
    exact = {("GET", b"/health"), ("HEAD", b"/bundle"), ("GET", b"/bundle"), ("POST", b"/join")}
    for tried in (path, b"/health" + path, path + b"/health", b"/join" + path):
        refusal = ALLOWED.judge(scope(method, tried))
        assert (refusal is None) == ((method, tried) in exact)


def test_a_query_is_another_address() -> None:
    assert ALLOWED.judge(scope("GET", b"/health", b"x=1")).status == 404  # pyright: ignore[reportOptionalMemberAccess]


def test_a_method_too_many_names_those_there_are() -> None:
    refusal = ALLOWED.judge(scope("POST", b"/bundle"))
    assert refusal is not None and (refusal.status, refusal.headers) == (405, {"allow": "GET, HEAD"})


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ([(b"content-length", b"100")], None),
        ([(b"content-length", b"0")], None),
        ([(b"content-length", b"101")], 413),
        ([(b"content-length", b"9" * 19)], 413),
        ([(b"content-length", b"419430400")], 413),
        ([], 411),
        ([(b"transfer-encoding", b"chunked")], 411),
        ([(b"transfer-encoding", b"identity"), (b"content-length", b"3")], 411),
        ([(b"content-length", b"+3")], 400),
        ([(b"content-length", b"-3")], 400),
        ([(b"content-length", b"3, 3")], 400),
        ([(b"content-length", b"0x3")], 400),
        ([(b"content-length", b"\xb2")], 400),
        ([(b"content-length", b"")], 400),
        ([(b"content-length", b"3"), (b"content-length", b"3")], 400),
    ],
)
def test_the_declared_length_decides(headers: list[tuple[bytes, bytes]], status: int | None) -> None:
    refusal = judge_length(headers, LIMIT)
    assert (None if refusal is None else refusal.status) == status


def test_without_a_body_no_length_is_needed_and_none_may_be_declared() -> None:
    assert judge_length([], 0) is None and judge_length([(b"content-length", b"0")], 0) is None
    refusal = judge_length([(b"content-length", b"1")], 0)
    assert refusal is not None and refusal.status == 413
    assert length_of([]) == 0 and length_of([(b"content-length", b"7")]) == 7


def test_headers_count_with_what_separates_them() -> None:
    assert judge_head([(b"a", b"b" * 95)], LIMIT) is None
    refusal = judge_head([(b"a", b"b" * 96)], LIMIT)
    assert refusal is not None and refusal.status == 431
