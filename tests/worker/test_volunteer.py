"""The way in: checks, estimate, consent, work; with a real door over TLS, and a trainer and an agent made up."""

import io
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from tinylora_worker import cli, volunteer
from tinylora_worker.agent.keeper import Prepared
from tinylora_worker.agent.options import Options
from tinylora_worker.limits import Limits
from tinylora_worker.preflight import door
from tinylora_worker.preflight.check import parse_skips
from tinylora_worker.preflight.facts import Line
from tinylora_worker.talk import Talk
from tinylora_worker.volunteer import Manner, NotFit, Way
from tinylora_worker.wire.worker_pb2 import CanaryReport, Fit, Loaded

from tests.federation.facts import SETTINGS
from tests.helpers import tiny_base_dir
from tests.worker.front import Served, served
from tinylora.command_line import exit_code_of
from tinylora.errors import BaseModelError, DataError, SettingError, TinyLoraError
from tinylora.flower.join_token import parse_token

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of alembic and pathspec, about flwr's use

FIT = Fit(micro_windows=4, peak_bytes=6_100_000_000, free_bytes=5_000_000_000, tokens_per_s=1000.0, watts=170.0)


@dataclass
class MadeUpTrainer:
    """Loads and sizes at once, or raises what it is told to."""

    fit: Fit | TinyLoraError = field(default_factory=lambda: FIT)
    trouble: TinyLoraError | None = None
    said: list[str] = field(default_factory=list)

    def start(self) -> None:
        self.said.append("start")

    def load(self, request: Any) -> Loaded:
        self.said.append(f"load {request.base}")
        if self.trouble is not None:
            raise self.trouble
        return Loaded(n_train_documents=3000, n_heldout_documents=412, n_tokens=900_000, layout="messages")

    def size(self, settings_json: str) -> Fit:
        if isinstance(self.fit, TinyLoraError):
            raise self.fit
        return self.fit

    def canary(self, request: Any) -> CanaryReport:
        self.said.append("canary")
        return CanaryReport(exposures_bits=[2.0, 1.0], most_bits=10.0, n_extracted=0)

    def close(self) -> None:
        self.said.append("close")


@dataclass
class World:
    """A volunteer before his terminal."""

    run: Served
    home: Path
    trainer: MadeUpTrainer
    out: io.StringIO = field(default_factory=io.StringIO)
    worked: list[Prepared | None] = field(default_factory=list)

    def go(self, typed: str | None = None, token: str | None = None, base: str | None = None, **manner: Any) -> int:
        """Join; `typed` is what he types, None where there is no keyboard."""
        shown = self.run.token() if token is None else token
        data = (str(tiny_base_dir()),)
        options = Options(self.run.url, shown, str(tiny_base_dir()) if base is None else base, data, self.home)
        keyboard = None if typed is None else io.StringIO(typed)
        talk = Talk(Console(file=self.out, width=200, highlight=False), keyboard)
        return Way(options, Manner(**manner), talk, Limits()).go()

    @property
    def text(self) -> str:
        return self.out.getvalue()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with served(tmp_path_factory.mktemp("run") / "run") as running:
        yield running


@pytest.fixture
def world(run: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    made = World(run, tmp_path / "home", MadeUpTrainer())

    def work(options: Options, manner: Manner, talk: Talk, prepared: Prepared | None = None) -> int:
        made.worked.append(prepared)
        return 0

    monkeypatch.setattr(volunteer, "make_trainer", lambda home, limits, say: made.trainer)
    monkeypatch.setattr(volunteer, "work", work)
    monkeypatch.setattr(door, "measure", lambda *_, **options: Line(0.042, 88e6, 21e6))  # forty requests fewer
    return made


def test_the_transcript(world: World) -> None:
    assert world.go("\n") == 0 and len(world.worked) == 1
    (prepared,) = world.worked
    assert prepared is not None and prepared.trainer is world.trainer
    assert world.trainer.said == ["start", f"load {tiny_base_dir()}"]  # not closed: it goes on into the work
    for piece in (
        "TinyLoRA worker",
        "verified (sha256 ",
        "42 ms, about 88 / 21 Mbit/s down/up",
        "the token is good; it was not used up",
        '3,412 examples ("messages"), 900,000 tokens, 0 rejected',
        "needs 6.1 GB at most (probed with a real step, 4 × ",
        "about 0.17 kWh/h",
        "topics and frequent words can be inferred",
        "they may reveal passages of it",
        "Never sent",
        "Start? [Y/n]",
    ):
        assert piece in world.text, piece
    order = ["Preflight", "network", "memory", "Your share", "Traffic", "Energy", "Sent", "Never sent", "Start?"]
    assert [world.text.index(word) for word in order] == sorted(world.text.index(word) for word in order)


@pytest.mark.parametrize(
    ("typed", "is_in"), [("\n", True), ("yes\n", True), ("what\nY\n", True), ("n\n", False), ("", False)]
)
def test_consent_is_what_is_typed(world: World, typed: str, is_in: bool) -> None:
    assert world.go(typed) == 0 and bool(world.worked) == is_in
    assert is_in or (world.trainer.said[-1] == "close" and "Nothing was joined" in world.text)


def test_nobody_to_ask_ends_it_and_yes_needs_nobody(world: World) -> None:
    with pytest.raises(SettingError, match="would ask whether to start, and nobody answers; say --yes"):
        world.go(None)
    assert world.worked == [] and "topics and frequent words" in world.text  # it has said what it would ask
    assert world.go(None, is_sure=True) == 0 and len(world.worked) == 1


def test_a_dry_run_joins_nothing_and_uses_nothing_up(world: World) -> None:
    token = world.run.token()
    before = len(world.run.store.workers())
    assert world.go(None, token=token, is_dry=True) == 0 == world.go(None, token=token, is_dry=True)
    assert world.worked == [] and len(world.run.store.workers()) == before and world.trainer.said[-1] == "close"


def test_a_check_that_fails_ends_it_with_its_code_before_the_trainer_does_anything(world: World) -> None:
    token = replace(parse_token(world.run.token()), secret="s" * 32).text
    assert world.go("\n", token=token) == 7 and world.worked == []
    assert "TL-TOK-002" in world.text and "doctor --explain TL-TOK-002" in world.text and "Start?" not in world.text
    assert not any(word.startswith("load") for word in world.trainer.said) and "ssss" not in world.text


@pytest.mark.parametrize(
    ("trouble", "code", "exit_code"),
    [
        (DataError("line 3: no JSON"), "TL-DAT-002", 3),
        (DataError("2 e-mail addresses", rule="findings"), "TL-DAT-004", 3),
        (BaseModelError("another fingerprint"), "TL-BAS-002", 4),
    ],
)
def test_text_and_base_that_will_not_do(world: World, trouble: TinyLoraError, code: str, exit_code: int) -> None:
    world.trainer.trouble = trouble
    with pytest.raises(NotFit) as caught:
        world.go("\n")
    assert caught.value.exit_code == exit_code and code in world.text and world.trainer.said[-1] == "close"


def test_memory_that_does_not_suffice_and_memory_that_nearly_does(world: World) -> None:
    world.trainer.fit = TinyLoraError("nothing fits into 2 GB")
    with pytest.raises(NotFit) as caught:
        world.go("\n")
    assert caught.value.exit_code == 4 and "TL-MEM-001" in world.text
    world.trainer.fit = Fit(micro_windows=1, max_rank=1, max_leaves=1, quantise="nf4", tokens_per_s=5.0)
    assert SETTINGS.rank > 1 and world.go("\n") == 0
    assert f"rank 1 of {SETTINGS.rank} at most" in world.text and "the base in nf4" in world.text


def test_a_base_that_must_be_downloaded_waits_for_consent(
    world: World, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    assert world.go("\n", base="some/where") == 0
    assert world.worked == [None] and world.trainer.said[:2] == [
        "start",
        "close",
    ]  # the agent downloads
    assert "to be downloaded once" in world.text and "once, then" in world.text


def test_an_audit_comes_before_the_first_upload_and_asks_again(world: World) -> None:
    assert world.go("y\nn\n", has_audit=True) == 0
    assert world.worked == [] and "canary" in world.trainer.said and "1.5 bits on average" in world.text
    assert world.go("y\ny\n", has_audit=True) == 0 and len(world.worked) == 1


def test_skipped_checks_are_told_as_skipped(world: World) -> None:
    world.trainer.fit = Fit(micro_windows=1, max_rank=1)
    assert world.go("\n", skip=parse_skips(["memory", "network"])) == 0
    assert world.text.count("you said --skip-check") >= 1 and "TL-MEM" not in world.text


# --- the program, from outside ----------------------------------------------------------------------------------------


def test_the_program_repeats_no_token_whatever_is_wrong(
    run: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    token = run.token()
    words = ["join", run.url, "--base", "no such base", "--home", str(tmp_path / "home"), "--data", str(tmp_path)]
    environment = os.environ | {"TINYLORA_TOKEN": token, "FLWR_LOG_LEVEL": "DEBUG"}
    command = [sys.executable, "-m", "tinylora_worker", *words, "-v"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=60)
    said = done.stdout + done.stderr
    assert done.returncode == 4, said
    monkeypatch.setenv("TINYLORA_TOKEN", token)
    for more in (["--colour"], ["--token", token, "--max-rank", "-1"]):
        assert exit_code_of(lambda more=more: cli.app([*words, *more])) == 2
    captured = capsys.readouterr()
    said += captured.out + captured.err
    assert "TL-BAS-001" in said and "Traceback" not in said
    assert parse_token(token).secret not in said
