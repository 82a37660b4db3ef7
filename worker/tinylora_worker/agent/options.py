"""What a volunteer said, and how a home remembers it. No torch, no flwr."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from tinylora.errors import SettingError


class Job(BaseModel):
    """The part of the options that a home remembers, so that `run` needs no arguments."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    base: str
    data: tuple[str, ...]
    columns: dict[str, str] = {}
    allow: tuple[str, ...] = ()
    name: str = ""
    device: str = ""
    dtype: str = ""
    quantise: str = ""
    vram_limit_bytes: int = 0
    threads: int = 0
    max_rank: int = 0


@dataclass(frozen=True)
class Options:
    """What a volunteer said."""

    url: str
    """Empty: where this home has joined before."""
    token: str = field(repr=False)
    """Empty: this home has joined before."""
    base: str
    data: tuple[str, ...]
    """Files, folders and globs."""
    home: Path
    columns: Mapping[str, str] = field(default_factory=dict)
    """Role to column, where the columns' names are not found by themselves."""
    allow: tuple[str, ...] = ()
    """Findings of the scan that the owner allows."""
    name: str = ""
    device: str = ""
    """"cpu", "cuda:1", "mps"; empty chooses."""
    dtype: str = ""
    """"bf16", "fp16", "fp32"; empty chooses."""
    quantise: str = ""
    """"int8", "nf4"; empty: as it is."""
    vram_limit_bytes: int = 0
    """0: all that is free."""
    threads: int = 0
    """0: torch's choice."""
    max_rank: int = 0
    """0: any."""

    @property
    def job(self) -> Job:
        """What the home remembers."""
        return Job.model_validate({name: getattr(self, name) for name in Job.model_fields})

    @classmethod
    def remembered(cls, home: Path, job: Job | None, **said: Any) -> "Options":
        """The options of a home that has worked before, with whatever was said anew in place of it.

        Raises:
            SettingError: Base or data were neither said nor remembered.
        """
        known = {} if job is None else dict(job)
        known |= {name: value for name, value in said.items() if value not in (None, "", (), {}, 0)}
        for needed in ("base", "data"):
            if not known.get(needed):
                raise SettingError(f"{home}: does not know its {needed} yet; say --{needed}, once is enough")
        return cls(url="", token="", home=home, **known)
