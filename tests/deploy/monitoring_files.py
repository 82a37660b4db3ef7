"""What deploy/prometheus and deploy/grafana ask for: expressions, and the metrics and labels in them. Pure."""

import json
import re
from dataclasses import dataclass
from typing import Any

import yaml
from prometheus_client.parser import text_string_to_metric_families

from tests.deploy.compose_files import DEPLOY

PROMETHEUS, GRAFANA = DEPLOY / "prometheus", DEPLOY / "grafana"
_SELECTOR = re.compile(r"(tinylora_\w+)(?:\{([^}]*)\})?")
_MATCHER = re.compile(r'(\w+)\s*(=~|!=|=)\s*"([^"]*)"')
_OF_THE_SCRAPE = {"instance", "job"}


@dataclass(frozen=True)
class Expression:
    """One of Prometheus' language, and the labels that stand beside it in words for people."""

    where: str
    text: str
    legend: tuple[str, ...] = ()


def alerts() -> list[dict[str, Any]]:
    """The rules."""
    told = yaml.safe_load((PROMETHEUS / "alerts.yml").read_text(encoding="utf-8"))
    return [rule for group in told["groups"] for rule in group["rules"]]


def dashboard() -> dict[str, Any]:
    """The dashboard."""
    return json.loads((GRAFANA / "dashboards" / "tinylora.json").read_text(encoding="utf-8"))


def expressions() -> list[Expression]:
    """All of them; Grafana's own variables are put in."""
    of_alerts = [Expression(rule["alert"], rule["expr"], _labels_in(str(rule["annotations"]))) for rule in alerts()]
    of_panels = [
        Expression(f"{panel['title']} {target['refId']}", filled(target["expr"]), _labels_in(target["legendFormat"]))
        for panel in dashboard()["panels"]
        for target in panel.get("targets", ())
    ]
    return [*of_alerts, *of_panels]


def filled(text: str) -> str:
    """As Grafana sends it."""
    return text.replace("$__rate_interval", "1m").replace("$run", ".*")


def _labels_in(words: str) -> tuple[str, ...]:
    found = re.findall(r"\{\{\s*(?:\$labels\.)?(\w+)", words)
    return tuple(name for name in found if name != "value")


def strange(expression: Expression, known: dict[str, list[dict[str, str]]]) -> list[str]:
    """What an expression names that nobody tells.

    Args:
        expression: Of a rule or a panel.
        known: Name of a sample to the labels of each that there was; none where it is told without a sample.
    """
    found, labels = [], set(_OF_THE_SCRAPE)
    for name, matchers in _SELECTOR.findall(expression.text):
        if name not in known:
            found.append(f"{expression.where}: no metric {name}")
            continue
        labels |= {label for each in known[name] for label in each}
        for label, how, value in _MATCHER.findall(matchers):
            values = {each.get(label) for each in known[name]}
            if label not in _OF_THE_SCRAPE and (None in values or (how == "=" and value not in values)):
                found.append(f"{expression.where}: no {name} with {label}={value}, only {sorted(map(str, values))}")
    return [*found, *(f"{expression.where}: no label {name}" for name in set(expression.legend) - labels)]


def samples_in(text: str) -> dict[str, list[dict[str, str]]]:
    """Every name that a scrape tells, with the labels of its samples; a name without samples as well."""
    suffix = {"counter": "_total", "info": "_info"}
    found: dict[str, list[dict[str, str]]] = {}
    for family in text_string_to_metric_families(text):
        name = family.name + suffix.get(family.type, "")
        found.setdefault(name, [])
        for sample in family.samples:
            found.setdefault(sample.name, []).append(sample.labels)
    return found
