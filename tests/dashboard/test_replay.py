"""Replay: at every moment what a projection shows that was told the same directly; jumps, loops, and the command."""

import itertools
import math
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable

import httpx
import pytest
from tinylora_coordinator.cli import app
from tinylora_coordinator.dashboard import documents as doc
from tinylora_coordinator.dashboard.recording import Happened, Recording, Told, open_recording, write_recording
from tinylora_coordinator.dashboard.replay import EXAMPLE, REST_S, Pace, Player, parse_moment
from tinylora_coordinator.dashboard.source import Views
from tinylora_coordinator.dashboard.views import RunViews

from tests.dashboard.synthetic import Plan, make_run
from tinylora.command_line import exit_code_of
from tinylora.errors import DataError, SettingError

PLAN = Plan(n_leaves=4, n_workers=4, hours=0.35, events_per_s=0.2)
LENGTH_S = 0.35 * 3600


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Noted:
    """A projection that only remembers what it was told."""

    names = itertools.count()

    def __init__(self, run: str, clock: Callable[[], float]) -> None:
        self.run, self.clock = run, clock
        self.name = next(self.names)
        self.rows: list = []
        self.heard: list = []
        self.phase, self.clock_s, self.is_closed = "", math.nan, False
        self.speed = math.nan
        self.wakes: dict[int, Callable[[], None]] = {}

    def take(self, rows, chain=""):
        assert [number for number, _, _ in rows] == list(range(len(self.rows) + 1, len(self.rows) + len(rows) + 1))
        self.rows += rows
        self._wake()

    def hear(self, worker, report, at_s):
        self.heard.append((worker, report, at_s))
        self._wake()

    def _wake(self):
        for wake in self.wakes.values():
            wake()

    def set_phase(self, phase):
        self.phase = phase

    def set_clock(self, clock_s, speed=None):
        self.clock_s = clock_s
        self.speed = self.speed if speed is None else speed

    def close(self):
        self.is_closed = True

    @property
    def position(self):
        return f"{self.name}-{len(self.rows) + len(self.heard)}"

    def state(self):
        run = doc.Run(run=self.run, phase=self.phase, clock_s=self.clock(), n_events=len(self.rows))  # type: ignore[arg-type]
        return doc.State(position=self.position, run=run, nodes=(), workers=(), feed=())

    def patch(self, since):
        if not since.startswith(f"{self.name}-"):
            return None
        return doc.Patch(before=since, position=self.position, run=self.state().run)

    def subscribe(self, wake):
        number = len(self.wakes)
        self.wakes[number] = wake
        return lambda: self.wakes.pop(number)


@pytest.fixture(scope="module")
def recording(tmp_path_factory) -> Recording:
    file = tmp_path_factory.mktemp("recording") / "run.jsonl.gz"
    write_recording(file, "artificial", make_run(PLAN))
    return open_recording(file)


def player_of(recording: Recording, clock: Clock, **options) -> tuple[Player, list[Noted]]:
    made: list[Noted] = []

    def make(run: str, clock: Callable[[], float]) -> Noted:
        made.append(Noted(run, clock))
        return made[-1]

    return Player(recording, make, clock=clock, **options), made  # type: ignore[arg-type]


def play_until(player: Player, clock: Clock, wall_s: float) -> None:
    """As the thread does it, without a thread."""
    while clock.now <= wall_s:
        wait_s = player.step()
        if math.isinf(wait_s):
            break
        clock.now += wait_s
    clock.now = wall_s
    player.step()


def due(recording: Recording, clock_s: float) -> tuple[list, list]:
    items = [item for item in recording.items() if item.at_s <= clock_s]
    rows = [(item.number, item.at_s, item.event) for item in items if isinstance(item, Happened)]
    return rows, [(item.worker, item.report, item.at_s) for item in items if isinstance(item, Told)]


@pytest.mark.parametrize("speed", [1.0, 10.0, 700.0])
@pytest.mark.parametrize("share", [0.0, 0.03, 0.5, 0.999, 2.0])
def test_at_every_moment_it_was_told_what_is_due(recording, speed, share):
    clock = Clock()
    player, (noted,) = player_of(recording, clock, speed=speed)
    wall_s = share * LENGTH_S / speed
    play_until(player, clock, 1000.0 + wall_s)
    clock_s = min(speed * wall_s, recording.end_s)
    assert (noted.rows, noted.heard) == due(recording, clock_s)
    assert noted.clock_s == noted.clock() == pytest.approx(clock_s)


@pytest.mark.parametrize("moment", [0.0, 500.0, LENGTH_S, 1e9])
def test_a_jump_holds_still_there(recording, moment):
    clock = Clock()
    player, (noted,) = player_of(recording, clock, speed=0.0, from_s=moment, is_loop=True)
    while player.step() == 0.0:
        pass
    there = min(moment, recording.end_s)
    assert (noted.rows, noted.heard) == due(recording, there)
    clock.now += 1e6
    assert math.isinf(player.step())
    assert noted.clock() == there
    assert noted.speed == 0


def test_playing_from_a_moment_on(recording):
    clock = Clock()
    player, (noted,) = player_of(recording, clock, speed=10.0, from_s=600.0)
    while player.step() == 0.0:
        pass
    assert (noted.rows, noted.heard) == due(recording, 600.0)
    play_until(player, clock, 1010.0)
    assert (noted.rows, noted.heard) == due(recording, 700.0)


def test_a_loop_begins_anew_and_those_who_follow_stay(recording):
    clock = Clock()
    player, made = player_of(recording, clock, speed=100.0, is_loop=True)
    woken: list[str] = []
    end = player.stage.subscribe(lambda: woken.append(player.stage.position))
    play_until(player, clock, 1000.0 + recording.end_s / 100)
    at_the_end = player.stage.position
    assert player.stage.patch(at_the_end) is not None
    clock.now += REST_S + 0.01
    assert len(made) == 1
    player.step()
    assert len(made) == 2
    assert woken[-1] == player.stage.position
    assert player.stage.patch(at_the_end) is None, "a reader of the turn before has to ask for the state"
    play_until(player, clock, clock.now + recording.end_s / 200)
    assert (made[1].rows, made[1].heard) == due(recording, made[1].clock_s)
    assert not made[0].wakes and not made[0].is_closed, "somebody may be reading it"
    n_woken = len(woken)
    end()
    play_until(player, clock, clock.now + 2)
    assert len(woken) == n_woken
    play_until(player, clock, clock.now + recording.end_s / 100 + REST_S + 1)
    assert len(made) == 3 and made[0].is_closed
    player.close()
    assert all(noted.is_closed for noted in made)


def test_the_phase_follows_the_events(recording):
    clock = Clock()
    player, (noted,) = player_of(recording, clock, speed=1.0)
    seen = []
    for _ in range(5000):
        wait_s = player.step()
        if not seen or seen[-1] != noted.phase:
            seen.append(noted.phase)
        if math.isinf(wait_s):
            break
        clock.now += wait_s
    assert seen == ["waiting", "running", "paused", "running"]


@pytest.mark.parametrize("share", [0.0, 0.1, 0.6, 2.0])
def test_the_page_shows_what_a_run_of_that_moment_shows(recording, share):
    """Played, jumped to, or told in one go: the same state, but for its position."""
    clock, there = Clock(), Clock()
    clock_s = min(share * LENGTH_S, recording.end_s)
    played = Player(recording, projection, speed=20.0, clock=clock)
    play_until(played, clock, 1000.0 + share * LENGTH_S / 20.0)
    jumped = Player(recording, projection, speed=0.0, from_s=clock_s, clock=there)
    while jumped.step() == 0.0:
        pass
    direct = RunViews(None, run="artificial")
    for item in recording.items():
        if item.at_s > clock_s:
            break
        if isinstance(item, Happened):
            direct.take([(item.number, item.at_s, item.event)])
        else:
            direct.hear(item.worker, item.report, item.at_s)
    direct.set_clock(clock_s, 0.0)
    expected = plain(direct)
    assert plain(played.stage) == plain(jumped.stage) == expected
    assert played.stage.state().run.is_replay and played.stage.state().run.replay_speed == 20.0
    for done in (played, jumped, direct):
        done.close()


def projection(run: str, clock: Callable[[], float]) -> RunViews:
    return RunViews(None, run=run, clock=clock)


def plain(views: Views) -> dict:
    state = views.state()
    run = state.run.model_copy(update={"replay_speed": 0.0, "clock_s": round(state.run.clock_s, 3)})
    nodes = [views.node(node.path) for node in state.nodes]
    workers = [views.worker(worker.worker) for worker in state.workers]
    return {"state": state.model_copy(update={"position": "", "run": run}), "nodes": nodes, "workers": workers}


def test_a_file_that_is_changed_meanwhile(tmp_path):
    file = tmp_path / "run.jsonl"
    write_recording(file, "artificial", make_run(PLAN))
    player, _ = player_of(open_recording(file), Clock(), speed=0.0, from_s=math.inf)
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2] + b"!\n" + whole[len(whole) // 2 :])
    player.run(threading.Event())
    assert isinstance(player.error, DataError)


def test_the_clocks_go_together():
    pace = Pace(begun_s=100.0, from_s=60.0, speed=10.0, end_s=160.0)
    assert [pace.clock_s(wall_s) for wall_s in (90.0, 100.0, 105.0, 110.0, 1e9)] == [60, 60, 110, 160, 160]
    assert [pace.wall_s(clock_s) for clock_s in (0.0, 60.0, 110.0)] == [100.0, 100.0, 105.0]
    assert math.isinf(Pace(0.0, 0.0, 0.0, 10.0).wall_s(1.0))


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90s", 90), ("1h30m", 5400), ("1.5h", 5400), ("0", 0), ("0s", 0), ("end", 7), ("2d1s", 172801)],
)
def test_moments(text, seconds):
    assert parse_moment(text, 7.0) == seconds


@pytest.mark.parametrize("text", ["", "h", "1x", "-1h", "1h-2m", "1h 2m", "soon", "1e3s"])
def test_no_moments(text):
    with pytest.raises(SettingError, match=r"moment|span"):
        parse_moment(text, 7.0)


# --- the command ----------------------------------------------------------------------------------------------------


def call(*words: object) -> int:
    return exit_code_of(lambda: app([str(word) for word in words]))


def test_a_page_is_served_until_ctrl_c(recording):
    command = [sys.executable, "-m", "tinylora_coordinator", "replay", recording.file, "--port", "0", "--at", "end"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        try:
            address = next(line.split()[1] for line in process.stderr if line.startswith("dashboard: "))
            with httpx.Client(base_url=address, trust_env=False) as client:
                state = client.get("/api/v1/state").json()
                while state["run"].get("n_events", 0) < recording.n_events:  # what stands at its default is not said
                    state = client.get("/api/v1/state").json()
                assert state["run"]["is_replay"] is True
                assert state["run"]["clock_s"] == pytest.approx(recording.end_s, abs=0.001)
                assert client.get("/").status_code == 200
                foreign = client.get("/api/v1/state", headers={"host": "example.org"})
                assert foreign.status_code == 403, "another name that leads here is refused"
                assert client.get("/api/v1/artifacts").json() == {"bundles": [], "leaves": []}
                refused = client.post("/api/v1/routing/lookup", json={"text": "where to?"})
                assert (refused.status_code, "recording" in refused.json()["reason"]) == (409, True)
                order = client.post("/api/v1/admin/orders", json={"kind": "pause"})
                assert order.status_code in (403, 404, 409)
                assert client.get("/api/v1/join").json()["is_open"] is False
        finally:
            process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0


def test_what_ends_the_command(recording, tmp_path, capsys):
    (tmp_path / "none.jsonl").write_text("hello\n")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert call("replay", recording.file, "--port", port) == 6
    assert call("replay") == 2
    assert call("replay", recording.file, "--example") == 2
    assert call("replay", recording.file, "--from", "soon") == 2
    assert call("replay", tmp_path / "none.jsonl") == 3
    assert call("replay", tmp_path / "missing.jsonl") == 8
    told = capsys.readouterr().err
    assert told.count("error: ") == 6
    assert "none.jsonl, line 1" in told


def test_the_example_is_a_whole_run_with_churn():
    recording = open_recording(EXAMPLE)
    happened = {item.event.type for item in recording.items() if isinstance(item, Happened)}
    assert happened >= {
        "worker_lost",
        "worker_returned",
        "worker_assigned",
        "run_paused",
        "run_resumed",
        "run_finished",
    }
    assert EXAMPLE.stat().st_size <= 200_000
    player, (noted,) = player_of(recording, Clock(), speed=0.0, from_s=recording.end_s)
    while player.step() == 0.0:
        pass
    assert (noted.phase, len(noted.rows), len(noted.heard)) == ("finished", recording.n_events, recording.n_reports)
