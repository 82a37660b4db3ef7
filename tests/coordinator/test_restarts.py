"""When a dead child is started again: at once, then less and less eagerly, then not at all."""

from tinylora_coordinator.restarts import LONGEST_S, MAX_DEATHS, SETTLED_S, Restarts


def test_each_death_without_progress_doubles_the_wait() -> None:
    restarts, now, waits = Restarts(), 0.0, []
    for _ in range(MAX_DEATHS - 1):
        wait_s = restarts.died(now, lived_s=0.1)
        assert wait_s is not None
        waits.append(wait_s)
        now += 1.0
    assert waits == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, LONGEST_S, LONGEST_S]
    assert restarts.died(now, lived_s=0.1) is None


def test_deaths_longer_ago_than_a_minute_do_not_count() -> None:
    restarts = Restarts()
    assert [restarts.died(7.0 * number, lived_s=0.1) is None for number in range(100)] == [False] * 100


def test_whoever_got_somewhere_is_started_again_at_once() -> None:
    restarts = Restarts()
    for number in range(100):
        assert restarts.died(0.5 * number, lived_s=0.1) == 0.1
        restarts.progress()


def test_whoever_lived_for_a_while_is_started_again_at_once() -> None:
    restarts = Restarts()
    assert [restarts.died(SETTLED_S * number, lived_s=SETTLED_S) for number in range(100)] == [0.1] * 100
