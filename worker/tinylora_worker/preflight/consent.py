"""What a worker sends and what it never sends, in words that its owner can agree to. Pure."""

SENT = (
    "a sketch of your text once: sums from which its topics and frequent words can be inferred",
    "adapters trained on your text: they may reveal passages of it to who has them",
    "losses, counts of tokens and steps, how long a unit took",
    "what this worker can do, the model of its GPU among it, and the name that you chose",
)
NEVER_SENT = ("your files", "their names and paths", "this machine's name", "your user name")
CODE = "only this package runs; the coordinator cannot send code"
QUESTION = "Start? [Y/n] "
SELF_AUDIT_QUESTION = "Start nevertheless? [y/N] "


def consent_lines(name: str) -> list[tuple[str, str]]:
    """Heading and text of each line; `name` is what the operator will see."""
    told = name or "none: the operator sees the number of this worker's key"
    sent = [("Sent", text) if number == 0 else ("", text) for number, text in enumerate(SENT)]
    return [
        *sent,
        ("Never sent", ", ".join(NEVER_SENT)),
        ("Your name", told),
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
