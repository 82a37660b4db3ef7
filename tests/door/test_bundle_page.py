"""The bundle in ranges: the bytes that a slice of the file has, of one version each time."""

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tinylora_coordinator.front_door.bundle_page import Unsatisfiable, read_range

from tests.door.helpers import Door, head, open_door, read_answer

PAGE = "/api/v1/bundle"
OLD, NEW = bytes(range(256)) * 40, b"new" * 5000


@pytest.fixture(scope="module")
def door(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Door]:
    with open_door(tmp_path_factory.mktemp("door"), is_tls=False) as served:
        yield served


@pytest.fixture
def client(door: Door) -> Iterator[httpx.Client]:
    publish(door, OLD)
    with httpx.Client(base_url=door.url) as client:
        yield client


def publish(door: Door, data: bytes) -> str:
    fresh = door.folder / "bundle.new"
    fresh.write_bytes(data)
    os.replace(fresh, door.folder / "bundle.safetensors")
    return f'"{hashlib.sha256(data).hexdigest()}"'


@given(st.integers(0, 20), st.none() | st.integers(0, 25), st.none() | st.integers(0, 25))
def test_a_range_is_a_slice(size: int, first: int | None, last: int | None) -> None:
    text = f"bytes={'' if first is None else first}-{'' if last is None else last}"
    wanted = list(range(size))
    if (first is None and last is None) or (first is not None and last is not None and last < first):
        assert read_range(text, size) is None
        return
    wanted = wanted[-last:] if first is None and last else wanted[first:] if last is None else wanted[first : last + 1]
    if not wanted or (first is None and not last):
        with pytest.raises(Unsatisfiable):
            read_range(text, size)
        return
    part = read_range(text, size)
    assert part is not None and list(range(part.start, part.stop)) == wanted


@pytest.mark.parametrize(
    "text", ["", "bytes=1-2,4-5", "items=1-2", "bytes=a-b", "bytes=-", "bytes=1", "bytes=\u0661-2"]
)
def test_what_is_no_single_range_means_all(text: str) -> None:
    assert read_range(text, 100) is None


def test_the_whole_with_its_hash(client: httpx.Client) -> None:
    answer = client.get(PAGE)
    assert answer.status_code == 200 and answer.content == OLD
    assert (
        answer.headers["etag"] == f'"{hashlib.sha256(OLD).hexdigest()}"' and answer.headers["accept-ranges"] == "bytes"
    )


def test_head_tells_the_same_without_the_bytes(door: Door, client: httpx.Client) -> None:
    answer = client.head(PAGE)
    assert answer.headers["content-length"] == str(len(OLD)) and answer.content == b""
    with door.connect() as raw:
        raw.sendall(head("HEAD", PAGE) + head("GET", "/health", connection="close"))
        assert read_answer(raw, is_head=True).status == 200  # and no body before the next answer


@pytest.mark.parametrize(
    ("asked", "start", "stop"), [("bytes=0-0", 0, 1), ("bytes=100-", 100, None), ("bytes=-7", -7, None)]
)
def test_parts(client: httpx.Client, asked: str, start: int, stop: int | None) -> None:
    answer = client.get(PAGE, headers={"range": asked})
    assert answer.status_code == 206 and answer.content == OLD[start:stop]
    first = start % len(OLD)
    assert answer.headers["content-range"] == f"bytes {first}-{first + len(answer.content) - 1}/{len(OLD)}"


def test_behind_the_end_there_is_nothing(client: httpx.Client) -> None:
    answer = client.get(PAGE, headers={"range": f"bytes={len(OLD)}-"})
    assert answer.status_code == 416 and answer.headers["content-range"] == f"bytes */{len(OLD)}"


def test_a_download_goes_on_only_with_its_own_version(door: Door, client: httpx.Client) -> None:
    old = client.head(PAGE).headers["etag"]
    resume = {"range": "bytes=5-", "if-range": old}
    assert client.get(PAGE, headers=resume).status_code == 206
    new = publish(door, NEW)
    answer = client.get(PAGE, headers=resume)
    assert answer.status_code == 200 and answer.content == NEW and answer.headers["etag"] == new
    assert client.get(PAGE, headers={"if-none-match": new}).status_code == 304


def test_a_new_version_in_the_middle_of_a_download_changes_nothing_of_it(door: Door) -> None:
    big = os.urandom(24 * 2**20)  # more than sockets hold
    publish(door, big)
    with httpx.Client(base_url=door.url) as client, client.stream("GET", PAGE) as answer:
        parts = answer.iter_raw()
        got = [next(parts)]
        publish(door, NEW)
        assert client.get(PAGE).content == NEW
        got.extend(parts)
    assert hashlib.sha256(b"".join(got)).digest() == hashlib.sha256(big).digest()


def test_before_the_first_there_is_a_sentence(tmp_path: Path) -> None:
    with open_door(tmp_path, is_tls=False) as door:
        answer = httpx.get(door.url + PAGE)
    assert answer.status_code == 404 and "no bundle has been published yet" in answer.json()["reason"]
