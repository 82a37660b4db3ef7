"""The stock apps under `flwr.simulation.run_simulation`; needs Ray. `python -m tests.flower.under_simulation`."""

from flwr.simulation import run_simulation

from tests.flower.counting import assert_counted_once
from tests.flower.test_apps import counting, driving
from tinylora.federation.campaign import Campaign
from tinylora.federation.ledger_memory import MemoryLedger
from tinylora.flower.apps import make_client_app, make_server_app

ledger, ended = MemoryLedger(), list[Campaign]()
run_simulation(
    server_app=make_server_app(driving(ledger, ended, n_workers=2)),
    client_app=make_client_app(counting),
    num_supernodes=2,
    backend_config={"client_resources": {"num_cpus": 1, "num_gpus": 0.0}},
)
assert_counted_once(ended[0], ledger)
print(ended[0].finished)
