"""Which row goes where: by its leaf where there is one, else where there is least to do."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinylora.errors import SettingError
from tinylora.routing.decision import Policy
from tinylora.serving.device_map import DeviceMap
from tinylora.serving.plan import Row, batches, check_policy, is_decided_at, limit_of, place

MAP = DeviceMap({"0": "a", "10": "b", "11": "c"})
POLICY = Policy.parse("hard@sequence:6")


def routed(path: str | None) -> Row:
    return Row([1, 1], way=None if path is None else (path, 0.9))


@given(st.lists(st.sampled_from(["0", "10", "11", "1", "", None])))
def test_every_row_goes_once_to_a_device_that_has_its_path(paths: list[str | None]) -> None:
    placed = place([routed(path) for path in paths], MAP)
    assert sorted(index for some in placed.values() for index in some) == list(range(len(paths)))
    for device, some in placed.items():
        assert some == sorted(some) and some
        assert all(paths[index] is None or device in MAP.holders(str(paths[index])) for index in some)
    free = [len(placed.get(device, ())) for device in MAP.devices]
    if all(path in (None, "") for path in paths):
        assert max(free) - min(free) <= 1


def test_rows_that_can_go_anywhere_go_where_there_is_least_to_do() -> None:
    paths = [None, "1", "10", "10", "0", None]
    assert place([routed(path) for path in paths], MAP) == {"a": [0, 4], "b": [2, 3], "c": [1, 5]}


def test_before_its_decision_a_row_may_have_no_more_tokens_than_that_takes() -> None:
    assert limit_of(Row([1, 1]), POLICY, 9) == 4
    assert limit_of(Row([1, 1]), POLICY, 3) == 3
    assert limit_of(routed("0"), POLICY, 9) == 9
    assert limit_of(Row([1, 1]), None, 9) == 9
    assert not is_decided_at(POLICY, 5) and is_decided_at(POLICY, 6)
    assert not is_decided_at(Policy.parse("soft"), 600)


def test_a_policy_that_needs_many_leaves_for_one_text_needs_one_device() -> None:
    for text in ("soft", "top2", "hard", "elastic", "hard@window:8", "soft@sequence:8", "top2@sequence"):
        with pytest.raises(SettingError, match="choose hard@sequence:32 or elastic@sequence:32"):
            check_policy(Policy.parse(text), MAP)
        check_policy(Policy.parse(text), DeviceMap({"0": "a", "1": "a"}))
    check_policy(Policy.parse("elastic:0.7@sequence:16"), MAP)


def test_rows_of_like_size_go_together() -> None:
    assert batches([3, 9, 3, 1], [4, 4, 1, 4], 2) == [[2, 3], [0, 1]]
    assert batches([], [], 2) == []
