"""A token in a file of its own, for programs that start without anybody at a keyboard: `token create --out FILE`.

The file is for its owner alone and is there whole or not at all. Whoever starts a second time finds it and leaves it
as it is: a token that lets nobody in any more is no reason to make another one unasked.
"""

from pathlib import Path

from tinylora import durable
from tinylora.errors import SettingError, StorageError
from tinylora_coordinator import desk
from tinylora_coordinator.folder import RunFolder
from tinylora_coordinator.keys import pin_of

_MOST_BYTES = 1024


def state_of_token_in(root: Path, file: Path, *, role: str, now_s: float) -> str | None:
    """Whether the token in `file` lets anybody in, in a word as `token list` has it; None where there is no file.

    Raises:
        SettingError: There is no run in `root`, or the file holds something else than a token of this run and role.
        StorageError: The file, or the run's folder, cannot be read.
    """
    rows = desk.tokens(root, now_s=now_s)
    try:
        with file.open("rb") as opened:
            parts = opened.read(_MOST_BYTES).decode("ascii", "replace").strip().split(".")
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StorageError(f"{file}: {error.strerror or error}; choose another --out") from None
    row = next((row for row in rows if len(parts) == 4 and row["token_id"] == parts[2]), None)
    if row is None or row["role"] != role:
        raise SettingError(f"{file}: is there, and holds no {role}'s token of this run; choose another --out")
    if role == "worker" and parts[1] != pin_of(RunFolder(root).keys):
        raise SettingError(
            f"{file}: holds a token from before the run's certificate was changed; remove it, and make another one"
        )
    return row["state"]


def check_token_file(file: Path) -> None:
    """Refuse a file that is there or could not be written, before a token is made that nobody would ever see.

    Raises:
        SettingError: It is there.
        StorageError: It could not be written.
    """
    if file.exists() and not file.is_dir():
        raise SettingError(f"{file}: is there already; remove it, choose another --out, or say --if-missing")
    desk.check_output(file)


def write_token_file(file: Path, token: str) -> None:
    """The file holds the token, readable by its owner alone.

    Raises:
        StorageError: It could not be written.
    """
    try:
        durable.replace_file(file, f"{token}\n".encode(), name="folder", mode=0o600)
    except OSError as error:
        raise StorageError(f"{file}: {error.strerror or error}; choose another --out") from None
