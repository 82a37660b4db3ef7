"""Every rule that a bundle's file or a payload can break: `BundleError.rule`, and what comes behind the dot of a code.

A rule's name is for programs and stays; the sentence of an error is for people. `description.<field>` is one rule for
each field of the metadata. The reference is made of these texts (docs/reference/errors.md).
"""

from collections.abc import Mapping

from tinylora.errors import Explanation

_AGAIN = "Fetch it again, from the run itself."
_WRITER = "Whoever wrote it did so wrongly, or changed it later: do not use it. " + _AGAIN
_CUT = "It was cut off, or altered. " + _AGAIN
_NOT_TEXT = "No text gives such numbers: whoever wrote them is broken or lies. Do not use it."

FILE_RULES: Mapping[str, Explanation] = {
    "no_file": Explanation(
        "There is no such file, or a folder or repository has no bundle.safetensors.", "Check the name."
    ),
    "not_readable": Explanation(
        "The system or the safetensors library cannot read the file.", "Check permissions. " + _AGAIN
    ),
    "short": Explanation("The file has fewer than the eight bytes of a header's length.", _CUT),
    "too_long": Explanation(
        "The bytes are more than are taken there.", "Send less; `max_update_mib` is the run's limit."
    ),
    "long_header": Explanation("The header announces more bytes than any header of ours has.", _WRITER),
    "header_cut_off": Explanation("The header announces more bytes than the file has.", _CUT),
    "not_safetensors": Explanation(
        "The header does not begin as JSON: this is no safetensors file.", "Check the name."
    ),
    "utf8": Explanation("The header is no UTF-8.", _CUT),
    "json": Explanation("The header, or the configuration of an adapter, is no JSON.", _CUT),
    "constant": Explanation("The header's JSON holds NaN or Infinity.", _WRITER),
    "too_deep": Explanation("The header's JSON is nested deeper than any of ours.", _WRITER),
    "name_twice": Explanation("A name stands twice in the header, so that two readers may read two things.", _WRITER),
    "many_tensors": Explanation("There are more tensors than any bundle has.", _WRITER),
    "many_values": Explanation("The header or the metadata hold more lists and numbers than any bundle has.", _WRITER),
    "metadata": Explanation("The metadata are no map of texts.", _WRITER),
    "many_metadata": Explanation(
        "There is more than one metadata key.", "It was written by another program. " + _AGAIN
    ),
    "name": Explanation(
        "A tensor's name has other signs than letters, digits, dots, `_` and `-`, or too many.", _WRITER
    ),
    "entry": Explanation("A tensor's entry is not dtype, shape and offsets.", _WRITER),
    "dtype": Explanation("A tensor has a dtype that no file of ours has.", _WRITER),
    "shape": Explanation("A tensor's shape is no list of sizes from 0 up.", _WRITER),
    "huge_shape": Explanation("A tensor's shape has more axes or numbers than any of ours.", _WRITER),
    "offsets": Explanation("A tensor's offsets are no two numbers.", _WRITER),
    "size": Explanation("A tensor's offsets span another length than its dtype and shape take.", _WRITER),
    "hole": Explanation("Bytes between two tensors belong to none.", _WRITER),
    "overlap": Explanation("Two tensors share bytes.", _WRITER),
    "cut_off": Explanation("The file ends before its tensors do.", _CUT),
    "trailing": Explanation("The file goes on behind its tensors.", _WRITER),
    "flag": Explanation("A byte of a tensor of flags is neither 0 nor 1.", _WRITER),
}
"""Of safetensors bytes as we read them: stricter than the library."""

BUNDLE_RULES: Mapping[str, Explanation] = {
    "no_metadata": Explanation("A safetensors file without the metadata key `tinylora`: no bundle.", "Check the name."),
    "many_letters": Explanation("The metadata hold more characters beyond ASCII than any bundle has.", _WRITER),
    "metadata_sum": Explanation("The metadata do not fit their own sha256, or are not canonical JSON.", _CUT),
    "format": Explanation(
        "The bundle is of a format that this version does not read.",
        "Install the version that wrote it, or a newer one.",
    ),
    "crowd": Explanation("The metadata name more leaves, nodes, projections or licences than any bundle has.", _WRITER),
    "description": Explanation("The metadata have a field that no bundle has, or lack one.", _WRITER),
    "half_signed": Explanation("There is a key without a signature, or a signature without a key.", _CUT),
    "signature": Explanation(
        "The signature was not made by the named key over this bundle.", "Somebody altered it. " + _AGAIN
    ),
    "unsigned": Explanation(
        "The bundle is not signed, and `--key` asks for a signature.",
        "Bundles that were derived from others are signed by nobody. Else: " + _AGAIN,
    ),
    "other_key": Explanation(
        "The bundle is signed by another key than `--key` names.",
        "It is another run's, or was altered and signed anew.",
    ),
    "layout": Explanation("The header is sound, but not laid out as TinyLoRA writes it.", _CUT),
    "missing": Explanation("A tensor that the metadata ask for is missing.", _CUT),
    "unexpected": Explanation("There is a tensor that the metadata do not ask for.", _CUT),
    "kind": Explanation("A tensor has another dtype or shape than the metadata ask for.", _CUT),
    "sums": Explanation("The metadata have a sha256 for other tensors than there are.", _CUT),
    "tensor_sum": Explanation("A tensor's bytes do not fit their sha256.", _CUT),
    "contradiction": Explanation("The metadata contradict the tensors in a way without a name of its own.", _CUT),
    "not_finite": Explanation("An adapter, a gate or a statistic holds NaN or infinity.", _WRITER),
    "tree": Explanation("The leaves are none of a full binary tree.", _WRITER),
    "node": Explanation("An adapter, a statistic or a note is of a node that is not in the tree.", _WRITER),
    "projection": Explanation(
        "The routing feature's projection is missing, or not the one that the base needs.", _WRITER
    ),
}
"""Of a bundle's metadata, and of what its tensors must be by them."""

NUMBER_RULES: Mapping[str, Explanation] = {
    "temperature": Explanation("A gate's temperature is not above 0.", _NOT_TEXT),
    "count": Explanation("A histogram holds something else than counts.", _NOT_TEXT),
    "many_counts": Explanation("A histogram holds more scores than any text gives.", _NOT_TEXT),
    "row_count": Explanation("A count of rows is no whole number from 0 (in a bundle: above 0) to 2^53.", _NOT_TEXT),
    "rows_without_count": Explanation("There are sums where no row was counted.", _NOT_TEXT),
    "more_rows_than_tokens": Explanation("The sums are over more rows than the shard has tokens.", _NOT_TEXT),
    "trace": Explanation("The scatter or covariance is larger than features can make it.", _NOT_TEXT),
    "total": Explanation("A sum or mean of features is larger than features can make it.", _NOT_TEXT),
    "moments": Explanation("The square of the sum is larger than count times scatter allows.", _NOT_TEXT),
    "symmetry": Explanation("A covariance is not symmetric.", _NOT_TEXT),
    "weights": Explanation("A gate's averaged weights are larger than any that training gives.", _NOT_TEXT),
    "negative_spread": Explanation("In some direction the spread is negative.", _NOT_TEXT),
}
"""Of statistics and gates, in updates and in bundles."""
