"""What a worker tells of itself between two updates, for the pages that show who does what. It decides nothing.

A report is sent when the worker's state changes, and every few seconds while it works. It is believed as far as it is
shown: nothing of it enters the run. Texts become plain when the document is made, and once more when it is read.
"""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from tinylora.errors import ProtocolError
from tinylora.protocol.documents import (
    PROTOCOL_VERSION,
    AnyDocument,
    Count,
    DataNote,
    Document,
    Name,
    Nats,
    plain_line,
)
from tinylora.protocol.standstill import Reason, WorkerState

MAX_REPORT_BYTES = 49_152
"""As it travels; the longest lawful report has less."""
MAX_DETAIL, MAX_GPU, MAX_LIMIT, MAX_LINE = 160, 80, 120, 200
"""Characters of each kind of text; longer ones are refused."""
MAX_LIMITS, MAX_LINES = 16, 8


LimitName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,31}$")]
Seconds = Annotated[float, Field(ge=0, le=1e9, allow_inf_nan=False)]


class WorkerReport(Document):
    """One worker's word on itself, at this moment."""

    protocol: Literal[1] = PROTOCOL_VERSION
    state: WorkerState
    reason: Reason | Literal[""] = ""
    """Why it does not work."""
    detail: Annotated[str, Field(max_length=MAX_DETAIL), AfterValidator(plain_line)] = ""
    """Further words to that reason, where they tell nothing of the machine but its limits."""
    resumes_in_s: Seconds | None = None
    """Seconds until it goes on by itself; None where nobody knows."""
    unit_id: Name | Literal[""] = ""
    """The unit under way."""
    step: Count = 0
    n_steps: Count = 0
    tokens_per_s: Annotated[float, Field(ge=0, le=1e12, allow_inf_nan=False)] = 0.0
    """Of late; 0 where nothing is trained."""
    loss: Nats | None = None
    """Training loss of the last step."""
    gpu: Annotated[str, Field(max_length=MAX_GPU), AfterValidator(plain_line)] = ""
    """Model of the device."""
    memory_bytes: Count = 0
    """Of the device, in all; 0 where nobody knows."""
    note: DataNote = ""
    """What the owner chose to say of the text."""
    limits: dict[LimitName, Annotated[str, Field(max_length=MAX_LIMIT), AfterValidator(plain_line)]] = Field(
        default={}, max_length=MAX_LIMITS
    )
    """What the owner allows, by its name; what is not limited is left out."""
    log: tuple[Annotated[str, Field(max_length=MAX_LINE), AfterValidator(plain_line)], ...] = Field(
        default=(), max_length=MAX_LINES
    )
    """Lines for people since the report before, oldest first; empty unless the owner chose to share them."""

    @classmethod
    def from_json(cls: type[AnyDocument], text: str) -> AnyDocument:
        """Read a report from the network.

        Raises:
            ProtocolError: Too long, no JSON, a field unknown, missing or out of range.
        """
        if len(text) > MAX_REPORT_BYTES:
            raise ProtocolError(f"report: expected at most {MAX_REPORT_BYTES} characters, got {len(text)}", rule="long")
        return super().from_json(text)
