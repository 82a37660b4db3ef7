"""`LeafServers`: the parent's side. It places rows, hears what comes of them, and puts them back in order."""

import os
import queue
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias

from tinylora import bundle as bundles
from tinylora.base_model import encode_plain, load_tokenizer
from tinylora.errors import SettingError, TinyLoraError
from tinylora.generation import Continuation, row_seed
from tinylora.routing.decision import Policy
from tinylora.serving.device_map import Device, DeviceMap, device_map
from tinylora.serving.messages import Message, error_of
from tinylora.serving.plan import Row, check_policy, is_decided_at, limit_of, place
from tinylora.serving.process import COMMAND, Inbox, LeafProcess
from tinylora.tree import NodePath, Topology

Text: TypeAlias = str | Sequence[int]
"""A prompt, in words or in tokens."""
OnRow: TypeAlias = Callable[[int, Any], None]
DEFAULT_BATCH = 16


@dataclass(frozen=True)
class Served(Continuation):
    """What came after one prompt, and where that was written."""

    path: NodePath | None
    """The node whose adapters it has used since its decision; None where it ended before, or where one process has
    all leaves."""
    probability: float | None
    """That the text belongs there, as the gates said at the decision."""
    device: Device
    """Where it was served last."""


class LeafServers:
    """A bundle whose leaves lie on several devices, a process for each. Use it with `with`, or `start` and `close`.

    Args:
        bundle_file: The bundle.
        base: Folder of the base, or its hub id.
        devices: A device map; see `device_map`.
        policy: How the gates decide; None takes the bundle's own. With several devices it decides once per sequence,
            for one path.
        dtype: Of the base: "fp32", "bf16", "fp16", or "auto" for the one it is stored in.
        quantise: As in `load_base`.
        verify: Whether each process checks the numbers that it reads against their sums.
        threads: Of the CPU, for all processes together; 0 is all cores.
        batch_size: Rows that go through a base together.
        command: Arguments of Python that start a child.

    Raises:
        SettingError: The map or the policy does not suit.
        BundleError: The file is not a sound bundle.
    """

    def __init__(
        self,
        bundle_file: Path | str,
        base: Path | str,
        devices: str | Mapping[str, str] | DeviceMap = "auto",
        *,
        policy: Policy | str | None = None,
        dtype: str = "fp32",
        quantise: str | None = None,
        verify: bool = True,
        threads: int = 0,
        batch_size: int = DEFAULT_BATCH,
        command: tuple[str, ...] = COMMAND,
    ) -> None:
        if dtype not in ("fp32", "bf16", "fp16", "auto") or batch_size < 1 or threads < 0:
            raise SettingError(
                f"dtype {dtype}, batch size {batch_size}, {threads} threads: expected fp32, bf16, fp16 or auto, at "
                "least 1, and at least 0"
            )
        self.bundle_file, self.base, self.batch_size = Path(bundle_file), str(base), batch_size
        facts = bundles.inspect(self.bundle_file)
        wanted = policy if isinstance(policy, Policy) else Policy.parse(policy or facts["policy"])
        self.devices = _map_of(devices, self.bundle_file, Topology(tuple(facts["leaves"])))
        self.policy = wanted
        self._options = {
            "bundle": str(self.bundle_file), "base": self.base, "dtype": dtype, "quantise": quantise, "verify": verify,
            "threads": max(1, (threads or os.cpu_count() or 1) // len(self.devices.devices)),
        }  # fmt: skip
        self._command = command
        self._processes: dict[Device, LeafProcess] = {}
        self._inbox: Inbox = queue.Queue()
        self._n_requests = 0
        self._asking = threading.Lock()
        self.held: dict[Device, dict[str, Any]] = {}
        """What each process has read: its `nodes`, and `adapter_bytes` of them in the file."""

    @property
    def policy(self) -> Policy:
        """How the gates decide; may be set anew between calls."""
        return self._policy

    @policy.setter
    def policy(self, policy: Policy) -> None:
        check_policy(policy, self.devices)
        self._policy = policy

    # --- life --------------------------------------------------------------------------------------------------------

    def __enter__(self) -> "LeafServers":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def is_up(self) -> bool:
        """Whether there are processes."""
        return bool(self._processes)

    @property
    def pids(self) -> dict[Device, int]:
        """Of the children."""
        return {device: process.pid for device, process in self._processes.items()}

    def start(self) -> None:
        """Every process has loaded the base and its leaves. They start together.

        Raises:
            TinyLoraError: As `tinylora.errors` has it for the base, the bundle or a device; no process is left behind.
        """
        if self.is_up:
            return
        self._inbox, self._n_requests = queue.Queue(), 0
        try:
            for device, leaves in self.devices.leaves.items():
                first = self._options | {"device": device, "leaves": leaves}
                self._processes[device] = LeafProcess(device, first, self._inbox, self._command)
            self.held = self._hear(0, set(self._processes))
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """No process is left, and every device is free."""
        for process in self._processes.values():
            process.end()
        self._processes = {}

    # --- what it is asked for ----------------------------------------------------------------------------------------

    def generate(
        self,
        prompts: Sequence[Text],
        *,
        max_new_tokens: int,
        on_row: Callable[[int, Served], None] | None = None,
        **options: Any,
    ) -> list[Served]:
        """Continue prompts, each by the process that holds its leaf; the results are in the order of the prompts.

        They are the tokens that one process with the whole bundle would give, drawn ones with a seed too.

        Args:
            prompts: Texts or token ids.
            max_new_tokens: At most so many tokens are added.
            on_row: Called with number and result as soon as a row is done.
            **options: Of `continue_prompts`: `temperature`, `top_p`, `top_k`, `seed`, `eos_token_id`, `stop`.

        Raises:
            SettingError: As `continue_prompts` does.
            TinyLoraError: A process is gone or met with an error; after a process is gone, all are.
        """
        if max_new_tokens < 1:
            raise SettingError(f"max_new_tokens {max_new_tokens}: expected at least 1")
        rows = [Row(self._ids(prompt)) for prompt in prompts]

        def told(index: int, row: Row) -> None:
            if on_row is not None:
                on_row(index, _served(row))

        with self._asking:
            if len(self.devices.devices) > 1:
                self._route(rows)
                short = [index for index, row in enumerate(rows) if row.path is None]
                self._continue(rows, short, max_new_tokens, options, told)
                self._route([rows[index] for index in short if rows[index].finish is None])
            going = [index for index, row in enumerate(rows) if row.finish is None]
            self._continue(rows, going, max_new_tokens, options, told)
        return [_served(row) for row in rows]

    def score(self, texts: Sequence[Text], *, on_row: OnRow | None = None) -> list[list[float]]:
        """Negative log-likelihood of every token but the first of each text, in nats.

        Args:
            texts: Texts or token ids.
            on_row: Called with number and result as soon as a row is done.

        Raises:
            SettingError: A text is longer than the base's window.
            TinyLoraError: A process is gone or met with an error; after a process is gone, all are.
        """
        rows = [Row(self._ids(text)) for text in texts]
        found: list[list[float]] = [[] for _ in rows]

        def take(index: int, values: list[float]) -> None:
            found[index] = values
            if on_row is not None:
                on_row(index, values)

        with self._asking:
            self._route(rows)
            self._spread(rows, list(range(len(rows))), lambda _: {"do": "score"}, take)
        return found

    # --- rows --------------------------------------------------------------------------------------------------------

    @cached_property
    def tokenizer(self) -> Any:
        """The base's."""
        return load_tokenizer(self.base)

    def _ids(self, text: Text) -> list[int]:
        if not isinstance(text, str):
            return list(text)
        (ids,) = encode_plain(self.tokenizer, [text])
        begin = self.tokenizer.bos_token_id
        return ids if begin is None else [begin, *ids]

    def _route(self, rows: Sequence[Row]) -> None:
        """Decide what can be decided, all of it by one process, so that no row is decided twice."""
        ready = [row for row in rows if is_decided_at(self.policy, len(row.all_ids))]
        if not ready:
            return
        first = self.devices.devices[0]
        ids = [row.all_ids[: self.policy.size] for row in ready]
        ways = self._ask({first: {"do": "route", "rows": ids}})[first]["ways"]
        for row, (path, probability) in zip(ready, ways, strict=True):
            row.way = (path, probability)

    def _continue(
        self, rows: list[Row], chosen: list[int], max_new_tokens: int, options: Mapping[str, Any], on_over: OnRow
    ) -> None:
        """Have rows continued: those with a path to their end, the others until they are to be decided."""
        policy = None if len(self.devices.devices) == 1 else self.policy
        seeds = _seeds(options.get("seed"), len(rows))

        def request(indices: list[int]) -> Message:
            own = {
                "limits": [limit_of(rows[index], policy, max_new_tokens) for index in indices],
                "n_begun": [len(rows[index].new) for index in indices],
                "seeds": [seeds[index] for index in indices],
            }
            return {"do": "generate", "options": {key: options[key] for key in options if key != "seed"} | own}

        def take(index: int, told: Message) -> None:
            row = rows[index]
            row.new, row.text = told["tokens"], told["text"]
            if told["finish"] != "length" or len(row.new) == max_new_tokens:
                row.finish = told["finish"]
                on_over(index, row)

        self._spread(rows, chosen, request, take)

    def _spread(self, rows: list[Row], chosen: list[int], request: Callable[[list[int]], Message], take: OnRow) -> None:
        """Send rows where they belong, and hear what comes of them."""
        placed = place([rows[index] for index in chosen], self.devices)
        indices = {device: [chosen[position] for position in positions] for device, positions in placed.items()}
        requests: dict[Device, Message] = {}
        for device, some in indices.items():
            for index in some:
                rows[index].device = device
            ids = [rows[index].all_ids for index in some]
            requests[device] = request(some) | {"rows": ids, "batch_size": self.batch_size}
        self._ask(requests, lambda device, position, value: take(indices[device][position], value))

    # --- asking ------------------------------------------------------------------------------------------------------

    def _ask(
        self, requests: Mapping[Device, Message], take: Callable[[Device, int, Any], None] | None = None
    ) -> dict[Device, Message]:
        """Send each process its request, and wait until all of them have answered."""
        if not self.is_up:
            raise TinyLoraError("the servers of these leaves are not running; start them, or use them with `with`")
        self._n_requests += 1
        for device, request in requests.items():
            self._processes[device].ask({"n": self._n_requests, "policy": str(self.policy), **request})
        return self._hear(self._n_requests, set(requests), take)

    def _hear(
        self, number: int, waited_for: set[Device], take: Callable[[Device, int, Any], None] | None = None
    ) -> dict[Device, Message]:
        """What the processes say to a request, until all of them are done with it.

        What is left of an earlier request that failed elsewhere has another number, and is passed over.
        """
        done: dict[Device, Message] = {}
        while waited_for - done.keys():
            device, message = self._inbox.get()
            if message is None:
                death = self._processes[device].death()
                self.close()
                raise death
            if message["n"] != number:
                continue
            if "failure" in message:
                raise error_of(message["failure"])
            if "done" in message:
                done[device] = message["done"]
            for position, value in message.get("rows", ()):
                if take is not None:
                    take(device, position, value)
        return done


def _served(row: Row) -> Served:
    return Served(tuple(row.new), row.text, row.finish or "length", *(row.way or (None, None)), row.device)


def _seeds(seed: int | Sequence[int] | None, n_rows: int) -> Sequence[int | None]:
    """A seed for each row, the same on every map."""
    if seed is None or isinstance(seed, int):
        return [None if seed is None else row_seed(seed, row) for row in range(n_rows)]
    return seed


def _map_of(wanted: str | Mapping[str, str] | DeviceMap, file: Path, topology: Topology) -> DeviceMap:
    if not (isinstance(wanted, str) and wanted.strip().partition(":")[0] == "auto"):
        return device_map(wanted, topology)
    statistics = bundles.read_bundle(file, verify=False).statistics  # mapped: of the rest nothing is read
    counts = None if statistics is None else statistics.counts
    return device_map(wanted, topology, visible=visible_devices(), counts=counts)


def visible_devices() -> list[Device]:
    """Devices of this machine that leaves can lie on: its GPUs, else Apple's, else the CPU."""
    import torch

    if torch.cuda.is_available():
        return [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    return ["mps"] if torch.backends.mps.is_available() else ["cpu"]
