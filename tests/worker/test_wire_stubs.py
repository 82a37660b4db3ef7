"""The stubs in the repository are those that `make stubs` makes of worker.proto."""

from pathlib import Path

import pytest
from grpc_tools import protoc

PACKAGE = Path(__file__).parents[2] / "worker"
WIRE = Path("tinylora_worker", "wire")


def test_the_stubs_are_current(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(PACKAGE)
    outputs = [f"--{kind}_out={tmp_path}" for kind in ("python", "pyi", "grpc_python")]
    assert protoc.main(["protoc", "-I.", *outputs, str(WIRE / "worker.proto")]) == 0
    made = {file.name: file.read_text() for file in (tmp_path / WIRE).iterdir()}
    assert len(made) == 3
    assert made == {name: (PACKAGE / WIRE / name).read_text() for name in made}, "run `make stubs`"
