"""Exported folders are whole or not there; what is there already is kept unless an earlier export wrote it."""

import errno
from pathlib import Path

import pytest

from tests.bundle.leaves import LEAF, make_bundle, places_of
from tests.model.families import family_base
from tinylora import tensors
from tinylora.errors import DiskFull, StorageError
from tinylora.export import export_leaf
from tinylora.export.folder import whole_folder
from tinylora.export.origin import Origin, find_origin

COMMIT = "89abcdef0123456789abcdef0123456789abcdef"


def test_a_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object):
        yield b"the first bytes"
        raise OSError(errno.ENOSPC, "No space left on device")

    base = family_base("llama")
    bundle = make_bundle(base, "lora", (LEAF,), 2, {})
    export_leaf(bundle, LEAF, tmp_path / "out", places=places_of(base))
    before = {file.name: file.read_bytes() for file in (tmp_path / "out").iterdir()}
    monkeypatch.setattr(tensors, "to_pieces", full)
    for out, is_forced in ((tmp_path / "new", False), (tmp_path / "out", True)):
        with pytest.raises(DiskFull, match="No space left"):
            export_leaf(bundle, LEAF, out, places=places_of(base), is_forced=is_forced)
    assert [folder.name for folder in tmp_path.iterdir()] == ["out"]
    assert {file.name: file.read_bytes() for file in (tmp_path / "out").iterdir()} == before


def test_what_is_there_is_kept(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with whole_folder(out) as folder:
        (folder / "a.json").write_text("1")
    with pytest.raises(StorageError, match="is not empty"), whole_folder(out):
        pass
    with whole_folder(out, is_forced=True) as folder:
        (folder / "b.json").write_text("2")
    assert [file.name for file in out.iterdir()] == ["b.json"]
    (out / "thesis.docx").write_text("")
    with (
        pytest.raises(StorageError, match="which no export wrote"),
        whole_folder(out, is_forced=True),
    ):
        pass
    assert (out / "b.json").exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="is a file"), whole_folder(tmp_path / "file", is_forced=True):
        pass
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "out"]


def test_an_error_within_and_the_remains_of_a_killed_process(tmp_path: Path) -> None:
    (tmp_path / ".out.part").mkdir()
    (tmp_path / ".out.part" / "half").write_text("")
    with pytest.raises(KeyboardInterrupt), whole_folder(tmp_path / "out") as folder:
        (folder / "a.json").write_text("1")
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def make_snapshot(cache: Path, readme: str) -> Path:
    """As the hub's own cache lays it out."""
    place = cache / "models--org--base"
    snapshot = place / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text(COMMIT)
    (snapshot / "config.json").write_text("{}")
    (snapshot / "README.md").write_text(readme)
    return snapshot


@pytest.mark.parametrize(
    ("matter", "licence"),
    [
        ("license: apache-2.0", "apache-2.0"),
        ("license: other\nlicense_name: llama3.1", "llama3.1"),
        ("license:\n- mit\n- gpl-3.0", "mit, gpl-3.0"),
        ("tags: [x]", ""),
        ("license: {a: [}", ""),
        ("- a list", ""),
    ],
)
def test_name_revision_and_licence_of_a_base(tmp_path: Path, matter: str, licence: str) -> None:
    snapshot = make_snapshot(tmp_path, f"---\n{matter}\n---\n# Base\n")
    assert find_origin(snapshot) == Origin("org/base", COMMIT, licence)
    own = tmp_path / "own"
    own.mkdir()
    (own / "README.md").write_bytes((snapshot / "README.md").read_bytes())
    assert find_origin(own) == Origin(str(own), None, licence)
    assert not find_origin(own).is_on_hub and find_origin(snapshot).is_on_hub


def test_a_hub_id_is_found_in_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.file_download

    make_snapshot(tmp_path, "---\nlicense: mit\n---\n")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    assert find_origin("org/base") == Origin("org/base", COMMIT, "mit")
    assert find_origin("org/other") == Origin("org/other", None, "")  # the hub cannot be asked here
