"""Text that every machine with Python has, sorted into domains and cut **by file** into three sides.

Nothing is downloaded and nothing is committed: documents are read where pip and the system put them. A document's side
depends only on its package-relative name, so the same file falls on the same side on every machine:

* `base`: the demo base was trained on it;
* `shard`: a demo worker may train an adapter on it;
* `heldout`: only the evaluation reads it.

A second fence guards the first: the hashes of all texts that the base saw ship with it (`read_seen_hashes`), and no
shard or held-out document may carry one of them.
"""

import ast
import gettext
import gzip
import hashlib
import importlib.util
import os
import re
import sysconfig
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

MAX_DOCUMENT_CHARS = 30_000  # no single file may dominate a domain
MIN_DOCUMENT_CHARS = 400
SIDES = ("base", "shard", "heldout")
_SIDE_LIMITS = (0.5, 0.8, 1.0)  # of the hash range: half for the base, three tenths for shards, one fifth held out


@dataclass(frozen=True)
class Document:
    """One file's text, under a name that is the same on every machine."""

    name: str
    text: str

    @property
    def side(self) -> str:
        """Which of `SIDES` the document belongs to, by the hash of its name alone."""
        return side_of(self.name)

    @property
    def text_hash(self) -> str:
        """Sixteen hex digits of the sha256 of the text without its white space."""
        return hashlib.sha256("".join(self.text.split()).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Domain:
    """A kind of text: where its files are and how one becomes a document.

    `is_everywhere` is False for text that only some machines have (man pages, message catalogues).
    """

    name: str
    title: str
    files: Callable[[], Iterable[tuple[str, Path]]]
    read: Callable[[Path], str]
    is_everywhere: bool = True


def side_of(name: str) -> str:
    """Map a document's name to `base`, `shard` or `heldout`, the same everywhere."""
    position = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") / 2**64
    return next(side for side, limit in zip(SIDES, _SIDE_LIMITS, strict=True) if position < limit)


def read_documents(
    domain: Domain,
    side: str,
    *,
    max_chars: int | None = None,
    max_documents: int | None = None,
    unwanted_hashes: Collection[str] = (),
) -> list[Document]:
    """Collect documents of one side until a limit is reached, in the order of their hashed names.

    Duplicates (equal but for white space and a licence header) are dropped, as is everything in `unwanted_hashes`.
    """
    names = {name: path for name, path in _listing(domain).items() if side_of(name) == side}
    seen = set(unwanted_hashes)
    documents: list[Document] = []
    n_chars = 0
    for name in sorted(names, key=lambda key: hashlib.sha256(b"order" + key.encode()).digest()):
        if (max_chars is not None and n_chars >= max_chars) or len(documents) == max_documents:
            break
        text = _readable_text(domain.read, names[name])
        if len(text) < MIN_DOCUMENT_CHARS:
            continue
        document = Document(name, text[:MAX_DOCUMENT_CHARS])
        if document.text_hash in seen:
            continue
        seen.add(document.text_hash)
        documents.append(document)
        n_chars += len(document.text)
    return documents


def available_domains(*, min_files: int = 20) -> Iterator[Domain]:
    """Domains of which this machine has at least `min_files` files; those that exist everywhere come first."""
    return (domain for domain in DOMAINS if len(_listing(domain)) >= min_files)


@cache
def _listing(domain: Domain) -> dict[str, Path]:
    """All files of a domain by name; looked up once in a process."""
    return dict(domain.files())


def _readable_text(read: Callable[[Path], str], path: Path) -> str:
    """Text of a file, or "" where it is not readable text: other people's files may be anything."""
    try:
        return read(path).strip()
    except (OSError, UnicodeDecodeError, SyntaxError, ValueError, EOFError):
        return ""


# --- where files are -------------------------------------------------------------------------------------------------


def _walk(
    label: str, root: Path | None, suffixes: tuple[str, ...], skip: tuple[str, ...] = ()
) -> Iterator[tuple[str, Path]]:
    if root is None:
        return
    for folder, inner, files in os.walk(root):  # not Path.rglob: a tenth of the time on the ten thousand files of torch
        place = Path(folder).relative_to(root).as_posix()
        prefix = "" if place == "." else f"{place}/"
        inner[:] = sorted(name for name in inner if not any(part in f"/{prefix}{name}/" for part in skip))
        for name in files:
            if name.endswith(suffixes) and not any(part in f"/{prefix}{name}" for part in skip):
                yield f"{label}/{prefix}{name}", Path(folder, name)


def _stdlib() -> Path:
    return Path(sysconfig.get_paths()["stdlib"])


def _package(name: str) -> Path | None:
    """Folder of an installed package, found without importing it."""
    spec = importlib.util.find_spec(name)
    places = list(spec.submodule_search_locations or ()) if spec else []
    return Path(places[0]) if places else None


def _in_packages(
    names: Iterable[str], suffixes: tuple[str, ...], skip: tuple[str, ...] = ()
) -> Iterator[tuple[str, Path]]:
    for name in names:
        yield from _walk(name, _package(name), suffixes, skip)


_NOT_LIBRARY = ("/site-packages/", "/test/", "/tests/", "/encodings/", "/idle_test/", "/pydoc_data/", "/_sysconfigdata")


def _python_files() -> Iterator[tuple[str, Path]]:
    yield from _walk("stdlib", _stdlib(), (".py",), _NOT_LIBRARY)
    yield from _in_packages(("networkx", "sqlalchemy"), (".py",), ("/tests/",))


def _test_files() -> Iterator[tuple[str, Path]]:
    yield from _in_packages(("pandas", "sympy", "numpy"), (".py",), tuple(_SKIP_UNLESS_TEST))


_SKIP_UNLESS_TEST = ("/__init__.py", "/conftest.py")


def _only_tests(files: Iterable[tuple[str, Path]]) -> Iterator[tuple[str, Path]]:
    return ((name, path) for name, path in files if "/tests/" in name)


def _stub_files() -> Iterator[tuple[str, Path]]:
    return _in_packages(("torch", "numpy", "matplotlib", "flwr", "pyarrow", "yaml", "markupsafe", "regex"), (".pyi",))


_GENERATED_OPS = "/ATen/ops/"


def _header_files() -> Iterator[tuple[str, Path]]:
    return _in_packages(("torch", "pyarrow", "numpy"), (".h", ".hpp", ".cuh"), (_GENERATED_OPS,))


def _doc_files() -> Iterator[tuple[str, Path]]:
    site = Path(sysconfig.get_paths()["purelib"])
    for path in sorted(site.glob("*.dist-info/**/*")) if site.is_dir() else ():
        if path.is_file() and (path.name == "METADATA" or path.name.upper().startswith(("LICEN", "NOTICE", "COPYING"))):
            distribution, _, inner = path.relative_to(site).as_posix().partition(".dist-info/")
            yield f"dist/{distribution.rsplit('-', 1)[0]}/{inner}", path
    yield from _in_packages(("torch", "pandas", "sympy", "matplotlib"), (".py",), ("/tests/",))


def _decimal_files() -> Iterator[tuple[str, Path]]:
    return _walk("stdlib/test", _stdlib() / "test", (".decTest",))


def _codec_files() -> Iterator[tuple[str, Path]]:
    return _walk("stdlib/encodings", _stdlib() / "encodings", (".py",))


def _table_files() -> Iterator[tuple[str, Path]]:
    return _in_packages(("matplotlib", "numpy"), (".afm", ".csv"))


def _cython_files() -> Iterator[tuple[str, Path]]:
    return _in_packages(("pyarrow", "uvloop", "numpy", "sqlalchemy", "httptools"), (".pyx", ".pxd", ".pxi"))


def _man_files() -> Iterator[tuple[str, Path]]:
    for section in ("man1", "man3", "man5", "man7", "man8"):
        yield from _walk(f"man/{section}", Path("/usr/share/man") / section, (".gz",))


def _catalogue_files(language: str) -> Callable[[], Iterator[tuple[str, Path]]]:
    folder = Path("/usr/share/locale") / language / "LC_MESSAGES"
    return lambda: _walk(f"locale/{language}", folder, (".mo",))


# --- how a file becomes text -----------------------------------------------------------------------------------------


def _read_plain(path: Path) -> str:
    return path.read_text(encoding="utf-8")


_HEADER_COMMENT = re.compile(r"\A(?:\s*(?:/\*.*?\*/|(?:(?:#|//|--)[^\n]*\n)+))+", re.DOTALL)


def _read_code(path: Path) -> str:
    """Source text without the licence comment at its top: shared headers would leak between the sides."""
    text = _read_plain(path)
    header = _HEADER_COMMENT.match(text)
    if header and re.search(r"(?i)copyright|licen[cs]e", header.group()):
        text = text[header.end() :]
    return text


def _read_docs(path: Path) -> str:
    """Prose: a licence or a package description as it is; of a Python module, its docstrings."""
    if path.suffix != ".py":
        return _read_plain(path)
    found = (ast.get_docstring(node) for node in _definitions(ast.parse(_read_plain(path))))
    return "\n\n".join(text for text in found if text and len(text) > 200)


def _definitions(module: ast.Module) -> Iterator[ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef]:
    """The module and what it defines, level by level: `ast.walk` without expressions, which are most of the nodes."""
    waiting: deque[ast.AST] = deque([module])
    while waiting:
        node = waiting.popleft()
        for _, value in ast.iter_fields(node):
            if isinstance(value, list):
                waiting.extend(
                    item for item in value if isinstance(item, ast.stmt | ast.excepthandler | ast.match_case)
                )
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def _read_man(path: Path) -> str:
    """Roff source of a man page, without its comments."""
    text = gzip.decompress(path.read_bytes()).decode("utf-8")
    return "\n".join(line for line in text.splitlines() if not line.startswith(('.\\"', "'\\\"")))


def _read_catalogue(path: Path) -> str:
    """Translated messages of a gettext catalogue, without the English originals and the header."""
    with path.open("rb") as file:
        messages = gettext.GNUTranslations(file)._catalog  # type: ignore[attr-defined]  # gettext has no public listing
    return "\n".join(text for key, text in messages.items() if key and isinstance(text, str) and len(text) > 20)


DOMAINS = (
    Domain("python", "Python library code", _python_files, _read_code),
    Domain("docs", "English documentation and licences", _doc_files, _read_docs),
    Domain("headers", "C++ and CUDA headers", _header_files, _read_code),
    Domain("decimals", "tables of decimal arithmetic tests", _decimal_files, _read_code),
    Domain("stubs", "Python type stubs", _stub_files, _read_code),
    Domain("codecs", "character code tables", _codec_files, _read_code),
    Domain("tests", "unit tests of numerical packages", lambda: _only_tests(_test_files()), _read_code),
    Domain("metrics", "font metrics and number tables", _table_files, _read_plain),
    Domain("cython", "Cython sources", _cython_files, _read_code),
    Domain("man", "manual pages (roff)", _man_files, _read_man, is_everywhere=False),
    Domain("german", "German message catalogues", _catalogue_files("de"), _read_catalogue, is_everywhere=False),
    Domain("french", "French message catalogues", _catalogue_files("fr"), _read_catalogue, is_everywhere=False),
    Domain("russian", "Russian message catalogues", _catalogue_files("ru"), _read_catalogue, is_everywhere=False),
)
