"""Every reason for which an update is refused or a worker gets no more units, with its cause and what helps.

The codes are those of `acceptance.Code`; what a code is held against, `standing.CLASS_OF` says. The reference is made
of these texts (docs/reference/errors.md).
"""

from collections.abc import Mapping

from tinylora.errors import Explanation
from tinylora.federation.acceptance import Code

_OTHER_PROGRAM = "Install the run's version of tinylora; if that is so already, tell the operator."
_ODD_MACHINE = (
    "Look for a faulty machine or a changed program: memory, driver, precision. A worker of the run's own version does "
    "not send this."
)

REFUSALS: Mapping[Code, Explanation] = {
    Code.TOO_LARGE: Explanation(
        "The document has more than a million characters, or the payload more than `max_update_mib`.",
        "The operator raises `max_update_mib` before the first `serve`, or starts a run of a lower rank.",
    ),
    Code.BAD_DOCUMENT: Explanation(
        "The update's document is no JSON, has a field that is unknown, missing or out of range, or is not spelled in "
        "the canonical way. The rule names the field.",
        _OTHER_PROGRAM,
    ),
    Code.UNKNOWN_UNIT: Explanation(
        "The update names a unit that the run never gave out.",
        "Two homes may have been mixed up, or the home is one of another run: join again with a home of its own.",
    ),
    Code.DUPLICATE: Explanation(
        "The update was accepted before; its receipt was lost on the way.",
        "Nothing to do: the worker asks for the receipt again.",
    ),
    Code.LEASE_CLOSED: Explanation(
        "The unit was settled, its node has moved on, or it was leased to somebody else after its deadline.",
        "Nothing to do: the worker goes on with the next unit. If it happens often, the machine is too slow for "
        "`deadline_slack`, or pauses for long within a unit.",
    ),
    Code.FOREIGN_UNIT: Explanation(
        "The unit is leased to one worker, and the update names or comes from another.",
        "Each worker has a home of its own: never copy a home to a second machine.",
    ),
    Code.WRONG_NONCE: Explanation(
        "The update does not repeat the nonce of the lease, so it was made for an earlier one or copied.",
        "Never copy a home to a second machine; a worker of the run's own version repeats it.",
    ),
    Code.WRONG_UNIT: Explanation(
        "The update is for another run, kind of unit, node, version or number of steps than the lease. The rule names "
        "which.",
        _OTHER_PROGRAM,
    ),
    Code.BAD_SIGNATURE: Explanation(
        "The signature is missing, or was not made by the worker's key over this very document.",
        "Something between the two changed it, or somebody else sent it. Nothing is held against the worker: it is not "
        "proven to be from it.",
    ),
    Code.BAD_HASH: Explanation(
        "The payload is not the one whose sha256 stands in the signed document.",
        "A damaged disk or a proxy that alters bodies: check the first, leave the second out.",
    ),
    Code.BAD_PAYLOAD: Explanation(
        "The payload is no safetensors file by our rules; the rule says which is broken.",
        _OTHER_PROGRAM,
    ),
    Code.BAD_MANIFEST: Explanation(
        "A tensor is missing, unexpected, or of another dtype or shape than the unit asks for; or the document says "
        "other things of the payload than are in it.",
        "The worker may have trained with another rank or base: let it join again. " + _OTHER_PROGRAM,
    ),
    Code.NOT_FINITE: Explanation(
        "An adapter, a statistic or a gate holds NaN or infinity.",
        "Lower `learning_rate` before the first `serve` if many workers report it; if it is one machine, try `--dtype "
        "fp32` there.",
    ),
    Code.BAD_STATISTICS: Explanation(
        "Sums, counts or histograms cannot be those of any text; the rule says which condition they break.",
        _ODD_MACHINE,
    ),
    Code.TOO_FAR: Explanation(
        "An adapter moved further than so many steps at this learning rate can move it, ten times over.",
        _ODD_MACHINE,
    ),
    Code.SHARD_TOO_SMALL: Explanation(
        "The worker's text has fewer windows than `min_sequences`: its sums would tell too much of a single text.",
        "Add text, and join again; or the operator starts a run with a lower `min_sequences`.",
    ),
    Code.RANK_TOO_LOW: Explanation(
        "The worker cannot train adapters of the run's rank, and they are not nested, so no part of them is of use.",
        "Take `--max-rank` away or allow more memory; or join a run of nested adapters.",
    ),
    Code.BAD_PROBE: Explanation(
        "A vote is missing, was not asked for, or its sums cannot be those of the held-out windows.",
        _ODD_MACHINE,
    ),
    Code.WORSE_ON_HELDOUT: Explanation(
        "The median of the other workers found the update worse on their own held-out text than what it would replace, "
        "by more than `probe_tolerance`.",
        "Once is chance. If it goes on, the worker's text is unlike what is routed to its leaf, or harmful: look at it "
        "with `tinylora-worker data check`.",
    ),
    Code.DECLINED: Explanation(
        "The worker itself said that it cannot do the unit: its base or its text does not fit the run.",
        "The reason stands beside the code, in the worker's words; cure that, and join again.",
    ),
}
"""Of an update. In the log and in receipts a code may be followed by a rule: `bad_payload.overlap`."""

QUARANTINES: Mapping[str, Explanation] = {
    "strikes": Explanation(
        "Three of the worker's latest ten results were refused for faults or harm.",
        "The worker gets no more units. The operator looks at its log, and may let it join again with a new home.",
    ),
    "forgery": Explanation(
        "A message that is proven to come from the worker's own key claims what is not so.",
        "The worker gets no more units, at once. `workers revoke` takes out what it taught the run.",
    ),
    "routing_capture": Explanation(
        "The gates would send more of other workers' text to this worker's leaf than `max_leaf_share` allows.",
        "The worker gets no more units and its sums are left out. If its text really is what everybody else has, raise "
        "`max_leaf_share` in a new run.",
    ),
}
"""Of a worker that gets no more units."""
