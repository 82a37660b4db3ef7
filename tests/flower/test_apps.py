"""The stock apps: over Flower's in-memory grid by default, and under its simulation engine as a slow test."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from flwr.app import Context, RecordDict
from flwr.clientapp import ClientApp

from tests.federation.facts import FACTS, SETTINGS
from tests.flower.counting import CountingTrainer, assert_counted_once
from tests.flower.helpers import until
from tests.helpers import WINDOW_TOKENS, tiny_base_dir
from tinylora.bundle import read_bundle
from tinylora.errors import DataError, SettingError
from tinylora.federation.campaign import Campaign
from tinylora.federation.events import UpdateAccepted, UpdateRejected, WorkerJoined
from tinylora.federation.ledger_memory import MemoryLedger
from tinylora.federation.loop import run_campaign
from tinylora.flower.apps import (
    BUNDLE_FILE,
    client_app,
    handle_from_config,
    make_client_app,
    make_server_app,
    server_app,
)
from tinylora.flower.clock import RunClock
from tinylora.flower.compat.memory import (
    FLWR_IN_MEMORY_DB_NAME,
    NOOP_ACCOUNT_NAME,
    NOOP_FEDERATION_ID,
    NOOP_FLWR_AID,
    InMemoryGrid,
    LinkStateFactory,
    NoOpFederationManager,
    ObjectStoreFactory,
    TaskType,
)
from tinylora.flower.grid import name_of_node
from tinylora.flower.messages import Handle
from tinylora.flower.transport import FlowerTransport
from tinylora.numerics import TorchNumerics

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@contextmanager
def in_memory_grid(app: ClientApp, n_nodes: int, run_config: dict[str, str] | None = None) -> Iterator[InMemoryGrid]:
    """Flower's state without sockets; nodes are threads that hand their messages to the ClientApp."""
    factory = LinkStateFactory(FLWR_IN_MEMORY_DB_NAME, NoOpFederationManager(), ObjectStoreFactory())
    state, stop = factory.state(), threading.Event()
    run_id = state.create_run(
        "tinylora/stub", "0.1.0", "hash", {}, NOOP_FEDERATION_ID, None, NOOP_FLWR_AID, TaskType.SERVER_APP
    )
    run = state.get_run_info(run_ids=[run_id])[0]
    assert run.primary_task_id is not None
    state.claim_task(run.primary_task_id)
    state.activate_task(run.primary_task_id)
    grid = InMemoryGrid(factory, pull_interval=0.01)
    grid.set_run(run)

    def node(number: int) -> None:
        node_id = state.create_node(NOOP_FLWR_AID, NOOP_ACCOUNT_NAME, b"key %d" % number, 1e6)
        state.activate_node(node_id, 1e6)
        context = Context(run_id, node_id, {"partition-id": number}, RecordDict(), {**(run_config or {})})
        while not stop.is_set():
            for message in state.get_message_ins(node_id=node_id, limit=1):
                reply = app(message, context)
                reply.metadata.__dict__["_message_id"] = reply.object_id
                state.store_message_res(reply)
            time.sleep(0.005)

    threads = [threading.Thread(target=node, args=(number,), daemon=True) for number in range(n_nodes)]
    for thread in threads:
        thread.start()
    until(lambda: len(list(grid.get_node_ids())) == n_nodes, what="all nodes online")
    try:
        yield grid
    finally:
        stop.set()
        for thread in threads:
            thread.join(10.0)


def counting(context: Context) -> Handle:
    """A trainer for this node; Flower vouches for it, so it does not sign."""
    return CountingTrainer(name_of_node(context.node_id), centre=2.0 * float(context.node_config["partition-id"])).run


def driving(ledger: MemoryLedger, ended: list[Campaign], n_workers: int) -> Callable[[FlowerTransport, Context], None]:
    """Runs a campaign to its end."""
    settings = SETTINGS.model_copy(update={"min_workers": n_workers, "leaf_steps": 10})

    def drive(transport: FlowerTransport, context: Context) -> None:
        clock = RunClock(0.0, transport.arrived)
        ended.append(
            run_campaign(
                ledger,
                transport,
                clock,
                run="run",
                settings=settings,
                base=FACTS,
                numerics=TorchNumerics(),
                poll_s=0.02,
            )
        )

    return drive


def test_the_apps_run_a_campaign_over_flowers_in_memory_grid() -> None:
    ledger, ended = MemoryLedger(), []
    with in_memory_grid(make_client_app(counting), n_nodes=3) as grid:
        app = make_server_app(driving(ledger, ended, n_workers=3))
        app(grid, Context(grid.run.run_id, 1, {}, RecordDict(), {}))
        nodes = {name_of_node(node) for node in grid.get_node_ids()}
    assert_counted_once(ended[0], ledger)
    events = ledger.events()
    assert {event.worker for event in events if isinstance(event, WorkerJoined)} == nodes
    assert {event.worker for event in events if isinstance(event, UpdateAccepted)} == nodes
    assert not [event for event in events if isinstance(event, UpdateRejected)]


def context(node: dict[str, str | int], run: dict[str, str]) -> Context:
    return Context(1, 7, dict(node), RecordDict(), dict(run))


def test_the_ready_made_apps_say_what_their_config_lacks() -> None:
    assert callable(client_app) and callable(server_app)
    with pytest.raises(SettingError, match="run config: base is missing"):
        handle_from_config(context({}, {}))
    with pytest.raises(SettingError, match="run config: data is missing"):
        handle_from_config(context({}, {"base": "b"}))
    with pytest.raises(DataError, match="partition 2 has none among the run's 2"):
        handle_from_config(context({"partition-id": 2}, {"base": "b", "data": "x,y"}))


def test_the_ready_made_apps_train_a_real_base(tmp_path: Path) -> None:
    data, settings = tmp_path / "data.jsonl", tmp_path / "run.toml"
    data.write_text("".join(f'{{"text": "text {n} {"lorem ipsum " * 20}{n}"}}\n' for n in range(8)))
    settings.write_text(
        "name = 'stock'\ndepth = 1\nrank = 2\nleaf_steps = 2\nunit_steps = 2\nbatch_windows = 1\nmin_sequences = 1\n"
        f"window_tokens = {WINDOW_TOKENS}\n"
    )
    config = {
        "base": str(tiny_base_dir()),
        "out": str(tmp_path / "out"),
        "settings": str(settings),
        "data": str(data),
    }
    with in_memory_grid(client_app, n_nodes=1, run_config=config) as grid:
        server_app(grid, Context(grid.run.run_id, 1, {}, RecordDict(), dict(config)))
    made = read_bundle(tmp_path / "out" / BUNDLE_FILE)
    assert made.run == "stock" and sorted(made.nodes) == ["0", "1"]


@pytest.mark.slow
def test_the_apps_run_under_flowers_simulation_engine(tmp_path: Path) -> None:
    """Needs the extra `sim` (Ray)."""
    result = subprocess.run(
        [sys.executable, "-m", "tests.flower.under_simulation"],
        cwd=Path(__file__).parents[2],
        env=os.environ | {"FLWR_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
        timeout=110,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    assert "every leaf has had its steps" in result.stdout
