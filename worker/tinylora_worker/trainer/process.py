"""The trainer as its agent sees it: started, asked, stopped, and told apart from one that died. No torch here.

agent → trainer    stdin. One line (where to listen, the token), then nothing: its end is the trainer's end, so that
whatever kills the agent leaves no trainer behind
trainer → agent    stdout. One line (where it listens); what it prints for people goes into HOME/logs/trainer.log
both               gRPC, service `Trainer`
"""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, TypeVar

import grpc

from tinylora.errors import NetworkError, StorageError, TinyLoraError
from tinylora.flower.outbox import CHECKPOINT
from tinylora_worker.trainer.checkpoint import EVERY_S
from tinylora_worker.trainer.failures import DEVICE_LOST, error_of
from tinylora_worker.trainer.watching import Patience, ending, hang, oom_kills
from tinylora_worker.wire.endpoint import Address, dial, new_token, private_folder
from tinylora_worker.wire.private_folder import PrivateFolder
from tinylora_worker.wire.worker_pb2 import (
    CanaryEvent,
    CanaryReport,
    CanaryRequest,
    Failure,
    Fit,
    Loaded,
    LoadEvent,
    LoadProgress,
    LoadRequest,
    PingRequest,
    Progress,
    RunEvent,
    RunRequest,
    SizeRequest,
    StopRequest,
)
from tinylora_worker.wire.worker_pb2_grpc import TrainerStub

LOG_FILE = Path("logs", "trainer.log")
_MAX_LOG_BYTES = 2**20
# Without the current folder in its path: a file there that is named like a module of ours is never imported.
COMMAND = ("-P", "-m", "tinylora_worker.trainer")

Event = TypeVar("Event", LoadEvent, RunEvent, CanaryEvent)


class TrainerDied(TinyLoraError):
    """The trainer is gone: it crashed, was killed, hung, or was stopped in the middle of this."""


class TrainerProcess:
    """One trainer's life. When it is over, a new object begins the next one. Methods may be called from any thread.

    Args:
        home: The worker's.
        say: Takes one line for people.
        patience: How long it may say nothing.
        clock: Seconds, for that.
        checkpoint_every_s: Most work that a crash may cost, in seconds.
        command: Arguments of Python that start the child.
        environment: Of the child; this process's own without it.
    """

    def __init__(
        self,
        home: Path,
        say: Callable[[str], None],
        *,
        patience: Patience | None = None,
        clock: Callable[[], float] = time.monotonic,
        checkpoint_every_s: float = EVERY_S,
        command: tuple[str, ...] = COMMAND,
        environment: dict[str, str] | None = None,
    ) -> None:
        self.log_file = home / LOG_FILE
        self._home, self._say, self._clock = home, say, clock
        self._patience = patience or Patience()
        self._every_s, self._command, self._environment = checkpoint_every_s, command, environment
        self._process: subprocess.Popen[bytes] | None = None
        self._folder: PrivateFolder | None = None
        self._channel: grpc.Channel | None = None
        self._trainer: Any = None
        self._unit_folder: Path | None = None
        self._why = ""
        self._is_up, self._is_over = threading.Event(), threading.Event()
        self._spawning = threading.Lock()
        self._first_line = b""
        self._n_oom_kills = 0

    # --- its life ----------------------------------------------------------------------------------------------------

    @property
    def pid(self) -> int:
        """Of the child; 0 before its start."""
        return 0 if self._process is None else self._process.pid

    @property
    def is_alive(self) -> bool:
        """Whether there is a process."""
        return self._process is not None and not self._is_over.is_set()

    def start(self) -> None:
        """The child listens; torch is on its way into it.

        Raises:
            TrainerDied: It did not come up.
            StorageError: Its log cannot be written.
        """
        self._folder = private_folder()
        token = new_token()
        first = {
            "home": str(self._home),
            "folder": None if self._folder is None else str(self._folder.path),
            "token": token,
            "checkpoint_every_s": self._every_s,
        }
        log = self._open_log()
        # The thread stays as long as the child: Linux ends the child when the thread that started it ends.
        keeper = threading.Thread(
            target=self._keep, args=(log, json.dumps(first).encode() + b"\n"), name="trainer keeper", daemon=True
        )
        keeper.start()
        if not self._is_up.wait(self._patience.start_s):
            self._end(f"it did not listen within {self._patience.start_s:g} s of its start")
        try:
            target = json.loads(self._first_line)["target"]
            self._channel = dial(Address(target, token), deadline_s=self._patience.start_s)
        except (ValueError, KeyError, NetworkError):
            raise self._death() from None
        self._trainer = TrainerStub(self._channel)

    def _keep(self, log: IO[bytes], first: bytes) -> None:
        """Start the child, wait for its end, and clean up behind it."""
        self._n_oom_kills = oom_kills()
        try:
            with log, self._spawning:
                if self._why:
                    return
                process = self._process = self._spawn(log)
            assert process.stdin is not None and process.stdout is not None
            with suppress(OSError):  # it has gone already
                process.stdin.write(first)
                process.stdin.flush()
            with process.stdout as out:
                self._first_line = out.readline()
            self._is_up.set()
            process.wait()
            with suppress(OSError):
                process.stdin.close()
        except OSError as error:
            self._why = f"it could not be started: {error}"
        finally:
            if self._folder is not None:
                self._folder.remove()
            self._is_over.set()
            self._is_up.set()

    def _spawn(self, log: IO[bytes]) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, *self._command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            env=self._environment,
            # Ctrl-C in the agent's terminal is not for the child.
            start_new_session=os.name == "posix",
            creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),
        )

    def _open_log(self) -> IO[bytes]:
        try:
            self.log_file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            if self.log_file.exists() and self.log_file.stat().st_size > _MAX_LOG_BYTES:
                self.log_file.replace(self.log_file.with_suffix(".log.1"))
            return os.fdopen(os.open(self.log_file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "ab")
        except OSError as error:
            raise StorageError(f"{self.log_file}: {error.strerror or error}; choose another --home") from None

    def stop(self) -> bool:
        """The process is gone and its device free, with the last finished step on disk if it could be written.

        What others wait for here ends with `TrainerDied`. Returns whether there is a checkpoint of the unit.
        """
        self._why = self._why or "it was stopped"
        if self.is_alive and self._trainer is not None:
            end_s = time.monotonic() + self._patience.stop_s
            with suppress(grpc.RpcError, ValueError):  # it is gone already, and its channel closed
                self._trainer.Stop(StopRequest(), timeout=self._patience.stop_s)
                self._is_over.wait(max(0.0, end_s - time.monotonic()))
        self.kill()
        return self._unit_folder is not None and (self._unit_folder / CHECKPOINT).exists()

    def kill(self) -> None:
        """The process is gone."""
        self._end("it was stopped")

    def close(self) -> None:
        """The process is gone, and nothing is left of it but its log."""
        self.kill()

    def __enter__(self) -> "TrainerProcess":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _end(self, why: str) -> None:
        with self._spawning:
            self._why = self._why or why
        if self._process is not None:
            self._process.kill()
            self._is_over.wait()
        if self._channel is not None:
            self._channel.close()

    def _death(self, error: grpc.RpcError | None = None) -> TrainerDied:
        """How it ended; it ends now if it has not."""
        if not self._is_over.wait(self._patience.stop_s):
            self._end(f"it does not answer as it should ({_details(error)})")
        if self._why or self._process is None:
            return TrainerDied(self._why)
        n_oom_kills = oom_kills() - self._n_oom_kills
        return TrainerDied(ending(self._process.returncode, n_oom_kills=n_oom_kills, log=self.log_file))

    # --- what it is asked for ----------------------------------------------------------------------------------------

    def load(self, request: LoadRequest, on_progress: Callable[[LoadProgress], None] | None = None) -> Loaded:
        """Have it choose a device, load the base and read the text.

        Raises:
            TinyLoraError: As `tinylora.errors` has it for the base, the text or the options.
            TrainerDied: It did not live to see the end of it.
        """
        for event in self._listen(self._asked().Load(request)):
            if event.HasField("progress") and on_progress is not None:
                on_progress(event.progress)
            if event.HasField("loaded"):
                return event.loaded
            self._check(event.failure if event.HasField("failure") else None)
        raise self._death()

    def size(self, settings_json: str, *, again: bool = False) -> Fit:
        """Have it find by real steps what the device can hold, or look up what it found before.

        Raises:
            TinyLoraError: Nothing fits, among others.
            TrainerDied: It did not live to see the end of it.
        """
        call = self._asked().Size.future(SizeRequest(settings_json=settings_json, again=again))
        with self._watched(call):
            try:
                reply = call.result()
            except grpc.RpcError as error:
                raise self._death(error) from None
        self._check(reply.failure if reply.HasField("failure") else None)
        return reply.fit

    def run(self, folder: Path) -> Iterator[RunEvent]:
        """Have it do the unit in this folder; tells what happens, and at last that it is done or why not.

        Raises:
            TrainerDied: It did not live to see the end of it; the unit's checkpoint is there for the next one.
        """
        self._unit_folder = folder
        for event in self._listen(self._asked().Run(RunRequest(folder=str(folder))), has_steps=True):
            if event.HasField("failure") and event.failure.kind == DEVICE_LOST:
                self._end(f"its device failed: {event.failure.message}")
                raise self._death()
            yield event

    def canary(self, request: CanaryRequest, on_progress: Callable[[Progress], None] | None = None) -> CanaryReport:
        """Have it measure how much of planted text the training would give away.

        Raises:
            TinyLoraError: It cannot be done here; the sentence says why.
            TrainerDied: It did not live to see the end of it.
        """
        for event in self._listen(self._asked().Canary(request)):
            if event.HasField("progress") and on_progress is not None:
                on_progress(event.progress)
            if event.HasField("report"):
                return event.report
            self._check(event.failure if event.HasField("failure") else None)
        raise self._death()

    def _asked(self) -> Any:
        if self._trainer is None or not self.is_alive:
            raise self._death() if self._process is not None else TrainerDied("it was not started")
        return self._trainer

    def _check(self, failure: Failure | None) -> None:
        if failure is None:
            return
        if failure.kind == DEVICE_LOST:
            self._end(f"its device failed: {failure.message}")
            raise self._death()
        raise error_of(failure)

    def _listen(self, call: Any, *, has_steps: bool = False) -> Iterator[Any]:
        """Events of a job, until its end or the trainer's."""
        with self._watched(call, has_steps=has_steps) as heard:
            try:
                for event in call:
                    heard()
                    yield event
            except grpc.RpcError as error:
                raise self._death(error) from None

    @contextmanager
    def _watched(self, call: Any, *, has_steps: bool = False) -> Iterator[Callable[[], None]]:
        """Within it the trainer is ended should it hang; yields what is to be called at every event."""
        over = threading.Event()
        last = {"event": self._clock(), "answer": self._clock()}

        def watch() -> None:
            while not over.wait(self._patience.silent_s / 4):
                if self._answers():
                    last["answer"] = self._clock()
                now_s = self._clock()
                why = hang(
                    self._patience, now_s=now_s, event_s=last["event"], answer_s=last["answer"], has_steps=has_steps
                )
                if why and not over.is_set():
                    self._say(f"the trainer is ended: {why}")
                    self._end(why)
                    return

        watcher = threading.Thread(target=watch, name="trainer watch", daemon=True)
        watcher.start()
        try:
            yield lambda: last.update(event=self._clock())
        finally:
            over.set()
            call.cancel()

    def _answers(self) -> bool:
        try:
            self._trainer.Ping(PingRequest(), timeout=self._patience.silent_s / 4)
        except (grpc.RpcError, ValueError):
            return False
        return True


def _details(error: grpc.RpcError | None) -> str:
    return "no word came" if error is None else str(getattr(error, "details", lambda: error)() or error)
