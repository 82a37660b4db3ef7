"""A bundle that answers: `generate` for a prompt or files of them, `chat` for a conversation."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tinylora.command_line import ending
from tinylora.commands.options import DEMO_BASE, AsJson, BundleBase, BundleFile, Quantise, Threads, print_json

if TYPE_CHECKING:
    from tinylora.answering.questions import Question
    from tinylora.answering.writing import Drawing, OnBatch

    Answer = Callable[..., list[dict[str, Any]]]
    """`answer_questions` or `answer_from_servers`, with what answers."""

app = typer.Typer()

_DRAW, _LOAD = "Drawing", "Loading"
AnyPolicy = Annotated[
    str | None,
    typer.Option(
        "--policy", help="soft, top2, hard, elastic; also hard@window:64, hard@sequence:32; default: the bundle's."
    ),
]
MaxNewTokens = Annotated[int, typer.Option("--max-new-tokens", min=1, help="Longest answer.", rich_help_panel=_DRAW)]
Temperature = Annotated[
    float,
    typer.Option(
        "--temperature", min=0, help="How freely tokens are drawn; 0: always the likeliest.", rich_help_panel=_DRAW
    ),
]
TopP = Annotated[
    float,
    typer.Option(
        "--top-p", min=0.01, max=1, help="Draw among the likeliest that hold this share.", rich_help_panel=_DRAW
    ),
]
TopK = Annotated[
    int | None, typer.Option("--top-k", min=1, help="Draw among so many of the likeliest.", rich_help_panel=_DRAW)
]
Seed = Annotated[
    int,
    typer.Option("--seed", min=0, help="Seed of the draws; one prompt's hang on no other's.", rich_help_panel=_DRAW),
]
Stop = Annotated[
    list[str] | None,
    typer.Option("--stop", help="Text that ends an answer; give it several times.", rich_help_panel=_DRAW),
]
Device = Annotated[
    str, typer.Option("--device", help="Where it runs: auto, cpu, cuda, cuda:1, mps.", rich_help_panel=_LOAD)
]
Dtype = Annotated[
    str,
    typer.Option(
        "--dtype", help="Number type of the base: fp32, bf16, fp16; auto: as it is stored.", rich_help_panel=_LOAD
    ),
]
Leaves = Annotated[
    str | None,
    typer.Option("--leaves", help="Load these alone, such as 00,1: leaves or subtrees.", rich_help_panel=_LOAD),
]
DeviceMap = Annotated[
    str | None,
    typer.Option(
        "--device-map",
        help="Leaves on devices of their own: 0=cuda:0,1=cuda:1, auto, auto:2, or a .toml or .json file of such pairs.",
        rich_help_panel=_LOAD,
    ),
]
NoVerify = Annotated[
    bool,
    typer.Option("--no-verify", help="Do not compare the bundle's numbers with their sums.", rich_help_panel=_LOAD),
]


@app.command(epilog=ending("tinylora generate bundle.safetensors --prompt 'Once upon a time'", 2, 3, 4, 5, 8))
def generate(
    bundle: BundleFile,
    prompt: Annotated[str | None, typer.Option("--prompt", help="Text to continue, shown as it is written.")] = None,
    files: Annotated[
        list[Path] | None,
        typer.Option("--in", help="Prompts: text, one a line, or rows with prompt or messages; give it several times."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Answers to --in, a line of JSON each; default: standard output.")
    ] = None,
    base: BundleBase = None,
    policy: AnyPolicy = None,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Prompts at once, of any leaves.")] = 8,
    max_new_tokens: MaxNewTokens = 64,
    temperature: Temperature = 0.0,
    top_p: TopP = 1.0,
    top_k: TopK = None,
    seed: Seed = 0,
    stop: Stop = None,
    device: Device = "auto",
    dtype: Dtype = "fp32",
    leaves: Leaves = None,
    device_map: DeviceMap = None,
    no_verify: NoVerify = False,
    threads: Threads = 2,
    quantise: Quantise = None,
    as_json: AsJson = False,
) -> None:
    """Continue a text, or files of prompts and conversations; every token goes to its own leaf."""
    from tinylora.answering.opening import open_servers, open_tree
    from tinylora.answering.questions import read_questions
    from tinylora.answering.served import answer_from_servers
    from tinylora.answering.writing import Drawing, answer_questions, place_for_lines
    from tinylora.errors import SettingError

    _check_what_is_asked(prompt, files, out)
    if device_map is not None and (device != "auto" or leaves is not None):
        raise SettingError("--device-map: says where every leaf lies; leave --device and --leaves out")
    questions = read_questions(files or []) if prompt is None else []
    drawing = Drawing(max_new_tokens, temperature, top_p, top_k, seed, tuple(stop or ()))
    if "" in drawing.stop:
        raise SettingError("--stop: an empty text would end every answer at once")
    loading: dict[str, Any] = {
        "demo_base": DEMO_BASE, "policy": policy, "dtype": dtype, "verify": not no_verify, "quantise": quantise,
        "threads": threads,
    }  # fmt: skip
    with ExitStack() as stack:
        stream = sys.stdout if out is None else stack.enter_context(place_for_lines(out))
        if device_map is None:
            model = open_tree(bundle, base, device=device, leaves=leaves, **loading)
            answer = partial(answer_questions, model, batch_size=batch_size)
        else:
            servers = stack.enter_context(open_servers(bundle, base, device_map, batch_size=batch_size, **loading))
            answer = partial(answer_from_servers, servers)
        if prompt is not None:
            _one(answer, prompt, drawing, as_json=as_json)
        else:
            _many(answer, questions, drawing, stream)


@app.command(epilog=ending("tinylora chat bundle.safetensors --show-route", 2, 4, 5))
def chat(
    bundle: BundleFile,
    base: BundleBase = None,
    policy: AnyPolicy = None,
    show_route: Annotated[bool, typer.Option("--show-route", help="Say which leaf gives each answer.")] = False,
    max_new_tokens: MaxNewTokens = 256,
    temperature: Temperature = 0.0,
    top_p: TopP = 1.0,
    top_k: TopK = None,
    seed: Seed = 0,
    stop: Stop = None,
    device: Device = "auto",
    dtype: Dtype = "fp32",
    leaves: Leaves = None,
    no_verify: NoVerify = False,
    threads: Threads = 2,
    quantise: Quantise = None,
) -> None:
    """Talk with a bundle: answers as they are written; /help lists what can be said besides."""
    from tinylora.answering.chatting import Chat, Terminal
    from tinylora.answering.opening import open_tree
    from tinylora.answering.writing import Drawing

    model = open_tree(
        bundle, base, demo_base=DEMO_BASE, policy=policy, device=device, dtype=dtype, leaves=leaves,
        verify=not no_verify, quantise=quantise, threads=threads,
    )  # fmt: skip
    drawing = Drawing(max_new_tokens, temperature, top_p, top_k, seed, tuple(stop or ()))
    Chat(model, drawing, Terminal.of_process(), show_route=show_route).run()


def _check_what_is_asked(prompt: str | None, files: list[Path] | None, out: Path | None) -> None:
    from tinylora.errors import SettingError

    if (prompt is None) == (not files):
        raise SettingError("generate: expected either one text with --prompt, or files with --in")
    if out is not None and prompt is not None:
        raise SettingError("--out: for files with --in; a --prompt is answered on standard output")
    if out is not None and any(out.resolve() == file.resolve() for file in files or []):
        raise SettingError(f"--out {out}: is one of the files that are read; choose another name")


def _one(answer: "Answer", prompt: str, drawing: "Drawing", *, as_json: bool) -> None:
    from tinylora.answering.questions import prompt_question

    def show(piece: str) -> None:
        sys.stdout.write(piece)
        sys.stdout.flush()

    on_text = None if as_json else show
    (found,) = answer([prompt_question(prompt)], drawing, on_text=on_text)
    if as_json:
        print_json(found)
    else:
        typer.echo()


def _many(answer: "Answer", questions: "list[Question]", drawing: "Drawing", stream: Any) -> None:
    from tinylora.answering.writing import line_of

    begun, n_written = time.monotonic(), 0
    with _progress(len(questions)) as advance:

        def on_batch(n_questions: int, n_tokens: int) -> None:
            nonlocal n_written
            n_written += n_tokens
            advance(n_questions, n_tokens)

        answers = answer(questions, drawing, on_batch=on_batch)
    stream.writelines(line_of(found) + "\n" for found in answers)
    seconds = max(time.monotonic() - begun, 1e-9)
    n_leaves = len({found["leaf"] for found in answers})
    typer.echo(
        f"{len(answers)} prompts of {n_leaves} leaves, {n_written} new tokens, {n_written / seconds:.0f} tokens/s",
        err=True,
    )


@contextmanager
def _progress(n_questions: int) -> "Iterator[OnBatch]":
    """A bar on standard error where somebody looks at it."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn("answering"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=n_questions)
        yield lambda n_answered, _n_tokens: bar.advance(task, n_answered)
