"""`tinylora chat`: what was said goes on, what no longer fits is forgotten, an answer can be stopped."""

import os
import re
import signal
from pathlib import Path

import pytest
import torch

from tests.answering.trees import random_bundle, random_bundle_file
from tests.helpers import byte_tokenizer, tiny_base_model
from tests.model.families import FAMILIES
from tests.worker.terminal import in_terminal, read_until
from tinylora import base_model
from tinylora.answering.chatting import Chat, Terminal
from tinylora.answering.conversation import Conversation
from tinylora.answering.writing import Drawing
from tinylora.errors import DataError
from tinylora.model import TreeModel
from tinylora.reading.chat import Encoded, TokenizerEncoder
from tinylora.reading.layouts import Example, LayoutName, Part

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}{% if m['role'] == 'assistant' %}"
    "{{ eos_token }}{% endif %}\n{% endfor %}{% if add_generation_prompt %}[assistant] {% endif %}"
)


def encoder(template: str | None = None) -> TokenizerEncoder:
    tokenizer = base_model.wrap_tokenizer(byte_tokenizer(), bos="<s>", eos="</s>", pad="<pad>", max_tokens=64)
    tokenizer.chat_template = template
    return TokenizerEncoder(tokenizer)


@pytest.mark.parametrize("template", [None, TEMPLATE])
def test_a_question_is_the_beginning_of_what_is_trained_on(template):
    parts = Part("system", "be"), Part("user", "a"), Part("assistant", "b c"), Part("user", "d")
    asked = encoder(template).question(parts)
    tokens, is_target = trained(template, "messages", *parts, Part("assistant", "e f"))
    assert tokens[: len(asked)] == asked
    assert not is_target[len(asked) - 1] and all(is_target[len(asked) : len(asked) + 4])


def trained(template: str | None, layout: LayoutName, *parts: Part) -> tuple[list[int], list[bool]]:
    """An example as training sees it: tokens, and which of them are to be learned."""
    (found,) = encoder(template).encode([Example("", "", layout, parts)])
    assert isinstance(found, Encoded) and found.is_target is not None
    return found.tokens.tolist(), found.is_target.tolist()


def test_a_prompt_begins_and_does_not_end():
    tokens, _ = trained(None, "prompt+completion", Part("prompt", "ab"), Part("completion", ""))
    assert encoder().question((Part("prompt", "ab"),)) == tokens[:-1]


def test_a_template_that_refuses_says_so():
    with pytest.raises(DataError, match="template refuses this conversation: never"):
        encoder("{{ raise_exception('never') }}").question((Part("user", "a"),))


# --- what fits -------------------------------------------------------------------------------------------------------


def test_the_oldest_turns_are_forgotten():
    talk = Conversation(encoder(), window_tokens=64, max_new_tokens=16)
    _, n_forgotten = talk.ask("x" * 10)
    talk.answered("y" * 5)
    assert n_forgotten == 0 and len(talk.parts) == 2
    ids, n_forgotten = talk.ask("z" * 10)
    assert n_forgotten == 2 and talk.parts == [Part("user", "z" * 10)] and len(ids) + talk.room <= 64
    with pytest.raises(DataError, match=r"this message is \d+ tokens long .* attends to 64, 16 of them"):
        talk.ask("w" * 60)
    assert talk.parts == [Part("user", "z" * 10)]
    talk.reset()
    assert talk.parts == []


# --- a conversation --------------------------------------------------------------------------------------------------


def talk(model: TreeModel, *said: str, stop_after: int | None = None, **options: bool) -> tuple[str, list[str]]:
    """What is answered to these lines, and what is said besides; Ctrl-C at a piece of an answer."""
    lines, written, told = iter(said), [], []

    def read() -> str:
        line = next(lines, None)
        if line is None:
            raise EOFError
        if line == "^C":
            raise KeyboardInterrupt
        return line

    def write(piece: str) -> None:
        written.append(piece)
        if stop_after is not None and len(written) == stop_after:
            raise KeyboardInterrupt

    Chat(model, Drawing(max_new_tokens=12), Terminal(read, write, told.append), **options).run()
    return "".join(written), told


@pytest.fixture(scope="module")
def model() -> TreeModel:
    base = tiny_base_model()
    return TreeModel.from_bundle(random_bundle(base), base)


def test_answers_and_what_leads_to_them(model):
    first, told = talk(model, "", "hi", "hi")
    assert first.endswith("\n") and "no chat template" in told[1]
    again, told = talk(model, "hi", "/reset", "hi", show_route=True)
    assert again.splitlines()[0] == first.splitlines()[0] and "forgotten" in told
    assert sum(bool(re.match(r"\(leaf \d+ \(probability \d+%, weight 100%\)\)", line)) for line in told) == 2


def test_commands(model):
    written, told = talk(model, "/policy", "/policy soft", "/policy x", "/what", "/help", "^C", "/quit", "never said")
    assert written == ""
    assert told[2:4] == ["policy hard", "policy soft"] and told[4].startswith("policy 'x': expected")
    assert told[5].startswith("/what: no such command") and told[6].startswith("/reset") and "Ctrl-D" in told[7]
    talk(model, "/policy hard")


def test_what_no_longer_fits_is_told(model):
    _, told = talk(model, "x" * 12, "y" * 20, "z" * 100)
    assert "(the first 2 messages no longer fit in the base's window and are forgotten)" in told
    assert told[-1].startswith("this message is 1")


def test_a_stopped_answer_is_kept_as_far_as_it_came(model):
    whole, _ = talk(model, "hi")
    written, told = talk(model, "hi", stop_after=3)
    assert "(stopped)" in told and whole.startswith(written.removesuffix("\n")) and len(written) < len(whole)


def test_at_a_real_terminal(tmp_path: Path):
    """A base with a wide window, so that its answer is far from its end when it is stopped."""
    torch.manual_seed(0)
    sizes = FAMILIES["bloom"] | {"vocab_size": 259, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
    tokenizer = base_model.wrap_tokenizer(byte_tokenizer(), bos="<s>", eos="</s>", pad="<pad>", max_tokens=2048)
    base_model.save_base(base_model.new_causal_lm("bloom", sizes), tokenizer, tmp_path / "base", dtype=torch.float32)
    bundle = random_bundle_file(base_model.load_base(tmp_path / "base"), tmp_path)
    options = ("--base", str(tmp_path / "base"), "--threads", "1", "--max-new-tokens", "1000", "--show-route")
    with in_terminal("-m", "tinylora.cli", "chat", str(bundle), *options) as (child, ours, _):
        read_until(ours, lambda shown: shown.endswith(b"> "), timeout_s=60)
        os.write(ours, b"hello\n")
        read_until(ours, lambda shown: b"probability" in shown and len(shown.partition(b"%))")[2]) > 20)
        os.write(ours, b"\x03")
        read_until(ours, lambda shown: b"(stopped)" in shown and shown.rstrip().endswith(b">"))
        os.write(ours, b"/policy\n")
        read_until(ours, lambda shown: b"policy hard" in shown and shown.rstrip().endswith(b">"))
        os.write(ours, b"\x04")
        assert child.wait(30) == 0 != -signal.SIGINT
