"""The sketch of a shard with more documents than it reads: a sample, each document for as many as it takes."""

import numpy as np
import pytest

from tests.learning.units import base, shard, unit
from tinylora.reading.documents import TokensOf, sampled
from tinylora.routing.sketch import collect
from tinylora.tensors import from_bytes
from tinylora.training import UnitRunner, runner


def test_a_sample_stands_for_all_documents(monkeypatch: pytest.MonkeyPatch) -> None:
    text = shard("letters", "digits")
    most = len(text.train) // 3
    monkeypatch.setattr(runner, "MAX_SKETCHED_DOCUMENTS", most)
    one = UnitRunner(base(), text, worker="w0")
    found = from_bytes(one.run(*unit("sketch", ""))[1])
    weight = float(round(len(text.train) / most))
    expected = (collect(base().routing_feature, TokensOf(sampled(text.train, most))) * weight).to_arrays()
    for name, array in expected.items():
        np.testing.assert_array_equal(found[f"statistics..{name}"].numpy(), array)
    assert weight > 1 and expected["count"].sum() % weight == 0
