"""A federation on hosts of its own: everybody behind NAT, one port open, lines that break and come back elsewhere."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TypeVar

import pytest
from tinylora_worker.agent import client

from tests.deploy.networks import STRANGE, Host, Internet, Router
from tests.flower.helpers import until
from tinylora.demo.experiment import BASE_DIR, gather, write_shard
from tinylora.errors import NetworkError, StorageError
from tinylora.federation.campaign import fold
from tinylora.federation.events import (
    Event,
    LeaseExpired,
    NodeAveraged,
    UnitLeased,
    UpdateAccepted,
    UpdateRejected,
    WorkerJoined,
    WorkerLost,
    WorkerReturned,
)
from tinylora.ledger.sqlite import SqliteLedger
from tinylora.protocol.standstill import Reason

pytestmark = [pytest.mark.deploy, pytest.mark.timeout(1500)]

ROOT = Path(__file__).parents[2]
SERVER, PORT = "203.0.113.10", 8443
URL = f"https://{SERVER}:{PORT}"
SETTINGS = {
    "depth": 1, "rank": 4, "leaf_steps": 36, "unit_steps": 12, "batch_windows": 8, "window_tokens": 256,
    "min_workers": 4, "start_after_s": 600, "min_sequences": 20, "probe_windows": 2,
    "first_deadline_s": 600, "deadline_slack": 50,
}  # fmt: skip
"""A unit takes some seconds on idle cores, too: long enough to be in the middle of it."""
LOST_PACKETS = 0.01
PATIENCE_S = 600.0
"""For what takes minutes on a busy machine; whatever is waited for is an event and ends the wait."""
AnyEvent = TypeVar("AnyEvent", bound=Event)


# --- the network itself ----------------------------------------------------------------------------------------------


def test_nobody_outside_can_call_a_host_behind_a_router_and_it_reaches_one_port_alone() -> None:
    with Internet() as internet:
        server, stranger = internet.host("srv", SERVER), internet.host("far", "203.0.113.66")
        router = internet.router("rtr", "198.51.100.11")
        home = internet.at_home("home", router)
        router.forward_only(SERVER, PORT)
        for host, port in ((server, PORT), (server, 9000), (stranger, PORT), (home, 9000)):
            _listen(internet, host, port)
        until(lambda: router.can_call(home.address, 9000), what="a listener at home")
        until(lambda: stranger.can_call(SERVER, PORT), what="a listener on the server")
        assert home.can_call(SERVER, PORT)
        assert router.counted("FORWARD", STRANGE) == 0
        assert not home.can_call(SERVER, 9000) and not home.can_call(stranger.address, PORT)
        assert router.counted("FORWARD", STRANGE) > 0
        for caller in (server, stranger):
            assert not caller.can_call(home.address, 9000)
            assert not caller.can_call(router.address, 9000)
        router.unplug()
        assert not home.can_call(SERVER, PORT)
        router.plug("198.51.100.99")
        assert home.can_call(SERVER, PORT)


def _listen(internet: Internet, host: Host, port: int) -> None:
    words = ["python3", "-m", "http.server", str(port), "--directory", "/var/empty"]
    internet.start(host, Path(os.devnull), words, dict(os.environ))


# --- the federation --------------------------------------------------------------------------------------------------


@dataclass
class Story:
    """A run on this internet, and what was seen of it."""

    folder: Path
    internet: Internet
    server: Host
    coordinator: "subprocess.Popen[bytes] | None" = None
    workers: "dict[str, subprocess.Popen[bytes]]" = field(default_factory=dict)
    at_s: dict[str, float] = field(default_factory=dict)
    """Moments by what happened, on this process's clock."""
    packets: dict[str, int] = field(default_factory=dict)

    @property
    def run(self) -> Path:
        """The run's folder."""
        return self.folder / "run"

    def events(self) -> list[Event]:
        """What the ledger holds now."""
        with suppress(StorageError), SqliteLedger.open_readonly(self.run) as ledger:
            return list(ledger.events())
        return []

    def of(self, kind: type[AnyEvent], worker: str = "") -> list[AnyEvent]:
        """Events of one kind; of one worker, where a name is given and the event names one."""
        found = [event for event in self.events() if isinstance(event, kind)]
        return [event for event in found if not worker or getattr(event, "worker", "") == self.key_of(worker)]

    def key_of(self, name: str) -> str:
        """The identity of the worker with this name."""
        return next(
            (event.worker for event in self.events() if isinstance(event, WorkerJoined) and event.name == name), ""
        )

    def status(self, name: str) -> tuple[str, str, str]:
        """State, reason and unit of a worker, as its owner sees it."""
        try:
            status = client.status(self.home(name))
        except NetworkError:
            return "", "", ""
        return status.state, status.reason, status.unit_id

    def home(self, name: str) -> Path:
        """Where a worker's identity is kept."""
        return self.folder / f"home-{name}"

    def said(self, name: str) -> str:
        """All that a process said."""
        return (self.folder / f"{name}.log").read_text(errors="replace")

    def wait(self, condition: Callable[[], object], what: str) -> None:
        """Wait for something that a host does; nobody may die meanwhile."""

        def holds() -> bool:
            if condition():
                return True
            for name, process in {"coordinator": self.coordinator, **self.workers}.items():
                assert process is None or process.poll() in (None, 0), f"{name} ended: {self.said(name)[-2000:]}"
            time.sleep(0.05)
            return False

        until(holds, timeout_s=PATIENCE_S, what=what)

    def note(self, what: str) -> None:
        """Remember the moment."""
        self.at_s[what] = time.monotonic()


def plain_environment() -> dict[str, str]:
    """What a person's shell has; nothing that keeps a program from calling somebody."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG", "PYTHONPATH") if name in os.environ}
    return kept | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}


def operate(story: Story, *words: str | Path) -> str:
    """A command of the operator's, on the coordinator's host; returns what it prints."""
    command = story.server.inside(sys.executable, "-m", "tinylora_coordinator", *words)
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=200, env=plain_environment(), cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def serve(story: Story) -> None:
    """Make the run and serve it, behind a firewall that lets one port in and nothing out."""
    settings = [part for key, value in SETTINGS.items() for part in ("--set", f"{key}={value}")]
    operate(story, "init", story.run, "--base", BASE_DIR, "--host", SERVER, *settings)
    for chain, rules in {
        "INPUT": (
            ("-i", "lo", "-j", "ACCEPT"),
            ("-p", "icmp", "--icmp-type", "destination-unreachable", "-j", "ACCEPT"),
            ("-p", "tcp", "--dport", str(PORT), "-m", "comment", "--comment", "public", "-j", "ACCEPT"),
        ),
        "OUTPUT": (
            ("-o", "lo", "-j", "ACCEPT"),
            ("-p", "tcp", "--sport", str(PORT), "!", "--syn", "-j", "ACCEPT"),
        ),
    }.items():
        for rule in (*rules, ("-m", "comment", "--comment", STRANGE, "-j", "DROP")):
            story.server.iptables("-A", chain, *rule)
    words = [sys.executable, "-m", "tinylora_coordinator", "serve", story.run, "--host", "0.0.0.0", "--port", str(PORT)]
    story.coordinator = story.internet.start(story.server, story.folder / "coordinator.log", words, plain_environment())
    is_up = story.server.inside(sys.executable, "-m", "tinylora_coordinator", "health", story.run, "--timeout", "20")
    story.wait(lambda: subprocess.run(is_up, capture_output=True, check=False, cwd=ROOT).returncode == 0, "an answer")


def join(story: Story, host: Host, name: str, text: Path) -> None:
    """What a volunteer does on a machine of his own, with the token in a file."""
    token = story.folder / f"{name}.token"
    operate(story, "token", "create", story.run, "--out", token)
    words = [sys.executable, "-m", "tinylora_worker", "join", URL, "--token-file", token, "--yes", "--name", name]
    words += ["--data", text, "--base", BASE_DIR, "--home", story.home(name)]
    words += [word for kind in ("secrets", "emails", "phones") for word in ("--allow", kind)]
    story.workers[name] = story.internet.start(host, story.folder / f"{name}.log", words, plain_environment())


def is_training(story: Story, name: str) -> str:
    """The train unit that a worker is in the middle of, or nothing."""
    _, _, unit_id = story.status(name)
    trained = {event.unit_id for event in story.of(UnitLeased, name) if event.kind == "train"}
    return unit_id if unit_id in trained else ""


def is_unreachable(story: Story, name: str) -> bool:
    """Whether the worker says that it reaches nobody."""
    return story.status(name)[1] == Reason.COORDINATOR_UNREACHABLE


NAMES = ("ada", "ben", "cyd", "dan")
"""Ada loses her line until she is missed, and her lease; Ben for a moment; Cyd and Dan live behind one router."""


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Story]:
    """The whole run, told once."""
    folder = tmp_path_factory.mktemp("networks")
    texts = [write_shard(worker, folder / "text") for worker in gather(len(NAMES), 1).workers]
    with Internet() as internet:
        server = internet.host("srv", SERVER)
        routers = {name: internet.router(f"r{name}", f"198.51.100.{11 + i}") for i, name in enumerate(NAMES[:3])}
        routers["dan"] = routers["cyd"]
        hosts = {name: internet.at_home(name, routers[name]) for name in NAMES}
        for router in {id(router): router for router in routers.values()}.values():
            router.forward_only(SERVER, PORT)
            router.lose(LOST_PACKETS)
        story = Story(folder, internet, server)
        serve(story)
        for name, text in zip(NAMES, texts, strict=True):
            join(story, hosts[name], name, text)
        tell_it(story, routers)
        story.packets = {
            "strange at the coordinator": server.counted("INPUT", STRANGE) + server.counted("OUTPUT", STRANGE),
            "to the public port": server.counted("INPUT", "public"),
        } | {f"strange from {name}": router.counted("FORWARD", STRANGE) for name, router in routers.items()}
        print({name: round(at_s - story.at_s["first unit"], 1) for name, at_s in story.at_s.items()}, story.packets)
        yield story


def tell_it(story: Story, routers: dict[str, Router]) -> None:
    """Cut Ada and Ben off in the middle of their first unit; give Ada another address; wait for the end."""
    units: dict[str, str] = {}
    for name in ("ada", "ben"):
        story.wait(partial(is_training, story, name), f"a unit of {name}")
        units[name] = is_training(story, name)
        story.note("first unit" if name == "ada" else "second unit")
        routers[name].unplug()
    story.wait(partial(is_unreachable, story, "ben"), "that Ben notices")
    routers["ben"].plug()
    story.note("ben is back")
    story.wait(lambda: units["ben"] in {e.unit_id for e in story.of(UpdateAccepted)}, "Ben's update")
    story.note("ben's update")
    story.wait(lambda: units["ada"] in {e.unit_id for e in story.of(LeaseExpired)}, "the end of Ada's lease")
    story.note("ada's lease ran out")
    operate(story, "pause", story.run)
    story.wait(lambda: story.of(WorkerLost, "ada"), "that Ada is missed")
    story.note("ada is lost")
    routers["ada"].plug("198.51.100.77")
    story.note("ada's line is back")
    story.wait(lambda: story.of(WorkerReturned, "ada"), "Ada's return")
    story.note("ada is back")
    judged = (UpdateAccepted, UpdateRejected)
    story.wait(lambda: units["ada"] in {e.unit_id for e in story.events() if isinstance(e, judged)}, "a word on it")
    story.note("ada's update was judged")
    operate(story, "resume", story.run)
    for name, process in {"coordinator": story.coordinator, **story.workers}.items():
        story.wait(lambda process=process: process is None or process.poll() == 0, f"the end of {name}")
    story.note("the end")


def test_the_run_is_finished_and_its_bundle_verifies(story: Story) -> None:
    campaign = fold(story.events())
    assert campaign is not None and campaign.finished == "every leaf has had its steps"
    program = [sys.executable, "-m", "tinylora.cli", "verify", str(story.run / "bundle.safetensors")]
    assert subprocess.run(program, capture_output=True, check=False, cwd=ROOT).returncode == 0
    contributors = {event.worker for event in story.of(UpdateAccepted) if event.kind == "train"}
    assert contributors >= {story.key_of(name) for name in ("ben", "cyd", "dan")}


def test_nothing_is_counted_twice(story: Story) -> None:
    operate(story, "verify-log", story.run)
    accepted = [event.unit_id for event in story.of(UpdateAccepted)]
    assert len(accepted) == len(set(accepted))
    averaged = [(event.node, event.version) for event in story.of(NodeAveraged)]
    assert len(averaged) == len(set(averaged))
    campaign = fold(story.events())
    assert campaign is not None
    assert all(node.steps == campaign.budget(top) for top, node in campaign.nodes.items())


def test_a_short_cut_costs_nothing(story: Story) -> None:
    assert not {e.unit_id for e in story.of(LeaseExpired)} & {e.unit_id for e in story.of(UnitLeased, "ben")}
    assert not story.of(WorkerLost, "ben")


def test_a_long_cut_ends_by_itself_behind_another_address(story: Story) -> None:
    assert [event.worker for event in story.of(WorkerJoined)].count(story.key_of("ada")) == 1
    later = [event for event in story.of(UpdateAccepted, "ada") if event.at_s > story.of(WorkerReturned, "ada")[0].at_s]
    assert later, "Ada did nothing after her return"


def test_the_late_update_is_treated_by_the_rule(story: Story) -> None:
    """While its node has not moved on and nothing took its place, it counts; otherwise its lease is closed."""
    events, ada = story.events(), story.key_of("ada")
    expired = {event.unit_id for event in events if isinstance(event, LeaseExpired)}
    lease = next(e for e in events if isinstance(e, UnitLeased) and e.worker == ada and e.unit_id in expired)
    index, verdict = next(
        (i, e) for i, e in enumerate(events)
        if isinstance(e, (UpdateAccepted, UpdateRejected)) and e.unit_id == lease.unit_id
    )  # fmt: skip
    between = events[events.index(lease) + 1 : index]
    has_moved_on = any(isinstance(e, NodeAveraged) and e.node == lease.node for e in between)
    has_successor = any(isinstance(e, UnitLeased) and e.worker == ada for e in between)
    if has_moved_on or has_successor:
        assert isinstance(verdict, UpdateRejected) and verdict.code == "lease_closed"
    else:
        assert isinstance(verdict, UpdateAccepted)


def test_one_port_is_all_that_a_federation_needs(story: Story) -> None:
    strange = {name: n for name, n in story.packets.items() if name.startswith("strange")}
    assert not any(strange.values()), strange
    assert story.packets["to the public port"] > 0


def test_workers_come_back_within_a_third_of_their_absence(story: Story) -> None:
    away_s = story.at_s["ada's line is back"] - story.at_s["first unit"]
    took_s = story.at_s["ada is back"] - story.at_s["ada's line is back"]
    print(f"away for {away_s:.0f} s, back {took_s:.1f} s after the line")
    assert took_s <= away_s / 3 + 20.0
