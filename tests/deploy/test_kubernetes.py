"""deploy/kubernetes/ keeps to the schemas, and to what the images and the programs really have."""

import json
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from tinylora_coordinator.folder import SECTIONS
from tinylora_coordinator.front_door.pages import HEALTH_PATH

import tinylora
from tests.deploy.command_lines import parse
from tests.deploy.dockerfile import stages

PLACE = Path(__file__).parents[2] / "deploy" / "kubernetes"
VERSIONS = ("1.32", "1.37")
"""An old one that is still about, and the newest whose schemas are here."""


@cache
def documents() -> dict[str, dict[str, Any]]:
    """What the base's files hold, by kind and name."""
    listed = yaml.safe_load((PLACE / "base" / "kustomization.yaml").read_text(encoding="utf-8"))["resources"]
    found = [
        text for name in listed for text in yaml.safe_load_all((PLACE / "base" / name).read_text(encoding="utf-8"))
    ]
    return {f"{document['kind']}/{document['metadata']['name']}": document for document in found}


def overlaid() -> dict[str, Any]:
    """The worker as the overlay `cpu` has it."""
    overlay = yaml.safe_load((PLACE / "cpu" / "kustomization.yaml").read_text(encoding="utf-8"))
    worker = json.loads(json.dumps(documents()["StatefulSet/worker"]))
    for change in (change for patch in overlay["patches"] for change in yaml.safe_load(patch["patch"])):
        apply(worker, change)
    names = {image["name"]: image["newName"] for image in overlay["images"]}
    for container in containers(worker):
        name, tag = container["image"].split(":")
        container["image"] = f"{names[name]}:{tag}"
    return worker


def apply(document: dict[str, Any], change: dict[str, Any]) -> None:
    """One step of RFC 6902, of the kinds that are used here."""
    *way, last = change["path"].strip("/").split("/")
    place: Any = document
    for step in way:
        place = place[int(step)] if isinstance(place, list) else place[step]
    if change["op"] == "remove":
        del place[last]
    elif last == "-":
        place.append(change["value"])
    else:
        assert change["op"] == "replace" and last in place, change
        place[last] = change["value"]


def stateful_sets() -> Iterator[Any]:
    yield pytest.param(documents()["StatefulSet/coordinator"], id="coordinator")
    yield pytest.param(documents()["StatefulSet/worker"], id="worker")
    yield pytest.param(overlaid(), id="cpu")


def containers(workload: dict[str, Any]) -> list[dict[str, Any]]:
    spec = workload["spec"]["template"]["spec"]
    return [*spec["initContainers"], *spec["containers"]]


def environment(container: dict[str, Any]) -> dict[str, str]:
    """What `$(NAME)` stands for in a container's arguments."""
    run = documents()["ConfigMap/run"]["data"]
    values = dict(run) if {"configMapRef": {"name": "run"}} in container.get("envFrom", []) else {}
    for variable in container.get("env", []):
        source = variable.get("valueFrom", {}).get("configMapKeyRef")
        values[variable["name"]] = run[source["key"]] if source else variable["value"]
    return values


def filled(words: list[str], values: dict[str, str]) -> list[str]:
    return [re.sub(r"\$\((\w+)\)", lambda name: values[name[1]], word) for word in words]


def target(container: dict[str, Any]) -> str:
    """The Dockerfile's stage that a container's image is made of."""
    name, _, tag = container["image"].partition(":")
    assert tag == tinylora.__version__
    return name.removeprefix("tinylora-")


def commands() -> Iterator[Any]:
    """Every call of our programs: containers and the probes that are commands."""
    for parameter in stateful_sets():
        for container in containers(parameter.values[0]):
            if "command" not in container:
                entry = stages()[target(container)].words("ENTRYPOINT")
                words = [*entry, *filled(container["args"], environment(container))]
                yield pytest.param(words, id=f"{parameter.id}-{container['name']}")
            for kind in ("startupProbe", "readinessProbe", "livenessProbe"):
                if "exec" in container.get(kind, {}):
                    yield pytest.param(container[kind]["exec"]["command"], id=f"{parameter.id}-{kind}")


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", [*documents()])
def test_schema(name: str, version: str) -> None:
    kubernetes_validate.validate(documents()[name], version, strict=True)


def test_schema_of_the_overlay() -> None:
    kubernetes_validate.validate(overlaid(), VERSIONS[-1], strict=True)


def test_the_schemas_are_strict() -> None:
    wrong = {**documents()["ConfigMap/run"], "dat": {}}
    with pytest.raises(kubernetes_validate.ValidationError, match="dat"):
        kubernetes_validate.validate(wrong, VERSIONS[-1], strict=True)


def test_every_file_is_listed() -> None:
    listed = yaml.safe_load((PLACE / "base" / "kustomization.yaml").read_text(encoding="utf-8"))["resources"]
    assert sorted([*listed, "kustomization.yaml"]) == sorted(file.name for file in (PLACE / "base").iterdir())


@pytest.mark.parametrize("words", [*commands()])
def test_programs_take_these_words(words: list[str]) -> None:
    said = parse(words)
    settings = {name for section in SECTIONS.values() for name in section}
    assert {change.partition("=")[0] for change in said.get("changes") or ()} <= settings  # pyright: ignore


@pytest.mark.parametrize("workload", [*stateful_sets()])
def test_pods_are_restricted(workload: dict[str, Any]) -> None:
    spec = workload["spec"]["template"]["spec"]
    pod = spec["securityContext"]
    assert (pod["runAsNonRoot"], pod["runAsUser"], pod["runAsGroup"], pod["fsGroup"]) == (True, 10001, 10001, 10001)
    assert pod["seccompProfile"] == {"type": "RuntimeDefault"}
    assert spec["automountServiceAccountToken"] is False
    for container in containers(workload):
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert {"cpu", "memory"} <= set(container["resources"]["requests"])
        assert "memory" in container["resources"]["limits"]


@pytest.mark.parametrize("workload", [*stateful_sets()])
def test_images_user_and_volumes_are_the_dockerfiles(workload: dict[str, Any]) -> None:
    spec = workload["spec"]["template"]["spec"]
    there = {volume["name"] for volume in spec["volumes"]}
    there |= {claim["metadata"]["name"] for claim in workload["spec"]["volumeClaimTemplates"]}
    for container in containers(workload):
        stage = stages()[target(container)]
        assert stage.last("USER") == "10001:10001"
        mounted = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
        assert set(mounted.values()) <= there and "/tmp" in mounted
        if "command" not in container:
            assert set(stage.words("VOLUME")) <= set(mounted)
            assert stage.environment["HOME"] == "/tmp"


def test_a_gpu_is_asked_for_where_the_image_can_use_one() -> None:
    worker = documents()["StatefulSet/worker"]["spec"]["template"]["spec"]["containers"][0]
    assert (target(worker), worker["resources"]["limits"]["nvidia.com/gpu"]) == ("worker-cuda", 1)
    without = overlaid()["spec"]["template"]["spec"]["containers"][0]
    assert target(without) == "worker-cpu" and "nvidia.com/gpu" not in json.dumps(without)


def test_folders_lie_below_their_volumes() -> None:
    """The top of a volume belongs to root: see the decision on images and volumes."""
    init, serve = containers(documents()["StatefulSet/coordinator"])
    run = Path(init["args"][1])
    assert run == Path(serve["args"][1]) and run.parent == Path("/var/lib/tinylora")
    text, worker = containers(documents()["StatefulSet/worker"])
    home = Path(environment(worker)["TINYLORA_HOME"])
    assert home.parent == Path("/var/lib/tinylora-worker")
    mounts = {mount["name"]: mount["mountPath"] for mount in worker["volumeMounts"]}
    said = parse(["tinylora-worker", *worker["args"]])
    assert said["token_file"] == f"{mounts['token']}/token"
    assert said["data"] == (f"{mounts['text']}/data",) and f"{mounts['text']}/complete" in text["command"][-1]


def test_only_the_public_port_is_open() -> None:
    coordinator = documents()["StatefulSet/coordinator"]["spec"]["template"]["spec"]["containers"][0]
    [port] = coordinator["ports"]
    said = parse(["tinylora-coordinator", *coordinator["args"]])
    assert said["port"] == port["containerPort"] == 8443
    [out] = documents()["Service/coordinator"]["spec"]["ports"]
    assert (out["port"], out["targetPort"]) == (8443, port["name"])
    policies = [document["spec"] for name, document in documents().items() if name.startswith("NetworkPolicy/")]
    assert {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]} in policies
    [open_] = [rule for policy in policies for rule in policy.get("ingress", [])]
    assert open_ == {"ports": [{"protocol": "TCP", "port": 8443}]}
    url = parse(["tinylora-worker", *containers(documents()["StatefulSet/worker"])[1]["args"]])["url"]
    assert url == "https://coordinator.tinylora.svc:8443"
    hosts = containers(documents()["StatefulSet/coordinator"])[0]["args"]
    assert "--host=coordinator.tinylora.svc" in hosts


def test_the_kubelet_asks_a_path_that_answers() -> None:
    coordinator = documents()["StatefulSet/coordinator"]["spec"]["template"]["spec"]["containers"][0]
    for kind in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert coordinator[kind]["httpGet"] == {"path": HEALTH_PATH, "port": "public", "scheme": "HTTPS"}


def test_selectors_find_their_pods() -> None:
    labels = [workload.values[0]["spec"]["template"]["metadata"]["labels"] for workload in stateful_sets()]
    for name, document in documents().items():
        spec = document.get("spec", {})
        selector = spec.get("podSelector", spec.get("selector", {}))
        wanted = selector.get("matchLabels", selector)
        assert any(wanted.items() <= found.items() for found in labels), name
