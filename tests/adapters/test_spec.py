"""Kinds and ranks of adapters, read and refused."""

import pytest

from tests.federation.facts import FACTS
from tinylora.adapters.shapes import adapter_shapes, n_adapter_parameters
from tinylora.adapters.spec import TEXTS, AdapterSpec, parse_ranks
from tinylora.errors import SettingError


@pytest.mark.parametrize("text", TEXTS)
def test_every_kind_is_written_as_it_is_read(text: str) -> None:
    spec = AdapterSpec.parse(text, 4, {"proj": 2})
    assert str(spec) == text
    assert spec == AdapterSpec.parse(str(spec), spec.rank, spec.ranks)
    assert hash(spec) == hash(AdapterSpec.parse(text, 4, {"proj": 2}))


@pytest.mark.parametrize(
    "text", ["", "LoRA", "nested:", "nested:half", "tied", "tied:", "tied:B,A", "tied:B,uv", "lora:A"]
)
def test_other_kinds_are_refused_with_the_list_of_kinds(text: str) -> None:
    with pytest.raises(SettingError, match=f"adapter {text!r}: expected one of lora, nested, nested:frozen, tied:A"):
        AdapterSpec.parse(text, 4)


def test_what_contradicts_itself_cannot_be_made() -> None:
    with pytest.raises(SettingError, match="tied:C"):
        AdapterSpec("tied", 4, trained=("C",))
    with pytest.raises(SettingError, match="lora:frozen"):
        AdapterSpec("lora", 4, is_lower_frozen=True)


def test_ranks_differ_by_projection_and_stay_below_the_reference() -> None:
    spec = AdapterSpec("lora", 4, {"proj": 2})
    assert (spec.rank_of("proj"), spec.rank_of("other")) == (2, 4)
    assert adapter_shapes(FACTS, spec) == {"proj.lora_A": (2, 2, 3), "proj.lora_B": (2, 5, 2)}
    assert n_adapter_parameters(FACTS, spec) == 2 * 2 * (3 + 5)
    for rank in (0, 5):
        with pytest.raises(SettingError, match=f"proj = {rank}: expected 1 to 4"):
            AdapterSpec("lora", 4, {"proj": rank})
    with pytest.raises(SettingError, match="rank 0"):
        AdapterSpec("lora", 0)


def test_a_projection_that_the_base_has_not_is_refused() -> None:
    with pytest.raises(SettingError, match="ranks: head: no such projection; fake has proj"):
        adapter_shapes(FACTS, AdapterSpec("lora", 4, {"head": 2}))


def test_ranks_are_read_from_text() -> None:
    assert parse_ranks(" a.b=4, c = 2 ") == {"a.b": 4, "c": 2}
    assert parse_ranks("") == {}
    for text in ("a", "=2", "a=", "a=-1", "a=2=3"):
        with pytest.raises(SettingError, match="expected projection=rank"):
            parse_ranks(text)
