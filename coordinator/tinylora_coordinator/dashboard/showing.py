"""A recorded run as a page on this machine: the player, the app, a loopback listener, until Ctrl-C."""

import signal
import threading
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from starlette.types import ASGIApp, Receive, Scope, Send

from tinylora_coordinator.dashboard.app import close_streams, create_app
from tinylora_coordinator.dashboard.recording import Recording, open_recording
from tinylora_coordinator.dashboard.replay import Player, parse_moment, services_of
from tinylora_coordinator.dashboard.views import RunViews
from tinylora_coordinator.front_door.serving import serve_internal
from tinylora_coordinator.listening import listen

HOST = "127.0.0.1"
_LOOK_EVERY_S = 0.5


def show(
    file: Path, *, speed: float, begin: str, hold_at: str, is_loop: bool, port: int, say: Callable[[str], None]
) -> None:
    """Serve a recording until a signal.

    Args:
        file: The recording.
        speed: Seconds of the run in one of the wall's.
        begin: Moment of the run to begin at.
        hold_at: Moment to jump to, and to hold still at; empty: play.
        is_loop: Begin anew when it is through.
        port: On the loopback address; 0 takes a free one.
        say: Told where the page is.

    Raises:
        DataError: The file is no recording.
        NetworkError: The port cannot be opened.
        SettingError: A moment is none.
        StorageError: The file cannot be read.
    """
    recording = open_recording(file)
    from_s = parse_moment(hold_at or begin, recording.end_s)
    pace = 0.0 if hold_at else speed
    player = Player(recording, _projection, speed=pace, from_s=from_s, is_loop=is_loop)
    stop = threading.Event()
    feeder = threading.Thread(target=player.run, args=(stop,), name="replay", daemon=True)
    with ExitStack() as held:
        held.callback(player.close)
        app = create_app(services_of(player.stage, player.start))
        served = held.enter_context(serve_internal(_Local(app), listen(HOST, port)))
        held.callback(close_streams, app)
        held.callback(feeder.join, 5.0)
        held.callback(stop.set)
        feeder.start()
        say(f"dashboard: http://{served.host_port}/")
        say(_told(recording, pace, from_s))
        _wait(player, stop)


def _projection(run: str, clock: Callable[[], float]) -> RunViews:
    return RunViews(None, run=run, clock=clock)


def _told(recording: Recording, speed: float, from_s: float) -> str:
    length = f"{recording.end_s / 3600:.1f} h" if recording.end_s >= 5400 else f"{recording.end_s / 60:.0f} min"
    how = f"{speed:g} times as fast as it was" if speed else f"held still at {from_s:.0f} s"
    return f"run {recording.run}, {length}, {recording.n_events} events, {how}; Ctrl-C ends this"


def _wait(player: Player, stop: threading.Event) -> None:
    """Until a signal, or until the file turns out to be no recording any more."""
    before = signal.signal(signal.SIGTERM, lambda *_: stop.set())
    try:
        while not stop.wait(_LOOK_EVERY_S):
            if player.error is not None:
                raise player.error
    except KeyboardInterrupt:
        return
    finally:
        signal.signal(signal.SIGTERM, before)


class _Local:
    """Says of each request that it came by a loopback listener: so a foreign name that leads here is refused."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            state: dict[str, Any] = {**scope.get("state", {}), "is_local": True}
            scope = {**scope, "state": state}
        await self._app(scope, receive, send)
