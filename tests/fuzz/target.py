"""What is tried of each file: every way to read a bundle. Only a `BundleError` may come out, with rule and sentence."""

import json
from collections.abc import Callable
from pathlib import Path

from tests.bundle.test_bundle import DEPTH_1, adapter, make
from tests.fuzz.mutations import KEY
from tinylora.bundle import (
    AdapterDtype,
    Bundle,
    LeafStatistics,
    inspect,
    open_bundle,
    read_bundle,
    read_open,
    to_bytes,
    verify,
    write_bundle,
)
from tinylora.errors import BundleError

FORMAT_1 = Path(__file__).parents[1] / "bundle" / "format-1.safetensors"
SOUND = "sound"
MAX_SENTENCE = 1000


class Slipped(AssertionError):
    """Something went through that should not have, or came out in a form that it should not have."""


def seeds() -> dict[str, bytes]:
    """Sound files to begin with: plain, signed, told of in every way, of format 1."""
    whole = make()
    statistics = whole.statistics
    assert statistics is not None
    pooled = LeafStatistics(statistics.counts, statistics.means, pooled=statistics.covariance)
    told: Bundle = make(
        data_notes={"0": ("recipes",), "1": ("letters", "laws")}, licences=("mit",), derived_from=("ab" * 32,)
    )
    return {
        "plain": to_bytes(whole),
        "signed": to_bytes(whole, sign=KEY),
        "told": to_bytes(told),
        "pooled": to_bytes(make(statistics=pooled)),
        "bare": to_bytes(make(statistics=None, nodes={}, report={})),
        "path": to_bytes(make(DEPTH_1, nodes={"": adapter(1), "0": adapter(2)}), dtype="F32"),
        "format-1": FORMAT_1.read_bytes(),
    }


def try_file(file: Path, *, is_thorough: bool = True) -> str:
    """The rule by which the file is refused, or "sound".

    Args:
        file: To be read.
        is_thorough: Whether to look at what the file says of itself, and to verify a sound one and write it again,
            which takes ten times as long.

    Raises:
        Slipped: A sound file that is not written again as it was read, or a refusal without a rule or a short sentence.
    """
    try:
        opened = open_bundle(file)
        if is_thorough:
            json.dumps(inspect(file), allow_nan=False)
        unverified = _rule_of(lambda: read_open(opened, leaves=opened.description.topology.leaves[:1], verify=False))
        bundle = read_open(opened)
    except BundleError as error:
        return _checked(error)
    if unverified:
        raise Slipped(f"sound, but its part is refused by {unverified}")
    if is_thorough:
        _write_again(file, bundle, opened.description.dtype)
    return SOUND


def _write_again(file: Path, bundle: Bundle, dtype: AdapterDtype) -> None:
    verify(file)
    again = file.with_suffix(".again")
    write_bundle(bundle, again, dtype=dtype)
    if inspect(again)["base"] != inspect(file)["base"]:
        raise Slipped("written again, it is another bundle")
    read_bundle(again)


def _rule_of(read: Callable[[], object]) -> str:
    try:
        read()
    except BundleError as error:
        return _checked(error)
    return ""


def _checked(error: BundleError) -> str:
    sentence = str(error)
    if not error.rule or len(sentence) > MAX_SENTENCE or not sentence.isprintable():
        raise Slipped(f"refused by {error.rule!r} with {sentence[:200]!r}")
    return error.rule
