"""What `import tinylora` has."""

import ast
import inspect
from collections.abc import Callable

import tinylora
from tests.docs.reference.markdown import block, code, page, prose, table


def python_page() -> str:
    """The page of the public surface."""
    return page(
        "Python",
        "`import tinylora` promises these names; everything else may change between versions. Nothing heavy is "
        "imported before the first of them is used. [Using a bundle](../how-to/use-a-bundle.md#from-python) shows "
        "them at work.",
        table(("name", "kind", "what it is"), map(_row, tinylora.__all__)),
        *(_section(name) for name in tinylora.__all__),
    )


def _row(name: str) -> tuple[str, str, str]:
    found = getattr(tinylora, name)
    kind = "class" if inspect.isclass(found) else "function"
    return f"[{code(name)}](#{name.lower()})", kind, prose((found.__doc__ or "").split("\n\n")[0])


def _section(name: str) -> str:
    found = getattr(tinylora, name)
    text = inspect.cleandoc(found.__doc__ or "")
    parts = [f"## {name}", f"From `{found.__module__}`.", block(text)]
    if not inspect.isclass(found):
        parts.insert(2, block(_signature(found)))
    elif methods := _methods(found):
        parts.append(table(("method", "what it does"), methods))
    return "\n\n".join(parts)


def _signature(function: Callable[..., object]) -> str:
    """As it stands in the source: tests wrap functions in checks that spell types in another way."""
    definition = ast.parse(inspect.getsource(inspect.unwrap(function))).body[0]
    assert isinstance(definition, ast.FunctionDef) and definition.returns is not None
    return f"{definition.name}({ast.unparse(definition.args)}) -> {ast.unparse(definition.returns)}"


def _methods(kind: type) -> list[tuple[str, str]]:
    """Its public methods and properties, those of classes that are not ours left out."""
    ours = [part for part in kind.__mro__ if part.__module__.startswith("tinylora")]
    members = {name: member for part in reversed(ours) for name, member in vars(part).items()}
    return [
        (code(name), prose((inspect.getdoc(member) or "").split("\n\n")[0]))
        for name, member in members.items()
        if not name.startswith("_") and (callable(member) or isinstance(member, property | classmethod | staticmethod))
        if inspect.getdoc(member)
    ]
