"""Fields of everything that travels between workers, coordinator and readers."""

import json
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel
from tinylora_coordinator.dashboard.openapi import FILE as OPENAPI
from tinylora_coordinator.front_door.limits import Limits

from tests.docs.reference.configuration import model_rows
from tests.docs.reference.markdown import code, page, prose, table
from tinylora.config import BaseFacts, ProjectionShape
from tinylora.flower.enrolment import BaseClaim, JoinAnswer, JoinRequest, Refusal, StateAnswer
from tinylora.flower.receipts import NoReceipt, ReceiptsAnswer, ReceiptsRequest
from tinylora.protocol.documents import ProbeResult, Receipt, Update, WorkUnit
from tinylora.protocol.report import WorkerReport

DOCUMENTS: dict[type[BaseModel], str] = {
    JoinRequest: "Body of `POST /tinylora/join`. Unknown fields are ignored, so that a newer worker is told that its "
    "protocol is too new.",
    BaseClaim: "`base` of a join request, once the worker has loaded its base.",
    JoinAnswer: "Answer to a join that is welcome, status 200.",
    Refusal: "Answer to a join that is not; [each `error`](errors.md#joining-refused).",
    StateAnswer: "Answer of `GET /tinylora/state`.",
    BaseFacts: "The run's base, in a join's answer and in the metadata of a bundle.",
    ProjectionShape: "One of `projections`.",
    WorkUnit: "Coordinator to worker, as a message of Flower, beside a safetensors payload.",
    Update: "Worker to coordinator, as the reply to that message, beside a safetensors payload.",
    ProbeResult: "`probe` of an update of a unit of the kind `probe`.",
    Receipt: "The run's signed word for an update that was accepted.",
    ReceiptsRequest: "Body of `POST /tinylora/receipts`.",
    ReceiptsAnswer: "Answer to it.",
    NoReceipt: "One of `refused`; [each `code`](errors.md#no-receipt).",
    WorkerReport: "Body of `POST /tinylora/report`; the answer is 204 without a body.",
}
_MEANINGS = {
    "protocol": "Version of the protocol.",
    "unit_id": "Name of the unit.",
    "run": "Name of the run.",
    "kind": "`sketch`: look at the text; `train`: train adapters; `probe`: score an update of somebody else's.",
    "worker": "Name of the worker: made from its key.",
    "name": "What the operator is shown.",
    "nonce": "That of the lease.",
    "node": "Path of the node.",
    "public_key": "EC P-384, PEM (SubjectPublicKeyInfo) as `cryptography` writes it.",
    "base": "What identifies the base.",
    "base_id": "Folder or hub id.",
    "fingerprint": "sha256 over weights, config and tokenizer.",
    "base_fingerprint": "The run's base, which the worker compares with its own.",
    "tokenizer_fingerprint": "sha256 of the tokenizer.",
    "feature_hash": "sha256 of what turns tokens into features besides the base.",
    "projections": "By name, such as `mlp.up_proj`.",
    "n_layers": "Layers that have it, stacked.",
    "in_features": "Columns of its weight.",
    "out_features": "Rows of its weight.",
    "error": "[Each of them](errors.md#joining-refused), with cause and cure.",
    "expected": "What the run has.",
    "received": "What the worker has.",
    "topology_version": "Version of the tree.",
    "router_version": "Version of the routers.",
    "node_version": "Version of the node's adapter.",
    "rank": "Rank of the adapters.",
    "scale": "alpha / rank.",
    "shard_tokens": "Tokens of the worker's training text.",
    "step": "Steps done of the unit under way.",
    "n_steps": "Optimiser steps.",
    "total_steps": "Steps over which the learning rate falls.",
    "batch_windows": "Windows in one step.",
    "window_tokens": "Tokens in one window.",
    "learning_rate": "Peak of the learning rate.",
    "warmup_steps": "Steps from nothing to the peak.",
    "sketch_min_sequences": "Of a sketch: fewest windows that the run takes.",
    "router_sync": "Whether statistics of gates, their weights or both come back.",
    "seed": "Decides first values and the order of batches.",
    "tokens": "Tokens of the accepted update.",
    "heldout_nll_before": "Nats per held-out token before the unit.",
    "heldout_nll_after": "The same after it.",
    "manifest": 'Tensors of the payload: name to dtype and shape, such as `["BF16", [2, 8, 64]]`.',
    "payload_sha256": "Hex sha256 of the payload.",
    "reason": "A sentence for people.",
    "settings": "The run's settings, [every key of run.toml](configuration.md#runtoml).",
    "phase": "What the run does.",
    "units": "Which units; none named means the latest.",
    "receipts": "In the order of the run's log.",
    "state": "What the worker does.",
}
"""Of fields that say it by their name in the source."""


def documents_page() -> str:
    """The page of all of them."""
    return page(
        "Documents of the protocol",
        "The tables behind [the protocol](protocol.md). Unless its text says otherwise a document is refused if it "
        "has a field that does not stand here, and numbers are finite. A *name* is a text of letters, digits and "
        "`._:-`, at most 128 long; a *path* is up to 16 bits, `0` for left and `1` for right, empty for the root; a "
        "*sha256* is 64 hex digits.",
        *(part for model, told in DOCUMENTS.items() for part in _section(model, told)),
        "## Limits of the public port",
        "All of them are the same for every run.",
        table(("limit", "value", "meaning"), _limits()),
        "## Routes of the dashboard",
        "At the public address, for whoever may look, and on the operator's own listener. `/api/v1/openapi.json` "
        "describes them for programs. What changes something is for the operator, or for who has an admin's token.",
        table(("route", "query, body", "answer"), _routes()),
    )


def _routes() -> Iterator[tuple[str, str, str]]:
    for path, methods in sorted(json.loads(OPENAPI.read_text(encoding="utf-8"))["paths"].items()):
        for method, told in methods.items():
            asked = [code(found["name"]) for found in told.get("parameters", ()) if found["in"] == "query"]
            body = told.get("requestBody", {}).get("content", {}).get("application/json")
            asked += [f"body {_schema(body)}"] if body else []
            answers = (answer for status, answer in sorted(told["responses"].items()) if status < "300")
            kinds = [kind for answer in answers for kind in answer.get("content", {}).items()]
            told_kinds = [_schema(content) or name for name, content in kinds]
            yield code(f"{method.upper()} {path}"), ", ".join(asked), ", ".join(map(code, told_kinds))


def _schema(content: dict[str, Any]) -> str:
    return str(content.get("schema", {}).get("$ref", "")).rpartition("/")[2]


def _section(model: type[BaseModel], told: str) -> Iterator[str]:
    yield f"## {model.__name__}"
    yield told
    rows = (
        (name, value, default, meaning or _MEANINGS.get(name.strip("`"), ""))
        for name, value, default, meaning in model_rows(model)
    )
    yield table(("field", "value", "default", "meaning"), rows)


def _limits() -> Iterator[tuple[str, str, str]]:
    meanings, last = {}, ""
    for line in (Limits.__doc__ or "").partition("Attributes:")[2].splitlines():
        name, colon, meaning = line.strip().partition(": ")
        if colon and name in Limits.__dataclass_fields__:
            meanings[name], last = meaning, name
        elif line.strip():
            meanings[last] += f" {line.strip()}"
    for name, meaning in meanings.items():
        yield code(name), f"{getattr(Limits, name):,.10g}".replace(",", " "), prose(meaning)
