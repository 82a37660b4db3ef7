"""What `import tinylora` promises. A change of this list is a change for everybody who wrote a program on it."""

import inspect

import pytest

import tinylora
from tinylora import errors

SURFACE = {
    "BaseFacts": "class",
    "Bundle": "class",
    "LoadedBase": "class",
    "Policy": "class",
    "RunSettings": "class",
    "Shard": "class",
    "TinyLoraError": "class",
    "Topology": "class",
    "TreeModel": "class",
    "load_base": "function",
    "load_shard": "function",
    "read_bundle": "function",
    "read_settings": "function",
    "write_bundle": "function",
}


def test_the_surface_is_what_we_say() -> None:
    assert sorted(SURFACE) == tinylora.__all__
    assert dir(tinylora) == sorted([*SURFACE, "__version__"])


@pytest.mark.parametrize(("name", "kind"), SURFACE.items())
def test_every_name_is_there_and_documented(name: str, kind: str) -> None:
    found = getattr(tinylora, name)
    assert ("class" if inspect.isclass(found) else "function") == kind
    assert found.__doc__
    assert found.__module__.startswith("tinylora.")


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'TinyLoraConfig'"):
        tinylora.TinyLoraConfig  # noqa: B018  (reading it is the test)


def test_the_errors_drawn_are_the_errors_there_are() -> None:
    drawing = errors.__doc__ or ""
    for name, error in vars(errors).items():
        if not (isinstance(error, type) and issubclass(error, errors.TinyLoraError)):
            continue
        assert f"{name} " in drawing
        line = next(line for line in drawing.splitlines() if f"{name} " in line)
        assert f" {error.exit_code} " in line
