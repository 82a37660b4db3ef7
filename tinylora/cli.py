"""`tinylora`: simulate and demo runs, look at bundles, use them."""

import typer

from tinylora.command_line import Version, run
from tinylora.commands import answering, bundles, evaluating, exporting, runs, serving

app = typer.Typer(
    help="Grow one language model together: a tree of LoRA adapters on a frozen base.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
for verbs in (runs, bundles, exporting, answering, evaluating, serving):
    app.add_typer(verbs.app)


@app.callback()
def program(version: Version = False) -> None:
    """Grow one language model together: a tree of LoRA adapters on a frozen base."""


def main() -> None:
    """Entry point of the `tinylora` command."""
    run(app)


if __name__ == "__main__":
    main()
