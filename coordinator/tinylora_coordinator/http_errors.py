"""Every `error` of an answer of ours that is no success, with its cause and what helps; joins have their own.

An answer's body is `{"error": one of these, "reason": a sentence}`. The reference is made of these texts
(docs/reference/errors.md).
"""

from collections.abc import Mapping

from tinylora.errors import Explanation

_SLOWER = "Ask less often; the header `Retry-After` says how long to wait."

HTTP_ERRORS: Mapping[str, Explanation] = {
    "not_found": Explanation(
        "The address is not public, is spelled in another way than ours, has a query where none is read, or what was "
        "asked for does not exist (yet).",
        "Compare the address with [the routes](protocol.md#routes); for a bundle: the operator or the run's end "
        "publishes one.",
    ),
    "method": Explanation(
        "The address is there, and is asked by another method.", "The header `Allow` or the sentence says by which."
    ),
    "headers": Explanation("The headers have more than 8 KiB together.", "Send fewer, or fewer cookies."),
    "length": Explanation(
        "The body has no `Content-Length`, more than one, or is longer than is taken there (6 MiB on the fleet's "
        "paths, 64 KiB elsewhere).",
        "Send the body whole, with its length, not in chunks. A proxy in front must pass lengths on.",
    ),
    "signature": Explanation(
        "No worker of this run signed this request: the three headers are missing, the key is unknown or was removed, "
        "or the time in them is too far off.",
        "Join first; set the clock. A proxy in front must pass the headers on.",
    ),
    "malformed": Explanation(
        "The body is not the document that is taken there; the sentence names the field.",
        "Install the run's version of tinylora.",
    ),
    "rate": Explanation(
        "Too many joins or sign-ins in vain from one address within a minute (5), reports of one worker (one a "
        "second), or questions that cost much.",
        _SLOWER,
    ),
    "bodies": Explanation(
        "One worker sends more than eight large bodies at once.", "Wait for those under way. " + _SLOWER
    ),
    "streams": Explanation(
        "One address has 24 streams of events open, or all together have 192.", "Close some pages. " + _SLOWER
    ),
    "requests": Explanation(
        "Behind a trusted proxy: one address has 64 requests under way.", "Wait for those under way. " + _SLOWER
    ),
    "readers": Explanation("All places for readers of events are taken.", _SLOWER),
    "busy": Explanation("Too many questions wait for an answer.", _SLOWER),
    "disk": Explanation(
        "The coordinator's disk takes no uploads now: it is full or cannot be written.",
        "The operator frees some space; workers try again by themselves.",
    ),
    "storage": Explanation(
        "A file of the run cannot be read or written now.", "Try again; the operator looks at disk and permissions."
    ),
    "stopping": Explanation("The coordinator is about to stop, or to start again.", "Try again in some seconds."),
    "host": Explanation(
        "The operator's listener was asked by another name than 127.0.0.1, localhost or [::1] with its port, or "
        "through a proxy.",
        "Ask for `http://127.0.0.1:8444/`; from elsewhere by `ssh -L 8444:127.0.0.1:8444 HOST`.",
    ),
    "origin": Explanation(
        "A page of another site made the browser ask this.",
        "Use the dashboard's own page, or a program that is no browser.",
    ),
    "type": Explanation("A body that is no JSON.", "Send `Content-Type: application/json`."),
    "token": Explanation(
        "This run is shown to those who have a token, and none was shown, or it has expired, was revoked, or is of "
        "another run.",
        "Sign in, or send `Authorization: Bearer TOKEN`; `tinylora-coordinator token create --role viewer` makes one.",
    ),
    "role": Explanation(
        "This is for the operator.", "Use the coordinator's own machine, or a token of the role admin."
    ),
    "invalid": Explanation(
        "A field of the body or of the query is missing, unknown or out of range, or the body is no JSON; the sentence "
        "names it.",
        "Compare with `/api/v1/openapi.json`.",
    ),
    "setting": Explanation("An order or a setting makes no sense; the sentence says what was expected.", "Send that."),
    "data": Explanation("What was asked for cannot be made of what the run has.", "The sentence says what is missing."),
    "refused": Explanation(
        "The order was understood, and cannot be carried out as the run stands.", "The sentence says why."
    ),
    "text": Explanation("The pasted text is empty, too long, or no text.", "Paste less, or something else."),
    "no_lookup": Explanation(
        "This run has no tables by which texts are routed.",
        "The operator says `tinylora-coordinator lookup DIR --base BASE`, once.",
    ),
    "range": Explanation(
        "The range begins behind the file's end.", "The file is shorter than you think: ask without a range."
    ),
    "request": Explanation("The request cannot be answered; the status says more.", "Read the sentence."),
    "unforeseen": Explanation(
        "The coordinator has a fault.", "Its log says more. The run itself goes on; please report it."
    ),
}
"""By `error`, in the order in which they are judged."""
