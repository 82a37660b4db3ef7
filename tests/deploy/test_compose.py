"""deploy/compose.yaml, run without an engine: up, down, up again on the same volumes, to the finished bundle."""

import json
import os
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from tinylora_coordinator.keys import KeyFolder, make_keys

from tests.deploy.little_engine import Project
from tests.flower.helpers import until

pytestmark = pytest.mark.deploy
WORKERS = ("worker-1", "worker-2")
ALL = ("coordinator", *WORKERS)
RUN = "/var/lib/tinylora"


def status(project: Project) -> dict[str, Any]:
    """What the operator would be told."""
    told = project.run_in("coordinator", "tinylora-coordinator", "status", RUN, "--json")
    return json.loads(told.stdout) if told.returncode == 0 else {"phase": told.stderr, "steps": {}}


def trained(project: Project) -> int:
    return sum(status(project)["steps"].values())


def wait_until_trained(project: Project, *, timeout_s: float = 600.0) -> None:
    """Until an update was accepted; each question is a program of its own, so there are few."""
    end = time.monotonic() + timeout_s
    while not trained(project):
        assert time.monotonic() < end, project.services["coordinator"].last_words
        time.sleep(3.0)


def finish(project: Project) -> Path:
    """Wait for the end of everything; returns the bundle, which is what it says."""
    assert {name: project.wait(name, timeout_s=900) for name in ALL} == dict.fromkeys(ALL, 0)
    bundle = project.volume("run") / "bundle.safetensors"
    assert bundle.is_file(), project.services["coordinator"].last_words
    return bundle


def test_up_down_and_up_again_to_the_finished_bundle(tmp_path: Path) -> None:
    with Project(tmp_path, "compose.yaml", env={}) as project:
        project.up(*WORKERS)
        for name in WORKERS:
            project.wait_until_healthy(name)
        # As a stranger sees it: over TLS, by the run's own CA, at the port of the file.
        (port,) = (each.rpartition(":")[2] for each in project.services["coordinator"].told["ports"])
        ca = f"{project.volume('run')}/keys/ca.pem"
        assert json.loads(project.ask("--cacert", ca, f"https://coordinator:{port}/tinylora/state"))["run"] == "compose"
        # As an operator does: there is no page of his own in there, so he signs in with a token.
        made = project.run_in("coordinator", "tinylora-coordinator", "token", "create", RUN, "--role", "admin")
        admin = project.ask(
            "--cacert",
            ca,
            "-H",
            f"Authorization: Bearer {made.stdout.strip()}",
            f"https://coordinator:{port}/api/v1/admin",
        )
        assert json.loads(admin)["pending"] == []
        wait_until_trained(project)
        before = trained(project)
        assert project.down(*ALL) == dict.fromkeys(ALL, 0)

        project.up(*WORKERS)
        assert "is there already" in project.services["init"].last_words
        assert "holds a token of this run already (used up)" in project.services["token"].last_words
        assert trained(project) >= before
        bundle = finish(project)
        receipts = [len(list((project.volume(name)).glob("receipts*"))) for name in WORKERS]
        assert all(receipts) and bundle.stat().st_uid == 10001


def test_nobody_in_there_can_write_elsewhere_or_become_root(tmp_path: Path) -> None:
    with Project(tmp_path, "compose.yaml", env={"TINYLORA_NAME": "other"}) as project:
        project.up("coordinator")
        project.wait_until_healthy("coordinator")
        told = project.run_in(
            "coordinator", "sh", "-c", "id -u; cat /proc/self/status; touch /x /usr/x; touch /tmp/x && echo tmp"
        )
        lines = told.stdout.split("\n")
        assert lines[0] == "10001" and "NoNewPrivs:\t1" in lines and "CapBnd:\t0000000000000000" in lines
        assert told.stderr.count("Read-only file system") == 2 and lines[-2] == "tmp"
        assert project.services["token"].process is None  # nobody asked for it yet
        assert project.down("coordinator") == {"coordinator": 0}


def test_a_certificate_of_your_own(tmp_path: Path) -> None:
    """With compose.tls.yaml: a test's CA stands in for one that every system knows."""
    theirs = KeyFolder(tmp_path / "theirs")
    make_keys(theirs, run="theirs", hosts=["run.example.org"], now=datetime.now(UTC))
    for file in (theirs.server, theirs.server_key):
        os.chown(file, 10001, 10001)
    system = tmp_path / "system.pem"
    system.write_bytes(theirs.ca.read_bytes())
    env = {
        "TINYLORA_HOST": "run.example.org", "TINYLORA_CERTIFICATE": str(theirs.server),
        "TINYLORA_PRIVATE_KEY": str(theirs.server_key), "TINYLORA_LEAF_STEPS": "8", "TINYLORA_UNIT_STEPS": "4",
    }  # fmt: skip
    known = "/var/cache/huggingface/system.pem"
    with Project(tmp_path, "compose.yaml", "compose.tls.yaml", env=env, extra={"SSL_CERT_FILE": known}) as project:
        project.up("init")
        project.wait("init")
        (project.volume("base") / "system.pem").write_bytes(system.read_bytes())
        project.up(*WORKERS)
        token = (project.volume("token") / "token").read_text()
        assert token.startswith("tl1.system.")
        until(lambda: project.is_healthy("worker-1"), timeout_s=300, what="a healthy worker")
        assert project.ask("--cacert", str(theirs.ca), "https://run.example.org:8443/health") == '{"status":"ok"}'
        finish(project)
