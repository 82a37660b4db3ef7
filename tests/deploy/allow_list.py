"""The door's own list of what is public, as the files of `deploy/proxy/` carry it.

    python -m tests.deploy.allow_list       # writes it into them

nginx and Caddy compare the request line as it came, like the door: an odd spelling is another address, and not there.
"""

import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from tinylora_coordinator.dashboard import addresses
from tinylora_coordinator.folder import RunFolder, read_run, write_run
from tinylora_coordinator.front_door.app import STREAM_PATH
from tinylora_coordinator.operator_store import OperatorStore
from tinylora_coordinator.public_door import make_door
from tinylora_coordinator.reports import ReportDesk

from tests.federation.facts import FACTS, SETTINGS

PROXY = Path(__file__).parents[2] / "deploy" / "proxy"
BEGIN, END = " allow-list: begin\n", " allow-list: end\n"

Public = tuple[str, str, bool]
"""Methods and path as regular expressions, and whether a query may follow."""


def door_routes() -> list[tuple[str, str]]:
    """(METHOD, path) of all that the real door answers besides the dashboard."""
    with tempfile.TemporaryDirectory() as place:
        folder = RunFolder(Path(place, "run"))
        write_run(folder, SETTINGS, FACTS, None)
        link: Any = SimpleNamespace(flower=object(), register=None, is_registered=None, phase="waiting")
        with OperatorStore(folder.root) as store:
            reports = ReportDesk(lambda worker, report, at_s: None, clock=lambda: 0.0)
            return make_door(link, folder, read_run(folder), store, reports=reports).public


def public(routes: Iterable[tuple[str, str]], pages: dict[str, tuple[str, ...]]) -> list[Public]:
    """Everything that is answered, in a fixed order.

    Args:
        routes: What the door answers besides the dashboard.
        pages: Regular expressions of the dashboard's paths, by method.
    """
    methods: dict[str, list[str]] = {}
    for method, path in sorted(routes):
        methods.setdefault(path, []).append(method)
    exact = [(_either(found), path.replace(".", r"\."), False) for path, found in methods.items()]
    shown = [
        ("(GET|HEAD)" if method == "GET" and path != STREAM_PATH else method, path, True)
        for method, paths in pages.items()
        for one in paths
        for path in _apart(one)
    ]
    return exact + shown


def _either(methods: list[str]) -> str:
    return methods[0] if len(methods) == 1 else f"({'|'.join(methods)})"


def _apart(path: str) -> list[str]:
    """The stream by itself: it has no HEAD, for its answer does not end."""
    rest = path.replace("|events|", "|")
    return [path] if rest == path else [STREAM_PATH, rest]


def nginx_lines(found: Iterable[Public]) -> list[str]:
    """Of a `map` of "$request_method $request_uri"."""
    return [f'        "~^{_line(one)}$" 1;\n' for one in found]


def caddy_lines(found: Iterable[Public]) -> list[str]:
    """Of an expression. Caddy takes {64} for a name of its own."""
    asked = '({http.request.method} + " " + {http.request.orig_uri})'
    lines = [f"\t{asked}.matches(r'^{_line(one).replace('{64}', '{64,64}')}$')" for one in found]
    return [f"{line} ||\n" for line in lines[:-1]] + [f"{lines[-1]}\n"]


def _line(one: Public) -> str:
    method, path, has_query = one
    return f"{method} {path}" + (r"(\?.*)?" if has_query else "")


FILES: dict[str, Callable[[Iterable[Public]], list[str]]] = {"nginx.conf": nginx_lines, "Caddyfile": caddy_lines}


def with_list(text: str, lines: list[str]) -> str:
    """A file's text with these lines between the marks."""
    head, _, rest = text.partition(BEGIN)
    before, _, tail = rest.partition(END)
    mark = before[before.rfind("\n") + 1 :]  # the end's own, with its comment sign
    return f"{head}{BEGIN}{''.join(lines)}{mark}{END}{tail}"


def main() -> None:
    """Entry point."""
    found = public(door_routes(), addresses.PATHS)
    for name, lines in FILES.items():
        (PROXY / name).write_text(with_list((PROXY / name).read_text(), lines(found)))


if __name__ == "__main__":
    main()
