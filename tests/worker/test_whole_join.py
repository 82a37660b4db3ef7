"""One pasted line in a terminal, against a run that is served over TLS: from the command to the work, and out."""

import json
import os
import re
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from tests.coordinator.running import free_port
from tests.flower.helpers import until
from tests.worker.terminal import in_terminal, read_until
from tinylora.demo.experiment import BASE_DIR
from tinylora.errors import NetworkError
from tinylora.flower.enrolment import ask_state
from tinylora.flower.reach import Address, Trust

SETTINGS = {"depth": 1, "leaf_steps": 4000, "unit_steps": 1000, "window_tokens": 128, "min_sequences": 20}


def coordinator(*words: object) -> str:
    """A command of the operator's; returns what it prints."""
    command = [sys.executable, "-m", "tinylora_coordinator", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=100).stdout


@contextmanager
def serving(root: Path) -> Iterator[str]:
    """The run, served over TLS on loopback; yields its address."""
    settings = [part for key, value in SETTINGS.items() for part in ("--set", f"{key}={value}")]
    coordinator("init", root, "--base", BASE_DIR, "--host", "127.0.0.1", *settings)
    port = free_port()
    command = [sys.executable, "-m", "tinylora_coordinator", "serve", str(root), "--port", str(port)]
    with open(root.parent / "said", "wb") as said, subprocess.Popen(command, stderr=said) as process:
        try:
            until(lambda: answers(root, port), timeout_s=100.0, what="the coordinator")
            yield f"https://127.0.0.1:{port}"
        finally:
            process.terminate()


def answers(root: Path, port: int) -> bool:
    ca = (root / "keys" / "ca.pem").read_bytes() if (root / "keys" / "ca.pem").exists() else b""
    try:
        return bool(ask_state(Address(f"127.0.0.1:{port}", is_plain=False), trust=Trust("", ca), timeout_s=2.0))
    except NetworkError:
        return False


def family(pid: int) -> list[psutil.Process]:
    """A process and its children, the trainer among them."""
    parent = psutil.Process(pid)
    return [parent, *parent.children(recursive=True)]


@pytest.mark.slow
def test_one_pasted_line_joins_and_q_leaves(tmp_path: Path) -> None:
    root, cache, home = tmp_path / "run", tmp_path / "hub", tmp_path / "a home, über"
    cache.mkdir()
    (cache / BASE_DIR.name).symlink_to(BASE_DIR)
    text = tmp_path / "notes.txt"
    text.write_text("\n\n".join(f"Note {n}: the {n % 7} of {n % 11} is {n * n}." for n in range(4000)))
    with serving(root) as url:
        (tmp_path / "token").write_text(json.loads(coordinator("token", "create", root, "--json"))["token"])
        line = ["-m", "tinylora_worker", "join", url, "--token-file", str(tmp_path / "token"), "--data", str(text)]
        begun = time.monotonic()
        with in_terminal(*line, "--home", str(home), environment={"HF_HUB_CACHE": str(cache)}) as (child, ours, its):
            before = termios.tcgetattr(its)
            shown = read_until(ours, lambda shown: b"Start? [Y/n]" in shown, timeout_s=100.0)
            asked_s = time.monotonic() - begun

            os.write(ours, b"\n")
            shown += read_until(ours, lambda shown: b"tok/s" in shown, timeout_s=100.0)
            spent = [process.cpu_times() for process in family(child.pid)]
            cpu_s = sum(times.user + times.system for times in spent)
            step_s = time.monotonic() - begun
            print(f"asked after {asked_s:.1f} s, first optimiser step after {step_s:.1f} s; {cpu_s:.1f} s of CPU")
            os.write(ours, b"q")
            shown += read_until(ours, lambda _: child.poll() is not None, timeout_s=60.0)
            assert child.returncode == 0 and termios.tcgetattr(its) == before
    told = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", shown.decode())
    assert all(f"✔ {name}" in told for name in ("home", "tls", "protocol", "token", "base", "data"))
    secret = (tmp_path / "token").read_text().rpartition(".")[2]
    assert secret not in told and not any(
        secret in file.read_text(errors="replace") for file in home.rglob("*") if file.is_file()
    )
