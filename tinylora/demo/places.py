"""Where a command writes: checked before the work, so that an hour of training never ends at an unwritable folder."""

import shutil
from collections.abc import Iterable
from pathlib import Path

from tinylora.errors import StorageError


def prepare_folder(out: Path, names: Iterable[str]) -> None:
    """Make sure `out` can be written; what an earlier command left there under these names is removed.

    Raises:
        StorageError: `out` cannot be written, or is a file.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name in names:
            place = out / name
            if place.is_dir() and not place.is_symlink():
                shutil.rmtree(place)
            else:
                place.unlink(missing_ok=True)
        probe = out / ".writable"
        probe.write_text("")
        probe.unlink()
    except OSError as error:
        raise StorageError(f"{out}: cannot write here: {error.strerror}; choose another folder with --out") from None
