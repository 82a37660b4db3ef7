"""Write the API's description to `coordinator/web/openapi.json`, from which `npm run types` makes the page's types.

python -m tinylora_coordinator.dashboard.openapi            # write it
python -m tinylora_coordinator.dashboard.openapi --check    # tell whether it is as it should be, by exit code
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from tinylora_coordinator.dashboard.app import create_app
from tinylora_coordinator.dashboard.services import Services

FILE = Path(__file__).resolve().parents[2] / "web" / "openapi.json"


def describe() -> str:
    """The description as it should be in the file."""
    nothing: Any = None  # describing asks nobody anything
    services = Services(
        views=nothing, look_up=nothing, artifacts=nothing, admin=nothing, join=nothing, access=nothing
    )  # fmt: skip
    return json.dumps(create_app(services).openapi(), indent=1, sort_keys=True) + "\n"


def is_stale(file: Path = FILE) -> bool:
    """Whether the file has to be written anew."""
    return not file.is_file() or file.read_text(encoding="utf-8") != describe()


def main(arguments: list[str] | None = None) -> int:
    """Write, or check; 1 where the check fails."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing")
    if parser.parse_args(arguments).check:
        if is_stale():
            print(f"{FILE}: stale; python -m {__spec__.name} writes it anew", file=sys.stderr)
            return 1
    elif is_stale():
        FILE.write_text(describe(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
