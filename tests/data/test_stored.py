"""Tokens on disk: the same shard as in memory, found again, thrown away when it is not whole, and small in memory."""

import errno
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.data.test_shards import encode, some_texts, write_lines
from tests.helpers import tiny_base_model
from tinylora import shards
from tinylora.errors import DataError, DiskFull, StorageError
from tinylora.reading import documents as store
from tinylora.reading.documents import Document, TokensOf, keyed, open_files, sampled, take, write_files
from tinylora.routing.sketch import collect


@pytest.fixture(scope="module")
def base():
    return tiny_base_model()


def chat(answer: str) -> dict:
    return {"messages": [{"role": "user", "content": "Say it"}, {"role": "assistant", "content": answer}]}


@pytest.fixture
def data(tmp_path):
    """A folder with texts, one of them twice, and conversations behind the first of them."""
    folder = tmp_path / "data"
    folder.mkdir()
    texts = some_texts(40)
    write_lines(folder / "a.jsonl", *({"text": text} for text in [*texts, texts[7] + " "]))
    write_lines(folder / "b.jsonl", *(chat(text) for text in some_texts(9, 11)))
    return folder


def same(left: Document, right: Document) -> bool:
    is_target = store_targets(left), store_targets(right)
    return (
        (left.name, left.n_bytes) == (right.name, right.n_bytes)
        and np.array_equal(left.tokens, right.tokens)
        and (np.array_equal(*is_target))
    )


def store_targets(document: Document) -> np.ndarray:
    return np.ones(len(document.tokens), bool) if document.is_target is None else document.is_target


def test_a_stored_shard_is_the_shard_in_memory(base, data, tmp_path):
    plain = shards.load_shard([data], base, heldout_share=0.3)
    stored = shards.load_shard([data], base, heldout_share=0.3, cache=tmp_path / "cache")
    assert (stored.n_tokens, stored.n_targets, stored.n_duplicates) == (plain.n_tokens, plain.n_targets, 1)
    assert stored.n_targets < stored.n_tokens
    for side in ("train", "heldout"):
        ours, theirs = getattr(stored, side), getattr(plain, side)
        assert len(ours) == len(theirs) > 3
        assert all(same(left, right) for left, right in zip(ours, theirs, strict=True))
        assert same(ours[-1], theirs[-1]) and same(ours[1:3][0], theirs[1])
    left, right = plain.windows(16, 3, 1), stored.windows(16, 3, 1)
    assert np.array_equal(left.ids, right.ids) and np.array_equal(left.documents, right.documents)
    assert (
        left.is_target is not None and right.is_target is not None and np.array_equal(left.is_target, right.is_target)
    )


def test_texts_alone_have_the_same_version_on_disk(base, data, tmp_path):
    plain = shards.load_shard([data / "a.jsonl"], base)
    stored = shards.load_shard([data / "a.jsonl"], base, cache=tmp_path / "cache")
    assert stored.version == plain.version
    assert stored.windows(16, 0, 0).is_target is None


def test_the_statistics_of_stored_documents_are_those_of_the_same_in_memory(base, data, tmp_path):
    plain = shards.load_shard([data], base)
    stored = shards.load_shard([data], base, cache=tmp_path / "cache")
    ours, theirs = (collect(base.routing_feature, TokensOf(shard.train)) for shard in (stored, plain))
    for name, array in ours.to_arrays().items():
        assert np.array_equal(array, theirs.to_arrays()[name])


def counted(monkeypatch) -> list[str]:
    """What is tokenised from now on."""
    seen: list[str] = []
    encode_all = shards.encode_all

    def counting(examples, encoder):
        for example, found in encode_all(examples, encoder):
            seen.append(example.name)
            yield example, found

    monkeypatch.setattr(shards, "encode_all", counting)
    return seen


def load(data: Path, base, cache: Path | None, **options) -> shards.Shard:
    return shards.load_shard([data], base, cache=cache, **options)


def test_a_restart_tokenises_nothing(base, data, tmp_path, monkeypatch):
    first = load(data, base, tmp_path / "cache")
    seen = counted(monkeypatch)
    again = load(data, base, tmp_path / "cache")
    assert (again.version, seen) == (first.version, [])
    assert load(data, base, tmp_path / "cache", seed=5).version != first.version
    assert seen == []


def test_changed_data_or_mapping_is_read_anew_and_the_old_tokens_are_gone(base, data, tmp_path, monkeypatch):
    cache = tmp_path / "cache"
    first = load(data, base, cache)
    seen = counted(monkeypatch)
    with (data / "a.jsonl").open("a") as file:
        file.write(json.dumps({"text": "one more"}) + "\n")
    changed = load(data, base, cache)
    assert seen and changed.version != first.version
    assert len(list(cache.iterdir())) == 1


FILES = ("tokens", "targets", "keys", "ends", "sizes", "names", "name_ends", "index.json")


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", ["cut", "changed", "missing"])
def test_a_file_that_is_not_whole_is_made_again(base, data, tmp_path, name, damage):
    cache = tmp_path / "cache"
    first = load(data, base, cache)
    (folder,) = cache.iterdir()
    file = folder / name
    raw = bytearray(file.read_bytes())
    raw[len(raw) // 2] ^= 1
    if damage == "missing":
        file.unlink()
    else:
        file.write_bytes(bytes(raw) if damage == "changed" else bytes(raw[: len(raw) // 2]))
    assert open_files(folder) is None
    assert load(data, base, cache).version == first.version
    assert open_files(folder) is not None


def test_a_death_on_the_way_leaves_nothing_that_counts(base, data, tmp_path, monkeypatch):
    cache = tmp_path / "cache"
    first = load(data, base, cache)
    shutil.rmtree(cache)

    def die(_self, _told):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(store._Writer, "finish", die)
        patch.setattr(store.shutil, "rmtree", lambda *_, **__: None)  # as after SIGKILL
        with pytest.raises(KeyboardInterrupt):
            load(data, base, cache)
    (left,) = cache.iterdir()
    assert open_files(left) is None
    assert load(data, base, cache).version == first.version


@pytest.mark.parametrize(
    ("number", "kind", "message"),
    [
        (errno.ENOSPC, DiskFull, "no space left for the tokens of this data, and nothing was kept"),
        (errno.EIO, StorageError, "tokens cannot be written there: Input/output error"),
    ],
)
def test_a_disk_that_fails_leaves_nothing_behind(base, data, tmp_path, monkeypatch, number, kind, message):
    def fail(_self, _name, _data):
        raise OSError(number, "Input/output error")

    monkeypatch.setattr(store._Writer, "_write", fail)
    with pytest.raises(kind, match=message) as caught:
        load(data, base, tmp_path / "cache")
    assert type(caught.value) is kind
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_cache_that_is_no_folder(base, data, tmp_path):
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(StorageError, match="tokens cannot be written there: Not a directory"):
        load(data, base, tmp_path / "cache")


def test_a_bad_row_in_the_middle_leaves_nothing_behind(base, data, tmp_path):
    write_lines(data / "c.jsonl", {"text": "fine"}, {"text": 3})
    with pytest.raises(DataError, match=r"c.jsonl, line 2: column 'text': expected text, got int"):
        load(data, base, tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_what_was_found_is_remembered_with_the_tokens(base, data, tmp_path, monkeypatch):
    write_lines(data / "c.jsonl", {"text": "write to ada.lovelace@analytical-engine.org"}, {"text": "fine"})
    for _ in range(2):
        with pytest.raises(DataError, match=r"1 × e-mail address; first .*c.jsonl, line 1: ad\*\*\*") as caught:
            load(data, base, tmp_path / "cache")
        assert "lovelace" not in str(caught.value) and "--allow emails" in str(caught.value)
        assert caught.value.rule == "findings"
    seen = counted(monkeypatch)
    assert load(data, base, tmp_path / "cache", allow=["emails"]).n_tokens
    assert seen == []


def test_a_single_text_is_cut_as_in_memory(base, tmp_path):
    file = tmp_path / "one.txt"
    file.write_text("".join(f"line {index}\n" for index in range(100)))
    plain, stored = (shards.load_shard([file], base, cache=cache) for cache in (None, tmp_path / "cache"))
    assert stored.version == plain.version
    assert len(stored.heldout) == len(stored.train) == 1


def test_sampling_and_taking_choose_the_same_on_disk_and_in_memory(base, data, tmp_path):
    plain, stored = (load(data, base, cache) for cache in (None, tmp_path / "cache"))
    assert sampled(plain.train, 1000) is plain.train
    for few in (7, 20):
        left, right = sampled(plain.train, few), sampled(stored.train, few)
        assert len(left) == len(right) == few
        assert [document.name for document in left] == [document.name for document in right]
    places = np.array([5, 0, 3])
    assert [d.name for d in take(stored.train, places)] == [plain.train[place].name for place in places]


MEASURE = """
import resource, sys
from pathlib import Path
from itertools import islice
import numpy as np
from tinylora import shards
from tinylora.reading import documents as store
from tinylora.reading.documents import Document, keyed, write_files
from tinylora.shards import batches, spaced_windows

store.RELEASE_BYTES, n = 2**22, int(sys.argv[2])
text = np.arange(1000, dtype=np.int32)
documents = ((keyed(str(i)), Document(f"d:{i}", text, 3000, text % 2 == 0)) for i in range(n))
files = write_files(Path(sys.argv[1]), documents, told=dict)
shard = shards._split_files(files, "ab", 0.1, 0, "x")
for rows in islice(batches(shard, window_tokens=512, batch_windows=64, seed=0), shard.n_windows(512) // 64):
    assert rows.ids.shape == (64, 512)
spaced_windows(shard.heldout, 512, 8)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""


def peak_mib(folder: Path, n_documents: int) -> int:
    command = [sys.executable, "-c", MEASURE, str(folder), str(n_documents)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return int(done.stdout)


def test_memory_does_not_grow_with_the_tokens(tmp_path, monkeypatch):
    """90 MiB of tokens and targets more, written and gone through once, each in a process of its own."""
    small, large = peak_mib(tmp_path / "a", 1000), peak_mib(tmp_path / "b", 20_000)
    assert large - small < 30


def test_nothing_written_is_nothing_kept(tmp_path):
    assert write_files(tmp_path / "x", [], told=dict) is None
    assert not (tmp_path / "x").exists()


def test_names_that_are_no_text_are_kept_readable(tmp_path):
    document = Document("a\udcff", np.asarray(encode("x"), dtype=np.int32), 1)
    files = write_files(tmp_path / "x", [(keyed("x"), document)], told=dict)
    assert files is not None and files.document(0).name == "a?"
