"""What is shown of a run is a fold of its events."""

import io

import pytest
from rich.console import Console

from tests.federation.world import crowd, run_world
from tinylora.demo.live import Progress, describe, render
from tinylora.federation.events import (
    GatesSolved,
    LeaseExpired,
    NodeAveraged,
    TopologySet,
    UnitLeased,
    UpdateAccepted,
    WorkerJoined,
)

HASH = "0" * 64


def leased(unit: str, worker: str, node: str, *, is_adopted: bool = False) -> UnitLeased:
    return UnitLeased(
        unit_id=unit,
        worker=worker,
        kind="train",
        node=node,
        nonce="n",
        topology_version=1,
        router_version=1,
        node_version=0,
        n_steps=5,
        is_adopted=is_adopted,
        at_s=0.0,
        deadline_s=9.0,
    )


def accepted(unit: str, worker: str, node: str) -> UpdateAccepted:
    return UpdateAccepted(
        unit_id=unit,
        worker=worker,
        kind="train",
        node=node,
        node_version=0,
        router_version=1,
        shard_version=HASH,
        shard_tokens=9,
        tokens=640,
        n_steps=5,
        seconds=1.0,
        base_loads=1,
        losses=(3.0, 2.5),
        blob=HASH,
        bytes_received=10,
        at_s=1.0,
    )


EVENTS = (
    WorkerJoined(worker="w1", name="ada"),
    WorkerJoined(worker="w2", name="bob"),
    TopologySet(version=1, leaves=("0", "10", "11"), assignment={"w1": "0", "w2": "1"}),
    GatesSolved(version=1, contributors=("w1", "w2"), drift=1.0, blob=HASH),
    leased("u1", "w1", "0"),
    leased("u2", "w2", "1"),
    accepted("u1", "w1", "0"),
    NodeAveraged(node="0", version=1, contributors=("w1",), blob=HASH, n_steps=5),
    LeaseExpired(unit_id="u2", reason="the deadline passed"),
    leased("u3", "w1", "10", is_adopted=True),
)


def shown(progress: Progress) -> str:
    console = Console(width=160, record=True, file=io.StringIO())
    console.print(render(progress, elapsed_s=10.0, training_s=5.0))
    return console.export_text()


def test_the_picture_names_who_does_what():
    progress = Progress(leaf_steps=10)
    progress.apply(EVENTS)
    assert progress.share_done == 0.25 and progress.tokens == 640
    text = shown(progress)
    assert "leaf 0" in text and "subtree 1" in text
    assert "ada (adopts 10)" in text and "bob (silent)" in text
    assert "5/10 steps" in text and "loss 2.500" in text and "1 expired" in text and "ETA 15 s" in text


def test_the_picture_can_be_drawn_after_every_event():
    progress = Progress(leaf_steps=10)
    for event in EVENTS:
        progress.apply([event])
        assert shown(progress)


def test_events_worth_a_line_get_one():
    progress = Progress(leaf_steps=10)
    lines = []
    for event in EVENTS:
        progress.apply([event])
        lines += describe(event, progress)
    assert lines[0] == "tree: leaves 0, 10, 11; ada 0, bob 1"
    assert "ada trained 0: +5 steps on 0, loss 2.500" in lines and "lease u2 expired: the deadline passed" in lines


@pytest.mark.parametrize("path_training", ["cascade", "joint"])
def test_a_path_is_drawn_as_its_leaves_and_ends_full(path_training):
    _, events, _ = run_world(crowd(2), depth=1, where="path", path_training=path_training)
    progress = Progress()
    shares = []
    for event in events:
        progress.apply([event])
        shares.append(progress.share_done)
    assert shares == sorted(shares) and shares[-1] == 1.0
    assert set(progress.nodes) == {"0", "1"}
    text = shown(progress)
    assert "leaf 0" in text and "leaf 1" in text and "20/20 steps" in text
