"""A volunteer's command: what is wrong ends it with one sentence and its own exit code; signals end it cleanly."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from tinylora_worker.service import CheckBase, Options, describe, work

from tests.federation.facts import FACTS
from tests.flower.helpers import QUICK, TOKEN, Federation, federation, make_unit, make_update, replies, until
from tinylora.errors import BaseModelError
from tinylora.flower.identity import Identity
from tinylora.flower.messages import Handle
from tinylora.protocol.documents import Update, WorkUnit

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of alembic and pathspec, about flwr's use


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    with federation(tmp_path_factory.mktemp("link"), facts=FACTS) as running:
        yield running


@pytest.fixture(autouse=True)
def own_flower_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLWR_HOME", "")  # the command sets it; put back afterwards


def options(served: Federation, home: Path, **changes: object) -> Options:
    values = {"url": served.address.url(), "token": TOKEN, "base": "fake", "data": (home,), "home": home} | changes
    return Options(**values)  # type: ignore[arg-type]


# --- a life -------------------------------------------------------------------------------------------------------


def test_the_base_is_checked_before_the_text_is_read_and_units_are_logged(served: Federation, tmp_path: Path) -> None:
    log: list[str] = []

    def prepare(asked: Options, identity: Identity, check_base: CheckBase) -> Handle:
        check_base(FACTS)
        with pytest.raises(BaseModelError, match="feature_hash"):
            check_base(FACTS.model_copy(update={"feature_hash": "e" * 64}))

        def handle(unit: WorkUnit, payload: bytes) -> tuple[Update, bytes]:
            served.link.phase = "finished"
            return make_update(unit, identity.worker, payload), payload

        return handle

    served.link.phase = "running"
    with served.transport() as transport:

        def send_when_online() -> None:
            until(lambda: len(transport.workers()) == 1, what="the worker online")
            transport.send(transport.workers()[0].worker, make_unit("u7", b"x", node="01"), b"x")

        sender = threading.Thread(target=send_when_online)
        sender.start()
        assert work(options(served, tmp_path), prepare=prepare, pace=QUICK, log=log.append) == "finished"
        sender.join(10.0)
        reply = replies(transport, 1)["u7"]
        assert reply.file is not None and reply.file.read_bytes() == b"x"
    assert log[0].startswith("run run: joined") and log[-1] == "the run is finished"
    assert any(line.startswith("u7 node 01: 0 steps") for line in log)


def test_a_unit_in_one_line() -> None:
    unit = make_unit("u1", b"", node="")
    update = make_update(unit, "w", b"").model_copy(
        update={"seconds": 2.0, "tokens": 512, "n_steps": 4, "losses": (3.5, 3.25)}
    )
    assert describe(unit, update) == "u1 node root: 4 steps, loss 3.500 -> 3.250, 256 tokens/s"
    sketch = unit.model_copy(update={"kind": "sketch"})
    assert describe(sketch, update) == "u1 sketch: 2.0 s"


def test_a_signal_in_mid_unit_ends_it_cleanly(served: Federation, tmp_path: Path) -> None:
    served.link.phase = "running"
    marker = tmp_path / "marker"
    words = [served.address.url(), TOKEN, str(tmp_path), str(marker)]
    with served.transport() as transport:
        child = subprocess.Popen(
            [sys.executable, "-m", "tests.flower.victim", *words], stderr=subprocess.PIPE, text=True, env=os.environ
        )
        with child:
            until(lambda: len(transport.workers()) == 1 or child.poll() is not None, what="the worker online")
            transport.send(transport.workers()[0].worker, make_unit("u1", b"x"), b"x")
            until(marker.exists, what="the unit in work")
            child.send_signal(signal.SIGTERM)
            _, error = child.communicate(timeout=60)
        assert child.returncode == 0 and "stopped; `tinylora-worker run` goes on" in error
        until(lambda: transport.workers() == [], what="the worker offline, which it said itself")
