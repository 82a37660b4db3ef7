"""A bundle under lm-evaluation-harness: its tasks, its scoring and its numbers, with our model under its own HFLM.

`TreeLM` replaces what HFLM asks of the model and nothing else. Log-likelihoods come in batches padded on the right,
without a mask: neither attention nor the router looks ahead, so nothing before the padding can see it. A text that is
longer than the base's window is read in HFLM's windows, but the router's state goes on from one to the next, because a
reader of the text would have read it all; a model that is fixed to one leaf gives exactly HFLM's numbers.
"""

import contextlib
import copy
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lm_eval
import torch
from lm_eval.models import huggingface
from lm_eval.tasks import TaskManager
from torch import Tensor

from tinylora.errors import DataError, SettingError
from tinylora.generation import continue_prompts, left_pad
from tinylora.model import TreeModel
from tinylora.report.costs import costs_at_a_token
from tinylora.routing.decision import Decision, Policy, named_policies
from tinylora.routing.policy import RouterState
from tinylora.tree import NodePath

SEED = 0
"""Of drawn tokens, where a task asks for some."""
BOOTSTRAP_ITERS = 100_000  # lm-eval's own
_HFLM: Any = huggingface.HFLM  # what its decorators leave of types says less than nothing
_simple_evaluate: Any = lm_eval.simple_evaluate


class TreeLM(_HFLM):
    """HFLM whose passes are a `TreeModel`'s.

    Args:
        tree: Routes as it is set to when a request is answered.
        batch_size: Rows of a pass.
        add_bos_token: Whether texts begin with the base's begin token; None is as its tokenizer does.
        clock: Seconds.
    """

    def __init__(
        self,
        tree: TreeModel,
        *,
        batch_size: int = 8,
        add_bos_token: bool | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        super().__init__(
            pretrained=tree.base.model,
            backend="causal",
            tokenizer=copy.deepcopy(tree.base.tokenizer),  # HFLM gives it a padding token where it has none
            max_length=tree.base.facts.max_window_tokens,
            batch_size=batch_size,
            add_bos_token=add_bos_token,
        )
        self.tree, self.clock = tree, clock
        self.n_tokens, self.seconds = 0, 0.0
        """Of all passes so far; tokens with padding."""

    def get_model_info(self) -> dict[str, Any]:
        """Nothing: HFLM would ask the hub for a model of this name."""
        return {}

    @torch.no_grad()
    def _model_call(self, inps: Tensor, attn_mask: Tensor | None = None, labels: Tensor | None = None) -> Tensor:
        with self._counted(inps):
            return self.tree(inps).logits

    def _model_generate(self, context: Tensor, max_length: int, stop: list[str], **options: Any) -> Tensor:
        """Prompts as they came, padded on the left, and what was added, padded on the right."""
        mask = options.pop("attention_mask", torch.ones_like(context)).bool()
        prompts = [row[real].tolist() or [self.prefix_token_id] for row, real in zip(context, mask, strict=True)]
        with self._counted(context):
            found = continue_prompts(
                self.tree, prompts, max_new_tokens=max_length - context.shape[1], stop=stop, **_draws(options)
            )
        self.n_tokens += sum(len(row.tokens) for row in found)
        width = max(len(row.tokens) for row in found)
        fill = self.tokenizer.pad_token_id
        added = [[*row.tokens, *[fill] * (width - len(row.tokens))] for row in found]
        return torch.cat([context, torch.tensor(added, device=context.device)], dim=1)

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        """Log-likelihood of whole texts, in HFLM's windows; the router's state goes on from window to window."""
        windows = [
            window for number, request in enumerate(requests) for window in self._windows(number, request.args[0])
        ]
        totals = [0.0] * len(requests)
        for start in range(0, len(windows), int(self.batch_size)):
            group = windows[start : start + int(self.batch_size)]
            for window, nats in zip(group, self._nats(group), strict=True):
                totals[window.request] -= nats
        for request, total in zip(requests, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return totals

    def _windows(self, request: int, text: str) -> "Iterator[_Window]":
        """Where one ends the next begins to predict; each reads as much before that as the base attends to."""
        tokens = [self.prefix_token_id, *self.tok_encode(text)]
        longest, n_predicted = self.max_length, len(tokens) - 1
        for begin in range(0, n_predicted, longest):
            end = min(begin + longest, n_predicted)
            start = max(0, end - longest)
            yield _Window(request, tokens[:start], tokens[start : end + 1], end - begin)

    def _nats(self, windows: "Sequence[_Window]") -> list[float]:
        ids = [torch.tensor(window.tokens) for window in windows]
        batch = torch.nn.utils.rnn.pad_sequence(ids, batch_first=True).to(self.device)
        with self._counted(batch):
            nll, _ = self.tree.token_nll(batch, state=self._state_after([window.before for window in windows]))
        ends = [len(window.tokens) - 1 for window in windows]
        return [
            float(row[end - window.n_predicted : end].double().sum())
            for row, end, window in zip(nll, ends, windows, strict=True)
        ]

    @contextlib.contextmanager
    def _counted(self, tokens: Tensor) -> Iterator[None]:
        start = self.clock()
        yield
        self.n_tokens, self.seconds = self.n_tokens + tokens.numel(), self.seconds + self.clock() - start

    def _state_after(self, texts: Sequence[Sequence[int]]) -> RouterState | None:
        """Of the router, which needs no pass of the base for it."""
        if self.tree.router is None or not any(texts):
            return None
        ids, mask = left_pad(texts)
        where = self.tree.router.tau.device
        _, state = self.tree.router(ids.to(where), mask=mask.bool().to(where), policy=self.tree.policy)
        return state


@dataclass(frozen=True)
class _Window:
    """A part of a text: what lies before it, what is read, and how many of its last tokens are predicted."""

    request: int
    before: list[int]
    tokens: list[int]
    n_predicted: int


def _draws(options: dict[str, Any]) -> dict[str, Any]:
    """HFLM's options of generation as ours."""
    known = {"do_sample", "temperature", "top_p", "top_k"}
    strange = sorted(set(options) - known)
    if strange:
        raise SettingError(f"lm-eval: a task asks for {strange[0]} in generation; we have {', '.join(sorted(known))}")
    is_greedy = options.get("do_sample") is False
    temperature = 0.0 if is_greedy else options.get("temperature") or 0.0
    return {"temperature": temperature, "top_p": options.get("top_p", 1.0), "top_k": options.get("top_k"), "seed": SEED}


# --- tasks -----------------------------------------------------------------------------------------------------------


def evaluate_on_tasks(
    file: Path,
    base_where: str | Path,
    tasks: Sequence[str],
    *,
    policies: Sequence[str] = ("soft",),
    leaves: Sequence[NodePath] = (),
    with_base: bool = False,
    include_path: Path | None = None,
    limit: int | None = None,
    num_fewshot: int | None = None,
    batch_size: int = 8,
    add_bos_token: bool | None = None,
    bootstrap_iters: int = BOOTSTRAP_ITERS,
    threads: int = 2,
    quantise: str | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Any]:
    """What lm-eval says of a bundle under its policies, or through single leaves.

    Args:
        file: The bundle.
        base_where: Its base, as `load_base` takes it.
        tasks: Of lm-eval: names of tasks, groups or tags, or YAML files.
        policies: As `named_policies` reads them; may be empty where there are leaves.
        leaves: Paths; each is a system of its own, that sends all text there.
        with_base: Also the base alone.
        include_path: Folder with further tasks, looked at first.
        limit: Examples of each task; None is all.
        num_fewshot: Examples in the prompt; None is as each task says.
        batch_size: Rows of a pass; the numbers do not depend on it but for rounding.
        add_bos_token: As in `TreeLM`.
        bootstrap_iters: Of standard errors that need them.
        threads: Of the CPU.
        quantise: As in `load_base`.
        clock: Seconds.

    Returns:
        `systems` (`base`, `routed:<policy>`, `leaf:<path>`), each with lm-eval's `results` by task, its rank and
        products at a token, and tokens per second; `tasks`, `limit`, `num_fewshot`, `lm_eval`.

    Raises:
        SettingError: No task was named or one is unknown; a policy or a leaf is unknown.
        DataError: A task's data cannot be loaded.
    """
    wanted = named_policies(policies) if policies or not leaves else {}
    if not tasks:
        raise SettingError("lm-eval: no task was named; give some with --tasks")
    torch.set_num_threads(threads)
    with _quiet():
        manager = _manager(tasks, include_path)
        model = TreeModel.from_pretrained(base_where, file, quantise=quantise)
        found = {}
        for name, decision, system in _systems(model, wanted, leaves, with_base=with_base):
            lm = TreeLM(system, batch_size=batch_size, add_bos_token=add_bos_token, clock=clock)
            results = _evaluated(
                lm, tasks, manager, limit=limit, num_fewshot=num_fewshot, bootstrap_iters=bootstrap_iters
            )
            found[name] = {
                "results": results["results"],
                "n_samples": {task: counts["effective"] for task, counts in results["n-samples"].items()},
                **costs_at_a_token(model, decision),
                "tokens_per_s": lm.n_tokens / lm.seconds if lm.seconds > 0 else None,
            }
    return {
        "systems": found,
        "tasks": list(tasks),
        "limit": limit,
        "num_fewshot": num_fewshot,
        "lm_eval": lm_eval.__version__,
    }


def _manager(tasks: Sequence[str], include_path: Path | None) -> TaskManager:
    """The user's own tasks alone where these are enough: lm-eval's thousands take seconds to look through."""
    if include_path is not None and not include_path.is_dir():
        raise SettingError(f"{include_path}: no such folder; --include-path takes one with tasks in YAML")
    options: dict[str, Any] = {"include_path": None if include_path is None else str(include_path)}
    if include_path is not None:
        manager = TaskManager(include_defaults=False, **options)
        if all(_is_known(task, manager) for task in tasks):
            return manager
    manager = TaskManager(**options)
    for task in tasks:
        if not _is_known(task, manager):
            raise SettingError(f"task {task!r}: lm-eval knows none of this name; own ones come by --include-path DIR")
    return manager


def _is_known(task: str, manager: TaskManager) -> bool:
    return task in manager.all_tasks or Path(task).is_file()


def _systems(
    model: TreeModel, policies: Mapping[str, Policy], leaves: Sequence[NodePath], *, with_base: bool
) -> Iterator[tuple[str, Decision | None, TreeModel]]:
    """One after the other, for all share the base."""
    if with_base:
        model.detach_adapters()
        yield "base", None, TreeModel(model.base, nodes=(), spec=model.spec, scale=model.scale)
        model.attach_adapters()
    for name, policy in policies.items():
        model.policy = policy
        yield f"routed:{name}", policy.decision, model
    for leaf in leaves:
        model.route_to(leaf)
        yield f"leaf:{leaf or 'root'}", "hard", model
    model.route_to(None)


def _evaluated(lm: TreeLM, tasks: Sequence[str], manager: TaskManager, **options: Any) -> dict[str, Any]:
    try:
        found = _simple_evaluate(model=lm, tasks=list(tasks), task_manager=manager, log_samples=False, **options)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        if isinstance(error, SettingError):
            raise
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise DataError(f"lm-eval, {', '.join(tasks)}: {type(error).__name__}: {reason}") from error
    if found is None:
        raise DataError(f"lm-eval, {', '.join(tasks)}: no results")
    return dict(found)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Stdout is for results: what lm-eval prints goes to stderr. Bars are for terminals; of its log the errors stay."""
    logger = logging.getLogger("lm_eval")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with contextlib.ExitStack() as stack:
            stack.enter_context(contextlib.redirect_stdout(sys.stderr))
            if not sys.stderr.isatty():
                bars = stack.enter_context(open(os.devnull, "w", encoding="utf-8"))
                stack.enter_context(contextlib.redirect_stderr(bars))
            yield
    finally:
        logger.setLevel(before)
