"""The one metadata text of a bundle: canonical JSON with its own sum, read as if its writer meant harm."""

import hashlib
import json
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from tinylora import tensors
from tinylora.adapters.spec import AdapterSpec
from tinylora.bundle.contents import StatisticsKind
from tinylora.bundle.signature import Signer, is_signed_by, signature_of
from tinylora.config import MAX_RANK, BaseFacts
from tinylora.errors import BundleError
from tinylora.protocol.documents import Count, Finite, PathText, Sha256
from tinylora.protocol.plain import plain
from tinylora.tree import Topology

FORMAT = 2
FORMATS = (1, 2)
"""Those that are read."""
METADATA_KEY = "tinylora"
AdapterDtype = Literal["BF16", "F16", "F32"]

MAX_LINE = 500
"""Characters of a text for people; a longer one is refused by the reader, and cut by the writer."""
MAX_NOTES = 256
"""Of one leaf."""
MAX_ESCAPES = 100_000
"""Characters beyond ASCII in all: each is looked at by itself."""
MAX_LEAVES = 4096
_MOST = {
    "leaves": MAX_LEAVES,
    "nodes": 2 * MAX_LEAVES,
    "sketched": MAX_LEAVES,
    "projections": 1024,
    "licences": 256,
    "derived_from": 256,
}
"""Of each kind, at most."""
MAX_NESTING = 32
"""Of the report."""
_SUMS = ("metadata_sha256", "signature")
_LATER: dict[str, Any] = {"data_notes": {}, "licences": [], "derived_from": [], "signed_by": "", "signature": ""}
"""Fields that format 1 did not have."""


def as_line(text: str) -> str:
    """A text as a bundle may hold it: one bounded line without anything that is not seen."""
    return text if _is_plain_ascii(text) and len(text) <= MAX_LINE else plain(text, at_most=MAX_LINE)


def _is_plain_ascii(text: str) -> bool:
    return text.isascii() and text.isprintable() and text == " ".join(text.split())


def _check_line(text: str) -> str:
    if as_line(text) != text:
        raise ValueError(f"expected one line of at most {MAX_LINE} characters that can be seen")
    return text


def _check_base(base: BaseFacts) -> BaseFacts:
    _check_line(base.base_id)
    return base


def _check_nesting(report: dict[str, Any]) -> dict[str, Any]:
    level: list[Any] = [report]
    for _ in range(MAX_NESTING):
        level = [inner for value in level for inner in _inside(value)]
        if not level:
            return report
    raise ValueError(f"expected at most {MAX_NESTING} levels")


def _inside(value: Any) -> Iterable[Any]:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list | tuple) else ()


Line = Annotated[str, AfterValidator(_check_line)]
Key = Annotated[str, Field(pattern=r"^([0-9a-f]{64})?$")]


class Description(BaseModel):
    """The metadata of a bundle, but for the format number, the sum over itself and the signature."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    kind: Line
    """Of the adapters, as `AdapterSpec.parse` reads it."""
    run: Line
    base: Annotated[BaseFacts, AfterValidator(_check_base)]
    leaves: tuple[PathText, ...]
    nodes: tuple[PathText, ...]
    """Those that have an adapter."""
    rank: Annotated[int, Field(ge=1, le=MAX_RANK)]
    ranks: dict[str, int] = {}
    """By projection; the others have `rank`."""
    scale: Finite
    dtype: AdapterDtype
    """Of the adapters."""
    policy: Line
    embed_dim: Annotated[int, Field(ge=1)] | None
    """Columns of the projection; None where there is none."""
    statistics: StatisticsKind
    """Whether each leaf has a covariance, or only all together, or nothing is told."""
    sketched: tuple[PathText, ...]
    """Leaves with a count and a mean."""
    contributors: tuple[Line, ...]
    versions: dict[str, Count]
    report: Annotated[dict[str, Any], AfterValidator(_check_nesting)]
    data_notes: dict[PathText, Annotated[tuple[Line, ...], Field(min_length=1, max_length=MAX_NOTES)]]
    licences: tuple[Line, ...]
    derived_from: tuple[Sha256, ...]
    signed_by: Key
    """Public key of the run that signed it; empty where nobody did."""
    tensors: dict[str, Sha256]

    @cached_property
    def topology(self) -> Topology:
        """The tree.

        Raises:
            SettingError: The leaves are none of a full binary tree.
        """
        return Topology(self.leaves)

    @property
    def spec(self) -> AdapterSpec:
        """Kind and ranks of the adapters.

        Raises:
            SettingError: No such kind, or a rank is out of range.
        """
        return AdapterSpec.parse(self.kind, self.rank, self.ranks)


# --- writing ---------------------------------------------------------------------------------------------------------


def metadata_text(description: Description, signer: Signer | None) -> str:
    """The canonical JSON of a description, signed where there is a signer, with its sum.

    `description.signed_by` is the signer's key, or empty.
    """
    fields = description.model_dump(mode="json") | {"format": FORMAT}
    signature = "" if signer is None else signature_of(signed_text(fields), signer)
    fields |= {"signature": signature}
    return canonical(fields | {"metadata_sha256": metadata_sum(fields)})


def metadata_sum(fields: dict[str, Any]) -> str:
    """sha256 of the metadata without the field that holds it: a rule for every format, past and future."""
    return hashlib.sha256(canonical(without(fields, "metadata_sha256")).encode()).hexdigest()


def signed_text(fields: dict[str, Any]) -> str:
    """What a signature is over: the metadata without the two fields that hang on all others."""
    return canonical(without(fields, *_SUMS))


def canonical(fields: dict[str, Any]) -> str:
    """One text for equal fields."""
    return json.dumps(fields, sort_keys=True, separators=(",", ":"), allow_nan=False)


def without(fields: dict[str, Any], *names: str) -> dict[str, Any]:
    """The other fields."""
    return {key: value for key, value in fields.items() if key not in names}


# --- reading ---------------------------------------------------------------------------------------------------------


def parse_metadata(file: Path, text: str | None) -> tuple[int, Description]:
    """Format and description, after the checks of sum and signature.

    Raises:
        BundleError: There are no metadata, they were altered, are of a format that this version does not read, or a
            field is wrong.
    """
    fields = _checked_fields(file, text)
    number = fields.get("format")
    if type(number) is not int or number not in FORMATS:
        raise BundleError(
            f"{file}: a bundle of format {str(number)[:20]!r}, this version of TinyLoRA reads formats "
            f"{' and '.join(map(str, FORMATS))}; install the version that wrote it, or a newer one",
            rule="format",
        )
    _check_crowds(file, fields)
    fields = upgraded(fields) if number < FORMAT else fields
    signature = fields.get("signature", "")
    try:
        description = Description.model_validate(without(fields, "format", *_SUMS))
    except ValidationError as error:
        raise _misfit(file, error) from None
    _check_signature(file, fields, description.signed_by, signature)
    return number, description


def _checked_fields(file: Path, text: str | None) -> dict[str, Any]:
    """The metadata as JSON, after the check of its own sum."""
    if text is None:
        raise BundleError(
            f"{file}: a safetensors file, but no bundle: it has no metadata key {METADATA_KEY!r}", rule="no_metadata"
        )
    if text.count("[") + text.count("{") > tensors.MAX_TENSORS:  # before parsing, which takes memory for each of them
        raise BundleError(
            f"{file}: metadata: expected at most {tensors.MAX_TENSORS} lists and objects", rule="many_values"
        )
    if text.count("\\u") > MAX_ESCAPES:
        raise BundleError(
            f"{file}: metadata: expected at most {MAX_ESCAPES} characters beyond ASCII", rule="many_letters"
        )
    fields = _load_canonical(text)
    if fields is None or fields.get("metadata_sha256") != metadata_sum(fields):
        raise altered(file, "the metadata do not fit their sha256", "metadata_sum")
    return fields


def _check_crowds(file: Path, fields: dict[str, Any]) -> None:
    """Before each of them is looked at: a few words can name billions of tensors."""
    base = fields.get("base")
    crowds = fields | {"projections": base.get("projections") if isinstance(base, dict) else None}
    for name, most in _MOST.items():
        crowd = crowds.get(name)
        if isinstance(crowd, list | dict) and len(crowd) > most:
            raise BundleError(f"{file}: metadata: expected at most {most} {name}, got {len(crowd)}", rule="crowd")


def _load_canonical(text: str) -> dict[str, Any] | None:
    """The object that `text` is the canonical JSON of, or None."""
    try:
        fields = json.loads(text)
        return fields if isinstance(fields, dict) and canonical(fields) == text else None
    except (ValueError, RecursionError):
        return None


def upgraded(fields: dict[str, Any]) -> dict[str, Any]:
    """The metadata of format 1 as those of this one: nothing was told of the text, and statistics were pooled."""
    sketched = fields.get("statistics")
    told = (
        {"statistics": "none", "sketched": []} if sketched is None else {"statistics": "pooled", "sketched": sketched}
    )
    # Nothing bounded names then. A field that came later is left to be refused, under a name that no format has.
    later = {*_LATER, "sketched"}
    old = {f"{name} of a later format" if name in later else name: value for name, value in fields.items()}
    old |= {name: as_line(old[name]) for name in ("run", "policy", "kind") if isinstance(old.get(name), str)}
    base = old.get("base")
    if isinstance(base, dict) and isinstance(base.get("base_id"), str):
        old["base"] = base | {"base_id": as_line(base["base_id"])}
    return old | told | _LATER


def _misfit(file: Path, error: ValidationError) -> BundleError:
    """One sentence on the first field that is wrong; the rule names it only if it is a field of ours."""
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    top = str(first["loc"][0]) if first["loc"] else ""
    where = plain(".".join(str(part) for part in first["loc"]), at_most=200)
    reason = f"{file}: metadata field {where}: {first['msg'].removeprefix('Value error, ')}; no bundle of ours has that"
    return BundleError(reason, rule=f"description.{top}" if top in Description.model_fields else "description")


def _check_signature(file: Path, fields: dict[str, Any], signed_by: str, signature: Any) -> None:
    if not isinstance(signature, str) or bool(signature) != bool(signed_by):
        raise BundleError(
            f"{file}: metadata: expected a signature with the key that made it, or neither; fetch the file again",
            rule="half_signed",
        )
    if signature and not is_signed_by(signed_text(fields), signature, signed_by):
        raise BundleError(
            f"{file}: the signature was not made by key {signed_by[:16]}... over this bundle: somebody altered it; "
            "fetch it again, from the run itself",
            rule="signature",
        )


def altered(file: Path, what: str, rule: str) -> BundleError:
    """The refusal of a file that is not as it was written."""
    return BundleError(f"{file}: altered since it was written: {what}; fetch it again", rule=rule)
