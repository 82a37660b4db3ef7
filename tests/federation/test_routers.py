"""What is kept of the workers' sums: a bounded number of bytes, and the same sums."""

import weakref

import numpy as np

from tests.federation.world import crowd, run_world
from tinylora.federation.routers import Blobs, Recent, Sums, leaf_statistics, next_gates
from tinylora.numerics import TorchNumerics
from tinylora.routing.statistics import RouterStatistics, sum_statistics


def test_the_latest_items_stay_as_many_as_fit():
    made: list[str] = []
    recent = Recent(10, lambda name: (made.append(name) or name.upper(), 4))
    assert [recent(name) for name in "ababcab"] == list("ABABCAB")
    assert "".join(made) == "abcab"  # two of them fit
    assert recent.n_bytes == 8


def test_what_is_larger_than_the_bound_is_given_all_the_same():
    recent = Recent(3, lambda name: (name, 5))
    assert (recent("a"), recent("b"), recent.n_bytes) == ("a", "b", 5)


def test_sums_of_many_workers_are_added_one_at_a_time():
    alive, most = set[int](), [0]

    def read() -> RouterStatistics:
        found = RouterStatistics(np.ones(6), np.ones((6, 3)), np.ones(6))
        alive.add(id(found))
        weakref.finalize(found, alive.discard, id(found))
        most[0] = max(most[0], len(alive))
        return found

    total = sum_statistics(Sums({f"w{number:03d}": read for number in range(50)}))
    assert total.n == 300
    assert most[0] <= 2


def test_gates_are_the_same_whatever_fits_into_memory():
    campaign, _, ledger = run_world(crowd(6, has_histograms=True), depth=2, min_workers=6)
    narrow, wide = Blobs(ledger, TorchNumerics()), Blobs(ledger, TorchNumerics())
    narrow.statistics._limit_bytes = narrow.histograms._limit_bytes = 1
    (one, *_), (other, *_) = next_gates(campaign, narrow), next_gates(campaign, wide)
    assert {name: array.tobytes() for name, array in one.items()} == {n: a.tobytes() for n, a in other.items()}
    assert sorted(leaf_statistics(campaign, narrow)) == ["00", "01", "10", "11"]
    assert len(narrow.statistics._kept) == 1
