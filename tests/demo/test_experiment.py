"""Domains are dealt to workers fairly, and no text is in two hands."""

from pathlib import Path

import pytest

from tinylora.demo import experiment
from tinylora.demo.corpus import Domain
from tinylora.demo.experiment import deal_domains, gather
from tinylora.errors import DataError


def domains_of(folder: Path, n_domains: int, n_files: int = 120) -> list[Domain]:
    domains = []
    for number in range(n_domains):
        place = folder / f"domain{number}"
        place.mkdir(parents=True)
        for index in range(n_files):
            (place / f"{index}.txt").write_text(f"domain {number}, document {index}, some words\n" * 20)
        listing = [(f"domain{number}/{path.name}", path) for path in sorted(place.iterdir())]
        domains.append(Domain(f"domain{number}", "made up", lambda listing=listing: listing, Path.read_text))
    return domains


@pytest.fixture(autouse=True)
def no_base_needed(monkeypatch):
    monkeypatch.setattr(experiment, "seen_hashes", frozenset)


def test_domains_are_dealt_in_turn():
    assert deal_domains(4, 4) == [(0,), (1,), (2,), (3,)]
    assert deal_domains(3, 4) == [(0, 3), (1,), (2,)]
    assert deal_domains(6, 4) == [(0,), (1,), (2,), (3,), (0,), (1,)]
    assert deal_domains(1, 4) == [(0, 1, 2, 3)]


@pytest.mark.parametrize(("n_workers", "depth"), [(4, 2), (3, 2), (6, 2), (1, 1), (2, 0)])
def test_no_document_is_in_two_hands(tmp_path, n_workers, depth):
    found = gather(n_workers, depth, domains=domains_of(tmp_path, 2**depth))
    names = [name for worker in found.workers for name, _ in worker.texts]
    names += [name for texts in (*found.validation.values(), *found.heldout.values()) for name, _ in texts]
    assert len(names) == len(set(names))
    assert len(found.workers) == n_workers and len(found.domains) == 2**depth
    for worker in found.workers:
        assert {name.split("/")[0] for name, _ in worker.texts} == set(worker.domains)


def test_gathering_twice_gives_the_same(tmp_path):
    domains = domains_of(tmp_path, 2)
    assert gather(2, 1, domains=domains) == gather(2, 1, domains=domains)


def test_too_few_domains_is_one_clear_sentence(tmp_path):
    with pytest.raises(DataError, match="depth 2 needs 4 kinds of text, this machine has 3"):
        gather(4, 2, domains=domains_of(tmp_path, 3))


def test_a_shard_file_is_read_back_by_line(tmp_path):
    import json

    worker = experiment.WorkerText("worker-0", ("a",), (("x", "first\nsecond"), ("y", "ünïcode")))
    lines = experiment.write_shard(worker, tmp_path / "data").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["text"] for line in lines] == ["first\nsecond", "ünïcode"]
