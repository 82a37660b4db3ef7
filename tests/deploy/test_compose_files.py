"""deploy/compose*.yaml by reading alone: the schema, what every service must have, and that the files agree."""

import subprocess
import sys
from typing import Any

import pytest
import yaml

from tests.deploy.compose_files import DEPLOY, interpolate, load, merge, mounts_of, variables

FILES = ("compose.yaml", "compose.tls.yaml", "compose.gpu.yaml", "compose.monitoring.yaml")
GIVEN = {"TINYLORA_CERTIFICATE": "/c", "TINYLORA_PRIVATE_KEY": "/k", "TINYLORA_GRAFANA_PASSWORD": "p"}
"""What has no default."""


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    """All four, laid over each other."""
    return load(*FILES, env=GIVEN)["services"]


def test_the_schema_of_compose_is_kept() -> None:
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec"]
    done = subprocess.run([*command, *(DEPLOY / name for name in FILES)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_every_service_is_locked_in(services: dict[str, Any]) -> None:
    for name, told in services.items():
        assert told["read_only"] and told["cap_drop"] == ["ALL"], name
        assert told["security_opt"] == ["no-new-privileges:true"] and told["logging"]["options"]["max-size"], name
        assert name == "grafana" or str(told["user"]).partition(":")[0] in ("10001", "65534"), name
        assert "privileged" not in told and told.get("network_mode") in (None, "none"), name
        if told["restart"] != "no":
            assert told["deploy"]["resources"]["limits"] and told["stop_grace_period"] and told["healthcheck"], name
        ours = told["image"].startswith("tinylora-")
        assert not ours or told["restart"] == "no" or told["stop_signal"] == "SIGINT", name


def test_images_are_pinned_and_ours_carry_the_version(services: dict[str, Any]) -> None:
    import tinylora

    for name, told in services.items():
        image, _, tag = told["image"].partition(":")
        assert tag and tag != "latest", name
        assert not image.startswith("tinylora-") or tag == tinylora.__version__, name


def test_ports_are_open_to_this_machine_alone_until_told_otherwise(services: dict[str, Any]) -> None:
    ports = {name: told["ports"] for name, told in services.items() if "ports" in told}
    assert ports == {"coordinator": ["127.0.0.1:8443:8443"], "grafana": ["127.0.0.1:3000:3000"]}


def test_what_depends_on_a_service_finds_it_and_its_check(services: dict[str, Any]) -> None:
    for name, told in services.items():
        for other, how in told.get("depends_on", {}).items():
            if how["condition"] == "service_healthy":
                assert services[other]["healthcheck"]["test"][0] == "CMD", name
            else:
                assert services[other]["restart"] == "no", name


def test_the_keys_of_the_run_are_the_coordinators_alone(services: dict[str, Any]) -> None:
    told = load(*FILES, env=GIVEN)
    holders = {
        name for name, each in services.items() if any(m.source == "run" for m in mounts_of(each, told["secrets"]))
    }
    assert holders == {"init", "token", "coordinator", "monitoring-access"}
    volumes = {m.source for each in services.values() for m in mounts_of(each, told["secrets"]) if m.is_volume}
    assert volumes == set(told["volumes"])


def test_the_example_names_every_variable_with_its_default() -> None:
    lines = (DEPLOY / ".env.example").read_text().splitlines()
    pairs = [line.lstrip("#").split("=", 1) for line in lines if line.lstrip("#").startswith("TINYLORA_")]
    example = {name: value for name, value in pairs}
    asked: dict[str, set[str | None]] = {}
    for name in FILES:
        for variable, defaults in variables((DEPLOY / name).read_text()).items():
            asked.setdefault(variable, set()).update(defaults)
    assert set(asked) == set(example)
    for variable, defaults in asked.items():
        assert defaults == {example[variable]} or (defaults == {None} and f"#{variable}=" in "\n".join(lines)), variable


def test_the_overlay_of_tls_says_all_that_the_base_says() -> None:
    """A command is replaced as a whole, so what is in both must be the same."""
    base, tls = load("compose.yaml", env={}), load("compose.yaml", "compose.tls.yaml", env=GIVEN)
    own = {"--certificate=/run/secrets/certificate", "--private-key=/run/secrets/private_key"}
    for name in ("init", "coordinator"):
        before, after = base["services"][name]["command"], tls["services"][name]["command"]
        left_out = {word for word in before if word.startswith("--host=")} if name == "init" else set()
        assert set(before) - left_out == set(after) - own and own <= set(after)


def test_a_gpu_is_reserved_for_one_worker() -> None:
    told = load("compose.yaml", "compose.gpu.yaml", env={"TINYLORA_GPU": "1"})["services"]
    (device,) = told["worker-1"]["deploy"]["resources"]["reservations"]["devices"]
    assert device == {"driver": "nvidia", "device_ids": ["1"], "capabilities": ["gpu"]}
    assert told["worker-1"]["build"] == {"context": "..", "dockerfile": "deploy/Dockerfile", "target": "worker-cuda"}
    assert (
        told["worker-1"]["deploy"]["resources"]["limits"]["pids"]
        and told["worker-2"]["build"]["target"] == "worker-cpu"
    )
    assert told["worker-1"]["command"] == told["worker-2"]["command"]


# --- what stands in for compose ---------------------------------------------------------------------------------------


def test_variables_are_put_in_as_compose_does() -> None:
    assert interpolate({"a": ["${A:-x} $$b ${B}"]}, {"A": "", "B": "1"}) == {"a": ["x $b 1"]}
    with pytest.raises(KeyError, match="say it"):
        interpolate("${C:?say it}", {})


def test_files_are_laid_over_each_other_as_compose_does() -> None:
    below = yaml.safe_load("{command: [a], ports: [1], build: {x: 1, y: 2}, healthcheck: {test: [a]}}")
    above = yaml.safe_load("{command: [b], ports: [2], build: {y: 3}, healthcheck: {test: [b]}}")
    assert merge(below, above) == {
        "command": ["b"], "ports": [1, 2], "build": {"x": 1, "y": 3}, "healthcheck": {"test": ["b"]},
    }  # fmt: skip
