"""What is killed: a whole run with scripted workers, a new run's folder, tokens and orders, an old ledger's migration.

The workers of the run are functions of the unit alone and its clock is a logical one, so two runs of the same folder can
differ only in what the coordinator lost or did twice.
"""

from collections.abc import Sequence
from pathlib import Path

from tests.chaos.matrix import Facts, Scenario
from tests.federation.facts import DIM, SETTINGS
from tests.federation.facts import FACTS as OTHER_FACTS
from tests.federation.world import crowd
from tinylora.bundle import write_bundle
from tinylora.config import RunSettings
from tinylora.federation.campaign import Campaign, fold
from tinylora.federation.events import Event, UpdateAccepted
from tinylora.ledger.sqlite import SqliteLedger
from tinylora.release import make_bundle
from tinylora.routing.features import feature_hash
from tinylora.simulate import SimulatedWorker, run_simulated

BUNDLE = "bundle.safetensors"
FACTS = OTHER_FACTS.model_copy(update={"feature_hash": feature_hash(None, DIM, DIM)})
"""A base whose embeddings are its routing feature, so that a bundle of it is complete."""


def run_to_the_end(folder: Path, settings: RunSettings, workers: Sequence[SimulatedWorker]) -> Facts:
    """Begin the run in `folder` or take it up, and drive it to its end; returns what must not depend on kills."""
    with SqliteLedger(folder) as ledger:
        runners = [worker.runner for worker in workers if worker.runner]
        campaign = run_simulated(ledger, settings, workers, FACTS, runners)
        sha256 = write_bundle(make_bundle(campaign, ledger), folder / BUNDLE)
        events = ledger.events()
        assert fold(events) == campaign, "the state is not the fold of the log"
    return {"bundle": sha256, "finished": campaign.finished, "units": _once_each(events), "steps": _steps(campaign)}


def _once_each(events: Sequence[Event]) -> str:
    accepted = [event.unit_id for event in events if isinstance(event, UpdateAccepted)]
    assert len(accepted) == len(set(accepted)), "a unit was accepted twice"
    return str(len(accepted))


def _steps(campaign: Campaign) -> str:
    return " ".join(f"{top or 'root'}:{node.steps}" for top, node in sorted(campaign.nodes.items()))


def _world(**changes: object) -> tuple[RunSettings, list[SimulatedWorker]]:
    settings = RunSettings.model_validate(SETTINGS.model_dump() | {"min_workers": 5, "router_period": 2} | changes)
    return settings, crowd(5, has_histograms=True)


def _run(name: str, **changes: object) -> Scenario:
    settings, workers = _world(**changes)
    return Scenario(name, lambda folder: run_to_the_end(folder, settings, workers))


SCENARIOS = (_run("run"),)
