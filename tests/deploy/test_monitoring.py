"""Prometheus' and Grafana's files: tried by promtool, against a run that is really served, and in a real Prometheus."""

import json
import subprocess
import time
import urllib.parse
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from tinylora_coordinator.dashboard.metrics import expose

from tests.coordinator.running import make_run, serving
from tests.dashboard.fakes import FakeViews
from tests.deploy.compose_files import DEPLOY, Image
from tests.deploy.little_engine import PATH, Project
from tests.deploy.monitoring_files import (
    GRAFANA,
    PROMETHEUS,
    alerts,
    dashboard,
    expressions,
    samples_in,
    strange,
)
from tests.flower.helpers import until

pytestmark = [
    pytest.mark.deploy,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # of alembic, about flwr's use
]


def promtool(*words: object, cwd: Path = PROMETHEUS) -> str:
    done = subprocess.run(["promtool", *map(str, words)], cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


# --- by promtool ------------------------------------------------------------------------------------------------------


def test_config_and_rules_are_good(tmp_path: Path) -> None:
    for name in ("ca.pem", "viewer-token"):
        (tmp_path / name).write_text("")
    config = (PROMETHEUS / "prometheus.yml").read_text()
    (tmp_path / "prometheus.yml").write_text(config.replace("/etc/tinylora", str(tmp_path)))
    (tmp_path / "targets.json").write_text('[{"targets": ["run.example.org:8443"]}]')
    (tmp_path / "alerts.yml").write_text((PROMETHEUS / "alerts.yml").read_text())
    assert "SUCCESS" in promtool("check", "config", tmp_path / "prometheus.yml")
    assert f"{len(alerts())} rules found" in promtool("check", "rules", "alerts.yml")


def test_yaml_is_written_as_the_rest() -> None:
    files = [*DEPLOY.glob("compose*.yaml"), PROMETHEUS, GRAFANA]
    command = ["yamllint", "--strict", "-c", DEPLOY / ".yamllint.yaml", *files]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_every_alert_fires_and_holds_still_as_it_should() -> None:
    assert "SUCCESS" in promtool("test", "rules", "alerts_test.yml")
    told = yaml.safe_load((PROMETHEUS / "alerts_test.yml").read_text())["tests"]
    tried = [(each["expr"], bool(each["exp_samples"])) for test in told for each in test["promql_expr_test"]]
    for rule in alerts():
        outcomes = {fires for expr, fires in tried if f'alertname="{rule["alert"]}"' in expr}
        assert outcomes == {True, False}, rule["alert"]


def test_every_expression_of_the_dashboard_can_be_read(tmp_path: Path) -> None:
    rules = [{"record": f"tried:{number}", "expr": each.text} for number, each in enumerate(expressions())]
    (tmp_path / "rules.yml").write_text(yaml.safe_dump({"groups": [{"name": "tried", "rules": rules}]}))
    assert f"{len(rules)} rules found" in promtool("check", "rules", tmp_path / "rules.yml")


def test_grafana_finds_its_source_and_its_dashboard() -> None:
    (source,) = yaml.safe_load((GRAFANA / "provisioning/datasources/tinylora.yaml").read_text())["datasources"]
    asked = {target["datasource"]["uid"] for panel in dashboard()["panels"] for target in panel.get("targets", ())} | {
        each["datasource"]["uid"] for each in dashboard()["templating"]["list"]
    }
    assert asked == {source["uid"]}
    panels = [panel for panel in dashboard()["panels"] if panel["type"] != "row"]
    assert len({panel["id"] for panel in dashboard()["panels"]}) == len(dashboard()["panels"])
    places = [panel["gridPos"] for panel in panels]
    assert all(place["x"] + place["w"] <= 24 for place in places)
    cells = [
        (x, y) for at in places for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])
    ]
    assert len(cells) == len(set(cells))


# --- against what is really told --------------------------------------------------------------------------------------


def test_every_metric_that_is_asked_for_is_told(tmp_path: Path) -> None:
    with serving(make_run(tmp_path / "run", leaf_steps=10_000, router_period=2)) as coordinator:
        coordinator.volunteer(0.0)
        coordinator.volunteer(1.0)
        url = coordinator.address.url("/metrics")

        def told() -> str:
            return httpx.get(url, timeout=30.0).text

        until(lambda: 'tinylora_units_total{outcome="accepted"} 0.0' not in told(), timeout_s=120, what="an update")
        until(lambda: "\ntinylora_router_drift_ratio " in told(), timeout_s=120, what="a round")
        known = samples_in(told())
    # What these workers do not tell, with the labels that it would have.
    state = FakeViews().state()
    nodes = tuple(node.model_copy(update={"loss": 1.0}) for node in state.nodes)
    workers = tuple(worker.model_copy(update={"tokens_per_s": 1.0}) for worker in state.workers)
    text, _ = expose(state.model_copy(update={"nodes": nodes, "workers": workers}), 0, "")
    made_up = samples_in(text.decode())
    known = {name: found or made_up.get(name, []) for name, found in known.items()}
    assert [line for each in expressions() for line in strange(each, known)] == []


# --- in a real Prometheus ---------------------------------------------------------------------------------------------


def query(project: Project, path: str, **asked: str) -> Any:
    """What Prometheus answers."""
    url = f"http://prometheus:9090/api/v1/{path}?{urllib.parse.urlencode(asked)}"
    found = json.loads(project.ask("--noproxy", "*", url))
    assert found["status"] == "success", found
    return found["data"]


def wait_for(project: Project, expr: str, *, timeout_s: float = 120.0) -> list[dict[str, Any]]:
    end = time.monotonic() + timeout_s
    while not (found := query(project, "query", query=expr)["result"]):
        assert time.monotonic() < end, f"{expr}: {query(project, 'targets')['activeTargets']}"
        time.sleep(1.0)
    return found


def test_prometheus_scrapes_a_run_that_only_viewers_may_see(tmp_path: Path) -> None:
    """Over TLS by the run's own CA, with the token that its group may read: the shipped files as they stand."""
    env = {"TINYLORA_VIEWERS": "token", "TINYLORA_GRAFANA_PASSWORD": "not started here", "TINYLORA_NAME": "watched"}
    debian = {"prometheus": Image({"PATH": PATH}, ["/usr/bin/prometheus"], "65534:65534", ["/prometheus"])}
    debian["grafana"] = debian["prometheus"]
    files = ("compose.yaml", "compose.monitoring.yaml")
    with Project(tmp_path, *files, env=env, images=debian) as project:
        project.up("prometheus")
        project.wait_until_healthy("prometheus")
        (about,) = wait_for(project, "tinylora_run_info")
        assert about["metric"]["run"] == "watched" and about["metric"]["instance"] == "coordinator:8443"
        (waiting,) = wait_for(project, "tinylora_run_phase == 1")
        state = json.loads(project.ask("--insecure", "https://coordinator:8443/tinylora/state"))
        assert waiting["metric"]["phase"] == state["phase"]
        (events,) = wait_for(project, "tinylora_events_total")
        assert int(events["value"][1]) >= 1
        for each in expressions():
            query(project, "query", query=each.text)
        rules = [rule for group in query(project, "rules")["groups"] for rule in group["rules"]]
        assert len(rules) == len(alerts()) and {rule["health"] for rule in rules} <= {"ok", "unknown"}

        stranger = project.services["worker-1"]
        assert not any(mount.source == "monitoring" for mount in stranger.mounts)
        token = project.volume("monitoring") / "viewer-token"
        assert oct(token.stat().st_mode)[-3:] == "640" and token.stat().st_gid == 10001
        assert project.down("prometheus", "coordinator") == {"prometheus": 0, "coordinator": 0}
