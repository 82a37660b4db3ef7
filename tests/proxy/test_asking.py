"""What is read of requests, and what is made of several answers. No network."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinylora.proxy.answering import error_document, merged
from tinylora.proxy.asking import MAX_PROMPTS, RefusedRequest, by_model, read_request


def asked(**body: Any) -> Any:
    return read_request(json.dumps(body).encode())


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("a", ["a"]),
        ("", [""]),
        ([1, 2], [[1, 2]]),
        (["a", "b"], ["a", "b"]),
        ([[1], [2, 3]], [[1], [2, 3]]),
        (["a", [1]], ["a", [1]]),
    ],
)
def test_prompts_of_every_form(prompt: Any, expected: Any) -> None:
    assert asked(prompt=prompt).prompts == expected


@pytest.mark.parametrize("prompt", [None, [], [[]], 3, {"a": 1}, [True], [1.5], ["a", None], ["a"] * (MAX_PROMPTS + 1)])
def test_prompts_that_are_none(prompt: Any) -> None:
    with pytest.raises(RefusedRequest, match="prompt: expected") as refused:
        _ = asked(prompt=prompt).prompts
    told = error_document(refused.value)["error"]
    assert told["param"] == "prompt" and told["type"] == "invalid_request_error"


def test_messages_are_their_texts() -> None:
    parts = [{"type": "text", "text": "see"}, {"type": "image_url", "image_url": {}}, {"type": "text", "text": "this"}]
    given_ = [
        {"role": "user", "content": parts, "name": "x"},
        {"content": None},
        {"role": "assistant", "content": "ok"},
    ]
    assert asked(messages=given_).messages == [
        {"role": "user", "content": "see\nthis"},
        {"role": "user", "content": ""},
        {"role": "assistant", "content": "ok"},
    ]
    for wrong in (None, [], "hello", ["hello"]):
        with pytest.raises(RefusedRequest, match="messages: expected"):
            _ = asked(messages=wrong).messages


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"\xff", b"[" * 200_000, b'{"model":3}', b"9" * 5000])
def test_bodies_that_are_none(data: bytes) -> None:
    with pytest.raises(RefusedRequest):
        read_request(data)


def answer(prompts: list[int], n: int) -> dict[str, Any]:
    texts = [f"{prompt}/{i}" for prompt in prompts for i in range(n)]
    usage = {"total_tokens": sum(prompts), "details": {"cached": len(prompts), "audio": None}, "tier": "x"}
    return {"id": "1", "model": "m", "choices": [{"index": i, "text": t} for i, t in enumerate(texts)], "usage": usage}


@given(st.lists(st.sampled_from("abc"), min_size=1, max_size=9), st.integers(1, 3), st.randoms())
def test_parts_put_together_are_the_whole(models: list[str], n: int, chance: Any) -> None:
    groups = by_model(models)
    parts = []
    for numbers in groups.values():
        part = answer(numbers, n)
        chance.shuffle(part["choices"])
        parts.append((numbers, part))
    assert merged(parts, model="m") == answer(list(range(len(models))), n)
    assert sorted(number for numbers in groups.values() for number in numbers) == list(range(len(models)))


def test_answers_that_cannot_be_put_together() -> None:
    for given_ in ([{"index": 0}], []):
        with pytest.raises(RefusedRequest, match="choices for 2 prompts") as refused:
            merged([([0, 1], {"choices": given_}), ([2], answer([2], 1))], model="m")
        assert refused.value.status == 502
    assert "usage" not in merged([([0], {"choices": [{"index": 0}]})], model="m")
