"""The link: that a key which was removed stays so, and that the inner listener answers our own processes alone."""

import random
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from tinylora_coordinator.front_door import listen

from tests.flower.helpers import TOKEN, Federation, federation, make_unit, until
from tinylora.errors import NetworkError, RefusedError
from tinylora.flower.compat.rounds import Status
from tinylora.flower.enrolment import STATE_PATH, join
from tinylora.flower.identity import new_identity
from tinylora.flower.link import ADMIN_HEADER, LinkSecrets, create_link

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of alembic, about flwr's use


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    with federation(tmp_path_factory.mktemp("link")) as running:
        yield running


# --- the guard --------------------------------------------------------------------------------------------------


def test_the_inner_listener_answers_nobody_without_the_header(served: Federation) -> None:
    for headers in ({}, {ADMIN_HEADER: "0" * 64}, {ADMIN_HEADER: ""}):
        for path in ("/openapi.json", "/health", "/v1/control/list-runs", STATE_PATH):
            response = httpx.post(served.inside.url(path), headers=headers)
            assert response.status_code == 403 and response.json()["error"] == "forbidden"


def test_the_header_opens_all_of_flower(served: Federation) -> None:
    headers = {ADMIN_HEADER: served.link.admin}
    paths = httpx.get(served.inside.url("/openapi.json"), headers=headers).json()["paths"]
    assert len(paths) > 20 and "/v1/control/start-run" in paths


def test_the_rounds_end_earlier_runs_and_the_link_does_not(tmp_path: Path) -> None:
    with federation(tmp_path) as first, first.transport():
        before = first.link.state.get_run_info(statuses=[Status.RUNNING])
        assert len(before) == 1
        again = create_link(first.database)
        assert [run.run_id for run in again.state.get_run_info(statuses=[Status.RUNNING])] == [before[0].run_id]
        with first.transport():
            running = first.link.state.get_run_info(statuses=[Status.RUNNING])
            assert [run.run_id for run in running if run.run_id == before[0].run_id] == [] and len(running) == 1


def test_what_ended_runs_left_behind_is_dropped_when_the_link_starts_again(tmp_path: Path) -> None:
    with federation(tmp_path) as first:
        identity = new_identity()
        first.link.register(identity.public_pem)
        node = first.link.state.get_node_id_by_public_key(identity.public_pem)
        assert node is not None and first.link.state.activate_node(node, 30.0)
        with first.transport() as transport:  # this worker never comes for its unit
            payload = random.Random(0).randbytes(3 * 2**20)
            transport.send(identity.worker, make_unit("lost", payload), payload)
            until(lambda: first.link.state.num_message_ins() == 1, what="the message")
            again = create_link(first.database)
            assert again.state.num_message_ins() == 1  # its run goes on
    assert size_of(tmp_path) > 3 * 2**20
    last = create_link(first.database)
    assert last.state.num_message_ins() == 0 and len(last.state.object_store) == 0
    assert size_of(tmp_path) < 2**20
    assert last.is_registered(identity.public_pem)


def size_of(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.glob("link.db*"))


def test_secrets_come_from_outside_where_there_is_a_supervisor(tmp_path: Path) -> None:
    link = create_link(tmp_path / "link.db", LinkSecrets("a" * 64, b"s" * 32))
    assert (link.admin, link.superexec_secret) == ("a" * 64, b"s" * 32)
    assert "a" * 64 not in repr(link) and "ssss" not in repr(link)


# --- nodes ------------------------------------------------------------------------------------------------------


def test_a_worker_that_was_removed_stays_out(served: Federation) -> None:
    identity = new_identity()
    join(served.address, TOKEN, identity)
    served.link.remove(identity.public_pem)
    served.link.remove(identity.public_pem)  # again is harmless
    assert not served.link.is_registered(identity.public_pem)
    with pytest.raises(RefusedError, match="removed from the run"):
        join(served.address, TOKEN, identity)


def test_a_port_in_use_is_one_sentence(served: Federation) -> None:
    port = int(served.address.host_port.split(":")[1])
    with pytest.raises(NetworkError, match=f"127.0.0.1:{port}: .*choose another --host or --port"):
        listen("127.0.0.1", port)
