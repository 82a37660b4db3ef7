"""The pages that are made from the code, by file name, and where they stand."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import tinylora_coordinator.cli
import tinylora_worker.cli

import tinylora.cli
from tests.docs.reference.codes import errors_page
from tests.docs.reference.commands import program_page
from tests.docs.reference.configuration import configuration_page
from tests.docs.reference.documents import documents_page
from tests.docs.reference.metrics import metrics_page
from tests.docs.reference.surface import python_page

FOLDER = Path(__file__).parents[3] / "docs" / "reference"
PROGRAMS = {
    "tinylora": tinylora.cli.app,
    "tinylora-coordinator": tinylora_coordinator.cli.app,
    "tinylora-worker": tinylora_worker.cli.app,
}
PAGES: Mapping[str, Callable[[], str]] = {
    **{f"{name}.md": partial(program_page, app, name) for name, app in PROGRAMS.items()},
    "configuration.md": configuration_page,
    "documents.md": documents_page,
    "errors.md": errors_page,
    "metrics.md": metrics_page,
    "python.md": python_page,
}
ANEW = "`make reference` (or `python -m tests.docs.reference`) makes the pages of docs/reference anew from the code"
