"""A conversation with a tree at a terminal: answers as they are written, commands, Ctrl-C for an answer too many."""

import sys
from collections.abc import Callable
from dataclasses import dataclass, replace

from tinylora.answering.conversation import Conversation
from tinylora.answering.leaves import answering_leaf
from tinylora.answering.writing import Drawing
from tinylora.errors import DataError, SettingError
from tinylora.generation import continue_prompts, row_seed
from tinylora.model import TreeModel
from tinylora.reading.chat import PLAIN_TEMPLATE, TokenizerEncoder
from tinylora.routing.decision import Policy

HELP = "/reset forgets what was said · /policy shows, /policy hard sets · /quit or Ctrl-D ends · Ctrl-C stops an answer"


@dataclass
class Terminal:
    """Where a conversation is held."""

    read: Callable[[], str]
    """The next line; raises EOFError at the end."""
    write: Callable[[str], None]
    """Pieces of answers."""
    tell: Callable[[str], None]
    """Everything else, a line each."""

    @classmethod
    def of_process(cls) -> "Terminal":
        """Lines from standard input, answers to standard output, talk to standard error; a prompt where somebody is."""
        is_there = sys.stdin.isatty()
        if is_there:
            import readline  # noqa: F401  (lines can be edited and called back)

        def write(piece: str) -> None:
            sys.stdout.write(piece)
            sys.stdout.flush()

        def tell(line: str) -> None:
            print(line, file=sys.stderr, flush=True)

        return cls(lambda: input("> ") if is_there else _line(), write, tell)


def _line() -> str:
    line = sys.stdin.readline()
    if not line:
        raise EOFError
    return line.rstrip("\n")


class Chat:
    """A tree that is talked to.

    Args:
        model: It.
        drawing: How answers are written.
        terminal: Where.
        show_route: Whether to say before each answer which leaf gives it.
    """

    def __init__(self, model: TreeModel, drawing: Drawing, terminal: Terminal, *, show_route: bool = False) -> None:
        self._model, self._terminal, self._show_route = model, terminal, show_route
        encoder, window = TokenizerEncoder(model.base.tokenizer), model.base.facts.max_window_tokens
        self._conversation = Conversation(encoder, window, drawing.max_new_tokens)
        self._drawing, self._n_answers = replace(drawing, max_new_tokens=self._conversation.room), 0
        self._is_plain = encoder.template == "plain"

    def run(self) -> None:
        """Talk until the end of input or `/quit`."""
        tell = self._terminal.tell
        tell(f"{len(self._model.nodes)} nodes, policy {self._model.policy}; /help lists commands, Ctrl-D ends")
        if self._is_plain:
            tell(f"this base has no chat template, so it goes on from plain text, written {PLAIN_TEMPLATE}")
        while True:
            try:
                text = self._terminal.read().strip()
            except EOFError:
                return
            except KeyboardInterrupt:
                tell("(/quit or Ctrl-D ends)")
                continue
            if text in ("/quit", "/exit"):
                return
            if text.startswith("/"):
                self._command(text)
            elif text:
                self._answer(text)

    def _command(self, text: str) -> None:
        tell = self._terminal.tell
        name, _, value = text.partition(" ")
        if name == "/reset":
            self._conversation.reset()
            tell("forgotten")
        elif name == "/policy":
            try:
                self._model.policy = Policy.parse(value.strip()) if value.strip() else self._model.policy
                tell(f"policy {self._model.policy}")
            except SettingError as error:
                tell(str(error))
        else:
            tell(HELP if name == "/help" else f"{name}: no such command. {HELP}")

    def _answer(self, text: str) -> None:
        tell = self._terminal.tell
        try:
            ids, n_forgotten = self._conversation.ask(text)
        except DataError as error:
            tell(str(error))
            return
        if n_forgotten:
            tell(f"(the first {n_forgotten} messages no longer fit in the base's window and are forgotten)")
        if self._show_route:
            tell(f"({answering_leaf(self._model, ids) or 'the base answers: no leaf was chosen yet'})")
        written: list[str] = []
        try:
            self._write(ids, written)
        except KeyboardInterrupt:
            self._terminal.write("\n")
            tell("(stopped)")
        self._conversation.answered("".join(written).strip())

    def _write(self, ids: list[int], written: list[str]) -> None:
        def take(_row: int, piece: str) -> None:
            piece = piece if written else piece.lstrip(" ")
            if piece:
                written.append(piece)
                self._terminal.write(piece)

        options = self._drawing.options(is_plain_chat=self._is_plain)
        self._n_answers += 1
        seed = row_seed(self._drawing.seed, self._n_answers)
        continue_prompts(self._model, [ids], seed=[seed], on_text=take, **options)
        self._terminal.write("\n")
