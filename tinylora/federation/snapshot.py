"""The state of a run as text, so that taking it up need not fold its whole past. Only ever a way to be faster."""

from pydantic import TypeAdapter, ValidationError

import tinylora
from tinylora.federation.state import Campaign

_adapter: TypeAdapter[Campaign] = TypeAdapter(Campaign)


def write_snapshot(state: Campaign) -> str:
    """JSON of the state behind the version of this program; the order of mappings is kept, because sums go by it."""
    return f"{tinylora.__version__}\n{_adapter.dump_json(state).decode()}"


def read_snapshot(text: str) -> Campaign | None:
    """The state, exactly; None where another version wrote it, whose fold may have been another, or it is damaged."""
    version, _, body = text.partition("\n")
    if version != tinylora.__version__:
        return None
    try:
        return _adapter.validate_json(body)
    except ValidationError:
        return None
