"""What taking part in a run sends and what it never sends, in the words that a worker's owner agrees to.

The worker asks for consent with them, and the run's page on joining says the same.
"""

SENT = (
    "a sketch of your text once: sums from which its topics and frequent words can be inferred",
    "adapters trained on your text: they may reveal passages of it to who has them",
    "losses, counts of tokens and steps, how long a unit took",
    "what this worker can do, and the name that you chose",
    "if you give them, your note on your text and its licence: they stand in the run's log, and are published with its "
    "bundle, for all who use it",
    "while it runs, for all who may look at the run: what it does or why it does not, how fast, the model of its GPU "
    "and its memory, the limits that you set, and that note",
)
NEVER_SENT = ("your files", "their names and paths", "this machine's name", "your user name", "names of your programs")
CODE = "only this package runs; the coordinator cannot send code"
