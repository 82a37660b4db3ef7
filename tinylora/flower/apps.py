"""The same two ends as stock `ServerApp` and `ClientApp`, for Flower's own engines: simulation, `flwr run`.

`make_client_app` and `make_server_app` wrap any handle and any driver. `client_app` and `server_app` are made from them
for a `pyproject.toml` with

    [tool.flwr.app.components]
    serverapp = "tinylora.flower.apps:server_app"
    clientapp = "tinylora.flower.apps:client_app"

    [tool.flwr.app.config]
    base = "path or hub id"          # the frozen base, the same for all
    out = "folder"                   # ledger and bundle.safetensors of the run
    settings = "run.toml"            # as `tinylora-coordinator init` writes it
    data = "a.jsonl,b.jsonl"         # shards by partition, where the node's own config names none as `data`

Flower vouches for its nodes here: updates are not signed, and a worker is called after its node.
"""

import functools
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from tinylora.config import read_settings
from tinylora.errors import DataError, SettingError
from tinylora.federation.loop import run_campaign
from tinylora.flower.clock import RunClock, age_s
from tinylora.flower.grid import GridWire, name_of_node
from tinylora.flower.messages import Handle, answer
from tinylora.flower.transport import FlowerTransport
from tinylora.ledger.sqlite import SqliteLedger

BUNDLE_FILE = "bundle.safetensors"


def make_client_app(handle_for: Callable[[Context], Handle]) -> ClientApp:
    """A ClientApp that does units; `handle_for` should keep what it loads, stock Flower asks at every message."""
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        return answer(message, handle_for(context))

    return app


def make_server_app(drive: Callable[[FlowerTransport, Context], None]) -> ServerApp:
    """A ServerApp that drives a campaign over whatever grid Flower gives it."""
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        with FlowerTransport(GridWire(grid)) as transport:
            drive(transport, context)

    return app


def handle_from_config(context: Context) -> Handle:
    """A unit runner as node and run config say; one for each node, kept as long as the process lives.

    Raises:
        SettingError: The config names no base or no data for this node.
    """
    return _runner(_setting(context, "base"), _data_of(context), name_of_node(context.node_id))


def drive_from_config(transport: FlowerTransport, context: Context) -> None:
    """Run the campaign that the run config describes, and write its bundle."""
    from tinylora.base_model import load_base  # late: only this process of Flower's needs torch
    from tinylora.bundle import write_bundle
    from tinylora.numerics import TorchNumerics
    from tinylora.release import make_bundle

    out, settings = Path(_setting(context, "out")), read_settings(Path(_setting(context, "settings")))
    base = load_base(_setting(context, "base")).for_run(settings)
    with SqliteLedger(out) as ledger:
        clock = RunClock(age_s(ledger.events()), transport.arrived)
        campaign = run_campaign(
            ledger,
            transport,
            clock,
            run=settings.name,
            settings=settings,
            base=base.facts,
            numerics=TorchNumerics(),
        )
        write_bundle(make_bundle(campaign, ledger, projection=base.routing_feature.projection), out / BUNDLE_FILE)


_loading = threading.Lock()


def _runner(base_where: str, data: str, worker: str) -> Handle:
    with _loading:
        return _cached_runner(base_where, data, worker)


@functools.cache
def _cached_runner(base_where: str, data: str, worker: str) -> Handle:
    from tinylora.shards import load_shard
    from tinylora.training import UnitRunner

    base = _cached_base(base_where)
    return UnitRunner(base, load_shard([Path(data)], base), worker=worker).run


@functools.cache
def _cached_base(where: str) -> Any:  # a LoadedBase; naming it would import torch
    from tinylora.base_model import load_base

    return load_base(where)


def _setting(context: Context, name: str) -> str:
    value = context.run_config.get(name)
    if not isinstance(value, str) or not value:
        raise SettingError(f"run config: {name} is missing; set it in [tool.flwr.app.config]")
    return value


def _data_of(context: Context) -> str:
    """The node's own data, or its share of the run's list by partition."""
    own = context.node_config.get("data")
    if isinstance(own, str) and own:
        return own
    shards = _setting(context, "data").split(",")
    partition = context.node_config.get("partition-id")
    if not isinstance(partition, int) or partition >= len(shards):
        raise DataError(
            f"node config: names no data, and partition {partition!r} has none among the run's {len(shards)}"
        )
    return shards[partition]


client_app = make_client_app(handle_from_config)
server_app = make_server_app(drive_from_config)
