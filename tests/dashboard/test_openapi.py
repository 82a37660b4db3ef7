"""The description of the API is the one the page's types were made of, and no request makes the server stumble."""

from pathlib import Path

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.core.result import Ok
from schemathesis.schemas import APIOperation
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from tinylora_coordinator.dashboard.app import create_app
from tinylora_coordinator.dashboard.openapi import FILE, is_stale, main

from tests.dashboard.fakes import fake_services

SLOW = [HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large]
CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]

app = create_app(fake_services())
schema = schemathesis.openapi.from_dict(app.openapi())
schema.app = app


OPERATIONS = [
    operation
    for found in schema.get_all_operations()
    if isinstance(found, Ok) and (operation := found.ok()).path != "/api/v1/events"
]
"""A stream has no end; `test_stream` has its own hostile readers."""


@pytest.mark.parametrize("mode", list(GenerationMode))
@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda found: f"{found.method} {found.path}")
def test_every_answer_is_as_described_and_none_is_a_fault(operation: APIOperation, mode: GenerationMode) -> None:
    @given(case=operation.as_strategy(generation_mode=mode))
    @settings(max_examples=3, deadline=None, derandomize=True, database=None, suppress_health_check=SLOW)
    def ask(case: schemathesis.Case) -> None:
        response = case.call(headers={"authorization": "Bearer admin"})
        case.validate_response(response, checks=CHECKS)

    try:
        ask()
    except Unsatisfiable:  # whatever is sent to an address without parameters fits it
        assert mode is GenerationMode.NEGATIVE
        assert not operation.path_parameters and not operation.query and not operation.body


def test_the_description_in_the_repository_is_of_this_app() -> None:
    assert not is_stale(), "run: python -m tinylora_coordinator.dashboard.openapi, then npm run types"


def test_a_stale_description_is_told(tmp_path: Path) -> None:
    file = tmp_path / "openapi.json"
    assert is_stale(file)
    file.write_bytes(FILE.read_bytes())
    assert not is_stale(file)
    file.write_text(file.read_text().replace("TinyLoRA", "Other"))
    assert is_stale(file)
    assert main(["--check"]) == 0
