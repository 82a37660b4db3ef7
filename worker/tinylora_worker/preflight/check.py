"""One check's outcome: what was found, what is needed, and what cures it."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from tinylora.errors import SettingError
from tinylora_worker.preflight.codes import CODES, CheckName

CheckStatus = Literal["ok", "warn", "fail", "skip"]
NAMES: tuple[CheckName, ...] = get_args(CheckName)


@dataclass(frozen=True)
class Check:
    """What one check came to; `needed`, `cure` and `code` are empty where there is nothing to do."""

    name: CheckName
    status: CheckStatus
    found: str
    needed: str = ""
    cure: str = ""
    code: str = ""

    @property
    def exit_code(self) -> int:
        """What a command ends with if this is the first that fails."""
        return (CODES[self.code].exit_code or 1) if self.status == "fail" else 0


def skipped(name: CheckName, why: str) -> Check:
    """It was not made."""
    return Check(name, "skip", why)


def exit_code_of_checks(checks: Iterable[Check]) -> int:
    """0 if none fails, else of the first that does."""
    return next((check.exit_code for check in checks if check.status == "fail"), 0)


def in_order(checks: Iterable[Check]) -> list[Check]:
    """As they are told."""
    return sorted(checks, key=lambda check: NAMES.index(check.name))


def as_document(checks: Sequence[Check]) -> dict[str, Any]:
    """For programs: `{"checks": [{"name", "status", "found", "needed", "cure", "code"}]}`."""
    return {"checks": [asdict(check) for check in checks]}


def parse_skips(names: Iterable[str]) -> frozenset[CheckName]:
    """The checks that `--skip-check` names, one by one; there is no word for all.

    Raises:
        SettingError: There is no such check.
    """
    wanted = list(names)
    strange = next((name for name in wanted if name not in NAMES), None)
    if strange is not None:
        raise SettingError(f"--skip-check {strange}: no such check; expected one of {', '.join(NAMES)}")
    return frozenset(name for name in NAMES if name in wanted)
