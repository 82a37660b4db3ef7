"""An agent over the real wire, with a trainer that only counts: pauses, wishes, crashes, kills, and what is left."""

import os
import signal
import threading
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from tinylora_worker.agent import client
from tinylora_worker.agent.agent import Agent

from tests.federation.facts import FACTS
from tests.flower.helpers import TOKEN, Federation, federation, make_unit, payload_of, replies, until
from tests.worker.agents import (
    Calm,
    assert_nothing_is_left,
    behave,
    make_fake,
    options,
    repeated,
    running,
    start_process,
    steps_of,
)
from tinylora.errors import BaseModelError, DataError, NetworkError, RefusedError
from tinylora.flower.messages import WORKER_FAILED
from tinylora.flower.transport import FlowerTransport
from tinylora.protocol.documents import Update

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of alembic and pathspec, about flwr's use


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    with federation(tmp_path_factory.mktemp("link"), facts=FACTS) as found:
        yield found


@pytest.fixture(autouse=True)
def under_way(served: Federation) -> None:
    served.link.phase = "running"


@pytest.fixture
def rounds(served: Federation) -> Iterator[FlowerTransport]:
    with served.transport() as transport:
        yield transport


def send(transport: FlowerTransport, unit_id: str, *, n_steps: int = 5, deadline_s: float = 600.0) -> bytes:
    """Send a unit to the only worker that is there; returns what it will make of it."""
    until(lambda: len(transport.workers()) == 1, what="one worker online")
    payload = f"payload of {unit_id}".encode()
    unit = make_unit(unit_id, payload, n_steps=n_steps, deadline_s=deadline_s, node="01")
    transport.send(transport.workers()[0].worker, unit, payload)
    return payload[::-1]


def said(home: Path) -> str:
    return (home / "said").read_text()


def n_done(home: Path, unit_id: str) -> int:
    return len(steps_of(home).get(unit_id, []))


# --- a life -----------------------------------------------------------------------------------------------------------


def test_units_are_done_signed_and_sent_and_the_run_ends(
    served: Federation, rounds: FlowerTransport, tmp_path: Path
) -> None:
    with running(options(served.address.url(), TOKEN, tmp_path, name="me")) as worker:
        expected = {name: send(rounds, name) for name in ("u1",)}
        reply = replies(rounds, 1)["u1"]
        assert payload_of(reply) == expected["u1"], (reply, worker.lines)
        update = Update.from_json(reply.update_json)
        assert update.signature and update.n_steps == 5
        found = worker.agent.status()
        assert (found.run, found.worker, found.name, found.pid) == ("run", update.worker, "me", os.getpid())
        assert (found.state, found.device, found.dtype) == ("waiting", "fake", "fp32")
        served.link.phase = "finished"
        assert worker.finish() == "finished"
    assert steps_of(tmp_path) == {"u1": [0, 1, 2, 3, 4]}
    assert worker.lines[0].startswith("run run: joined") and worker.lines[-1] == "the run is finished"
    assert any(line.startswith("u1 node 01: 5 steps") for line in worker.lines)
    assert_nothing_is_left(tmp_path)


def test_one_agent_in_a_home(served: Federation, tmp_path: Path) -> None:
    asked = options(served.address.url(), TOKEN, tmp_path)
    with running(asked), pytest.raises(RefusedError, match=rf"process {os.getpid()}"):
        Agent(asked).prepare()
    with pytest.raises(NetworkError, match="no worker is at work"):
        client.status(tmp_path)


@pytest.mark.parametrize(
    ("kind", "error"), [("DataError", DataError), ("BaseModelError", BaseModelError)], ids=lambda value: str(value)
)
def test_what_cannot_be_loaded_ends_it(served: Federation, tmp_path: Path, kind: str, error: type[Exception]) -> None:
    behave(tmp_path, load=kind)
    with running(options(served.address.url(), TOKEN, tmp_path)) as worker:
        assert isinstance(worker.finish(), error)


def test_a_base_that_is_not_the_runs_ends_it(served: Federation, tmp_path: Path) -> None:
    other = FACTS.model_copy(update={"feature_hash": "e" * 64})
    with running(options(served.address.url(), TOKEN, tmp_path, facts=other)) as worker:
        ending = worker.finish()
        assert isinstance(ending, BaseModelError) and "feature_hash" in str(ending)


# --- pauses -----------------------------------------------------------------------------------------------------------


def test_a_pause_keeps_the_unit_and_frees_the_device(
    served: Federation, rounds: FlowerTransport, tmp_path: Path
) -> None:
    behave(tmp_path, step_s=0.05)
    with running(options(served.address.url(), TOKEN, tmp_path), make_trainer=make_fake) as worker:
        expected = send(rounds, "u1", n_steps=20)
        until(lambda: n_done(tmp_path, "u1") >= 3, what="some steps")
        assert "the device's memory is free" in client.pause(tmp_path)
        assert_nothing_is_left(tmp_path)
        done = n_done(tmp_path, "u1")
        found = client.status(tmp_path)
        assert (found.state, found.reason, found.unit_id) == ("paused", "user_paused", "u1")
        assert len(rounds.workers()) == 1, "the lease is still ours"
        behave(tmp_path)
        assert client.resume(tmp_path) == "goes on"
        assert payload_of(replies(rounds, 1)["u1"]) == expected
        assert steps_of(tmp_path)["u1"][:done] == list(range(done)) and repeated(steps_of(tmp_path))["u1"] <= 1
    assert any(line == "paused: user_paused" for line in worker.lines) and "goes on" in worker.lines


def test_a_pause_that_lasts_too_long_gives_the_unit_back_and_leaves_the_roster(
    served: Federation, rounds: FlowerTransport, tmp_path: Path
) -> None:
    behave(tmp_path, step_s=0.05)
    with running(options(served.address.url(), TOKEN, tmp_path)) as worker:
        send(rounds, "u1", n_steps=1000, deadline_s=30.0)
        until(lambda: n_done(tmp_path, "u1") >= 3, what="some steps")
        worker.agent.pause()
        reply = replies(rounds, 1)["u1"]
        assert reply.error and "user_paused" in reply.error and not reply.is_final
        until(lambda: rounds.workers() == [], what="the worker off the roster")
        assert worker.agent.status().unit_id == "" and worker.agent.status().n_outbox == 0
        behave(tmp_path)
        worker.agent.resume()
        assert payload_of((send(rounds, "u2"), replies(rounds, 1))[1]["u2"])


def test_a_limit_pauses_and_ends_by_itself_and_a_pause_survives_a_restart(
    served: Federation, rounds: FlowerTransport, tmp_path: Path
) -> None:
    sensors = Calm(is_on_battery=True)
    asked = options(served.address.url(), TOKEN, tmp_path)
    with running(asked, sensors=sensors) as worker:
        until(lambda: worker.agent.status().reason == "battery", what="the reason")
        assert rounds.workers() == [] and worker.agent._keeper.pid is None
        until_s = worker.agent._wall() + 3600.0
        worker.agent.pause(until_s)
        assert worker.agent.status().reason == "user_paused" and worker.agent.status().until_s == pytest.approx(until_s)
    sensors.facts = {}
    later = [0.0]
    import time

    with running(replace(asked, url="", token=""), sensors=sensors, wall=lambda: time.time() + later[0]) as worker:
        until(lambda: worker.agent.status().reason == "user_paused", what="the pause of before")
        later[0] = timedelta(hours=2).total_seconds()
        until(lambda: len(rounds.workers()) == 1, what="the worker back by itself")


# --- leaving ----------------------------------------------------------------------------------------------------------


def test_to_finish_is_to_do_the_unit_under_way_and_go(
    served: Federation, rounds: FlowerTransport, tmp_path: Path
) -> None:
    behave(tmp_path, step_s=0.05)
    with running(options(served.address.url(), TOKEN, tmp_path)) as worker:
        expected = send(rounds, "u1", n_steps=20)
        until(lambda: n_done(tmp_path, "u1") >= 2, what="some steps")
        assert client.finish(tmp_path) == "leaves after unit u1"
        assert client.status(tmp_path).is_finishing
        assert payload_of(replies(rounds, 1)["u1"]) == expected
        assert worker.finish() == "stopped"
    until(lambda: rounds.workers() == [], what="the worker off the roster")
    with running(options("", "", tmp_path)):
        until(lambda: len(rounds.workers()) == 1, what="the next start, which has forgotten the wish")


def test_to_leave_gives_the_unit_back(served: Federation, rounds: FlowerTransport, tmp_path: Path) -> None:
    behave(tmp_path, step_s=0.05)
    with running(options(served.address.url(), TOKEN, tmp_path)) as worker:
        send(rounds, "u1", n_steps=1000)
        until(lambda: n_done(tmp_path, "u1") >= 2, what="some steps")
        seen: list[str] = []
        watcher = threading.Thread(target=lambda: seen.extend(status.state for status in client.follow(tmp_path)))
        watcher.start()
        until(lambda: "working" in seen, what="a status")
        assert "given back" in client.leave(tmp_path)
        assert replies(rounds, 1)["u1"].error
        assert worker.finish() == "stopped"
        watcher.join(10.0)
    assert_nothing_is_left(tmp_path)
    assert not list((tmp_path / "units").glob("u*"))


def test_control_c_once_is_in_order(served: Federation, rounds: FlowerTransport, tmp_path: Path) -> None:
    behave(tmp_path, step_s=0.05)
    agent = start_process(tmp_path, served.address.url(), TOKEN)
    send(rounds, "u1", n_steps=1000)
    until(lambda: n_done(tmp_path, "u1") >= 2, what="some steps")
    agent.send_signal(signal.SIGINT)
    assert "leaving" in replies(rounds, 1)["u1"].error
    assert agent.wait(30.0) == 0, said(tmp_path)
    until(lambda: rounds.workers() == [], what="the worker offline, which it said itself")
    assert "stopped; `tinylora-worker run` goes on" in said(tmp_path)
    assert_nothing_is_left(tmp_path, agent.pid)


def test_control_c_twice_is_at_once(tmp_path: Path) -> None:
    """The coordinator is away, so that the first time takes a while."""
    home = tmp_path / "home"
    behave(home, step_s=0.05)
    with federation(tmp_path, facts=FACTS) as own, own.transport() as rounds:
        agent = start_process(home, own.address.url(), TOKEN)
        send(rounds, "u1", n_steps=1000)
        until(lambda: n_done(home, "u1") >= 2, what="some steps")
    agent.send_signal(signal.SIGINT)
    until(lambda: "leaving" in said(home), what="its answer")
    agent.send_signal(signal.SIGINT)
    assert agent.wait(30.0) == 130, said(home)
    assert_nothing_is_left(home, agent.pid)
    assert (home / "units" / "u1" / "unit.json").exists(), "it goes on at the next start"


# --- crashes ----------------------------------------------------------------------------------------------------------


def test_a_trainer_that_crashes_costs_no_more_than_its_last_checkpoint(
    served: Federation, rounds: FlowerTransport, tmp_path: Path
) -> None:
    behave(tmp_path, step_s=0.02, crash_at=30)
    with running(options(served.address.url(), TOKEN, tmp_path), make_trainer=make_fake) as worker:
        expected = send(rounds, "u1", n_steps=40)
        until(lambda: any("the trainer ended" in line for line in worker.lines), what="the crash")
        behave(tmp_path)
        assert payload_of(replies(rounds, 1)["u1"]) == expected
        assert set(steps_of(tmp_path)["u1"]) == set(range(40)) and repeated(steps_of(tmp_path))["u1"] <= 29
        assert not worker.endings


def test_a_unit_that_kills_every_trainer_is_answered_and_the_worker_stays(
    served: Federation, rounds: FlowerTransport, tmp_path: Path
) -> None:
    behave(tmp_path, crash_at=2)
    with running(options(served.address.url(), TOKEN, tmp_path)):
        send(rounds, "u1")
        reply = replies(rounds, 1)["u1"]
        assert reply.error and "the trainer ended 3 times over this unit" in reply.error
        assert f"(Flower code {WORKER_FAILED})" in reply.error
        behave(tmp_path)
        assert send(rounds, "u2") == payload_of(replies(rounds, 1)["u2"])


@pytest.mark.parametrize("victim", [pytest.param("agent", marks=pytest.mark.slow), "both"])
def test_a_killed_agent_comes_back_as_itself_and_goes_on(
    served: Federation, rounds: FlowerTransport, tmp_path: Path, victim: str
) -> None:
    behave(tmp_path, step_s=0.05)
    agent = start_process(tmp_path, served.address.url(), TOKEN)
    expected = send(rounds, "u1", n_steps=40)
    until(lambda: n_done(tmp_path, "u1") >= 10, what="some steps")
    who = rounds.workers()
    agent.kill()
    if victim == "both":
        for line in (tmp_path / "steps").read_text().splitlines()[-1:]:
            os.kill(int(line.split()[2]), signal.SIGKILL)
    agent.wait()
    assert_nothing_is_left(tmp_path, agent.pid)
    done = n_done(tmp_path, "u1")
    again = start_process(tmp_path)
    assert payload_of(replies(rounds, 1)["u1"]) == expected
    assert [station.worker for station in rounds.workers()] == [station.worker for station in who]
    assert repeated(steps_of(tmp_path))["u1"] <= done / 2, "it went on from its checkpoint"
    again.send_signal(signal.SIGTERM)
    assert again.wait(30.0) == 0, said(tmp_path)
