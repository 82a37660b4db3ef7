"""What anybody may know of a run, and how often it is looked up."""

from pathlib import Path

from tinylora_coordinator.public_status import REST_S, PublicStatus

from tests.federation.facts import SETTINGS
from tests.federation.world import crowd, run_world
from tinylora.ledger.sqlite import SqliteLedger


def test_it_says_what_the_ledger_says_and_names_nobody(tmp_path: Path) -> None:
    with SqliteLedger(tmp_path) as ledger:
        campaign, events, _ = run_world(crowd(3), SETTINGS, ledger=ledger)
        told = PublicStatus(tmp_path, clock=lambda: 0.0).read()
        assert told["events"] == {"n": len(events), "sha256": ledger.head()[1]}
    assert told["workers"] == {"n": 3, "n_online": 3, "n_taken_out": 0}
    assert told["nodes"] == {
        top: {"version": node.version, "n_steps": node.steps} for top, node in campaign.nodes.items()
    }
    assert told["router_version"] == campaign.router.version
    assert "w0" not in str(told)


def test_a_run_that_was_never_served_is_empty(tmp_path: Path) -> None:
    assert PublicStatus(tmp_path).read()["events"]["n"] == 0


def test_it_looks_once_in_a_while_however_often_it_is_asked(tmp_path: Path) -> None:
    now = [0.0]
    status = PublicStatus(tmp_path, clock=lambda: now[0])
    assert status.read()["events"]["n"] == 0
    with SqliteLedger(tmp_path) as ledger:
        _, events, _ = run_world(crowd(2), SETTINGS, ledger=ledger)
    assert status.read()["events"]["n"] == 0
    now[0] += REST_S
    assert status.read()["events"]["n"] == len(events)


def test_an_altered_ledger_leaves_the_last_answer(tmp_path: Path) -> None:
    now = [0.0]
    status = PublicStatus(tmp_path, clock=lambda: now[0])
    with SqliteLedger(tmp_path) as ledger:
        run_world(crowd(2), SETTINGS, ledger=ledger)
    before = status.read()
    (tmp_path / "ledger.sqlite").write_bytes(b"no database")
    now[0] += REST_S
    assert status.read() == before
