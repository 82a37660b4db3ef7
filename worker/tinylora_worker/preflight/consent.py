"""What a worker's owner is asked before it begins. Pure; what is sent stands in `tinylora.protocol.consent`."""

from tinylora.protocol.consent import CODE, NEVER_SENT, SENT

QUESTION = "Start? [Y/n] "
SELF_AUDIT_QUESTION = "Start nevertheless? [y/N] "


def consent_lines(name: str, note: str = "", licence: str = "", *, shares_log: bool = False) -> list[tuple[str, str]]:
    """Heading and text of each line; name, note and licence are what others will see."""
    told = name or "none: the operator sees the number of this worker's key"
    published = "shown to all who may look at the run, published with its bundle, and kept"
    noted = f"{note} ({published})" if note else "none; say --note to give one"
    licensed = f"{licence} ({published})" if licence else "not told; say --data-licence to tell it"
    log = "its lines are shared, without paths, addresses and names" if shares_log else "stays here"
    sent = [("Sent", text) if number == 0 else ("", text) for number, text in enumerate(SENT)]
    return [
        *sent,
        ("Never sent", ", ".join(NEVER_SENT)),
        ("Your name", told),
        ("Your note", noted),
        ("Its licence", licensed),
        ("Its log", log),
        ("Code", CODE),
    ]


def is_yes(answer: str, *, default: bool = True) -> bool | None:
    """What somebody meant; None where it was neither yes nor no."""
    word = answer.strip().lower()
    if not word:
        return default
    if word in ("y", "yes", "j", "ja"):
        return True
    return False if word in ("n", "no", "nein") else None
