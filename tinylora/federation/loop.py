"""The loop that drives a run: ask what to do (`decisions`), do it, write it down; take in what arrives; wait.

All that happens becomes an event in the ledger before anything else relies on it, and the state is only ever the fold
of these events. So the process may die anywhere: `run_campaign` on the same ledger takes the run up where it was.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from tinylora.config import BaseFacts, RunSettings, settings_hash
from tinylora.errors import ProtocolError, SettingError
from tinylora.federation import acceptance
from tinylora.federation.acceptance import Code, Refusal
from tinylora.federation.assignment import assign, nearest_leaf, nearest_worker
from tinylora.federation.campaign import Campaign, Lease, apply, fold
from tinylora.federation.deadlines import deadline_s
from tinylora.federation.decisions import (
    PATIENCE_S,
    Adopt,
    Assign,
    Average,
    Command,
    Expire,
    Finish,
    Give,
    Lose,
    Return,
    SetTopology,
    Solve,
    Welcome,
    decide,
    wakes_at,
)
from tinylora.federation.events import (
    Event,
    GatesSolved,
    LeafSplit,
    LeaseExpired,
    LeavesMerged,
    NodeAveraged,
    Part,
    RunFinished,
    RunStarted,
    SplitKept,
    SubtreeDivided,
    TopologySet,
    UnitLeased,
    UpdateAccepted,
    UpdateRejected,
    WorkerAssigned,
    WorkerJoined,
    WorkerLost,
    WorkerReturned,
)
from tinylora.federation.growing import Divide, FoldBack, Keep, Merge, Split
from tinylora.federation.growth import sides
from tinylora.federation.ports import Clock, Ledger, Numerics, Reply, Round, Transport, WorkerInfo
from tinylora.federation.routers import Blobs, leaf_statistics, next_gates
from tinylora.federation.units import contents, factors_of, make_unit, prefix_rank_of, simple_nonce, task, unit_id
from tinylora.protocol.documents import Update
from tinylora.tree import NodePath, Topology, children, is_under

POLL_S = 0.25
MAX_REASON = 500

_NO_TRAINING = {"topology_version": 0, "router_version": 0, "node_version": 0, "n_steps": 0}

NonceSource = Callable[[str, int, str], str]
"""(run, seed, unit id) to the lease's nonce; a real coordinator gives one that cannot be guessed."""


def run_campaign(
    ledger: Ledger,
    transport: Transport,
    clock: Clock,
    *,
    run: str,
    settings: RunSettings,
    base: BaseFacts,
    numerics: Numerics,
    on_event: Callable[[Event], None] | None = None,
    stop: Callable[[], bool] = lambda: False,
    finish: Callable[[], bool] = lambda: False,
    nonce_source: NonceSource = simple_nonce,
    patience_s: float = PATIENCE_S,
    poll_s: float = POLL_S,
) -> Campaign:
    """Start a run, or take it up from its ledger, and drive it to its end.

    Args:
        ledger: Where the run is remembered.
        transport: How workers are reached.
        clock: Time.
        run: Name of the run.
        settings: What the operator decided.
        base: Facts about the base model.
        numerics: Opens payloads.
        on_event: Told each event after it was written; also those of the past when a run is taken up.
        stop: Asked between steps; true leaves the run as it is, to be taken up later.
        finish: Asked between steps; true ends the run with what it has.
        nonce_source: Makes the nonces of leases.
        patience_s: A run in which nothing went forward for so long, and nobody is at work, is finished.
        poll_s: Longest wait between two looks at the transport.

    Returns:
        The state when the run was finished or stopped.

    Raises:
        SettingError: The ledger is of another run, base or settings.
        StorageError: The ledger cannot be read or written; nothing is lost that was acknowledged.
    """
    rounds = Rounds(ledger, transport, clock, numerics, on_event=on_event, nonce_source=nonce_source)
    rounds.open(RunStarted(run=run, settings=settings, base=base))
    since_s = clock.now()
    while not rounds.state.finished and not stop():
        if finish():
            rounds.execute(Finish("the operator asked for the end"))
            break
        rounds.take_in(transport.poll())
        online = transport.workers()
        commands = decide(rounds.state, clock.now(), online, since_s=since_s, patience_s=patience_s)
        for command in commands:
            rounds.execute(command)
        if not commands:
            wake_s = wakes_at(rounds.state, clock.now(), since_s=since_s, patience_s=patience_s)
            clock.wait(min(wake_s - clock.now(), poll_s))
    return rounds.state


class Rounds:
    """Executes the commands of `decide` and takes in replies; holds the state, with ledger and transport beside it."""

    state: Campaign

    def __init__(
        self,
        ledger: Ledger,
        transport: Transport,
        clock: Clock,
        numerics: Numerics,
        *,
        on_event: Callable[[Event], None] | None = None,
        nonce_source: NonceSource = simple_nonce,
    ) -> None:
        self._ledger = ledger
        self._transport = transport
        self._clock = clock
        self._numerics = numerics
        self._tell = on_event or (lambda event: None)
        self._nonce_source = nonce_source
        self._blobs = Blobs(ledger, numerics)

    # --- the ledger --------------------------------------------------------------------------------------------------

    def open(self, start: RunStarted) -> None:
        """Begin the run, or fold its past.

        Raises:
            SettingError: The ledger holds another run than `start` says.
        """
        past = self._ledger.events()
        state = fold(past)
        if state is None:
            self.state = apply(None, start)
            self._ledger.append([start], self._clock.now())
            past = [start]
        else:
            _check_same(state, start)
            self.state = state
        for event in past:
            self._tell(event)

    def _emit(self, *events: Event) -> None:
        """Write events down, then believe them."""
        self._ledger.append(events, self._clock.now())
        for event in events:
            self.state = apply(self.state, event)
            self._tell(event)

    # --- replies -----------------------------------------------------------------------------------------------------

    def take_in(self, replies: Sequence[Reply]) -> None:
        """Accept or reject replies, in an order that does not depend on their arrival."""
        for reply in sorted(replies, key=lambda reply: (reply.worker, reply.unit_id, reply.update_json, reply.error)):
            reply = _at_hand(reply)
            if reply.error:
                self._take_error(reply)
            else:
                self._take_update(reply)

    def _take_error(self, reply: Reply) -> None:
        """The worker says that it could not: its lease is free again."""
        lease = self.state.leases.get(reply.unit_id)
        if lease is None or lease.worker != reply.worker:
            return
        if reply.is_final:
            self._reject(reply, Refusal(Code.DECLINED, reply.error))
            return
        reason = reply.error[:MAX_REASON]
        self._emit(LeaseExpired(unit_id=lease.unit_id, reason=reason, at_s=self._clock.now()))

    def _take_update(self, reply: Reply) -> None:
        try:
            lease, update, parts = self._judge(reply)
        except Refusal as refusal:
            self._reject(reply, refusal)
            return
        blob = self._ledger.put_blob(reply.payload, sha256=update.payload_sha256)
        self._emit(
            UpdateAccepted(
                unit_id=lease.unit_id,
                worker=lease.worker,
                kind=lease.kind,
                node=lease.node,
                node_version=lease.node_version,
                router_version=lease.router_version,
                shard_version=update.shard_version,
                shard_tokens=update.shard_tokens,
                tokens=update.tokens,
                n_steps=lease.n_steps,
                nodes=lease.nodes,
                max_rank=update.max_rank,
                seconds=update.seconds,
                base_loads=update.base_loads,
                heldout_nll_before=update.heldout_nll_before,
                heldout_nll_after=update.heldout_nll_after,
                log_volume=update.log_volume,
                losses=update.losses,
                parts=parts,
                blob=blob,
                bytes_received=len(reply.payload) + len(reply.update_json),
                at_s=self._clock.now(),
            )
        )

    def _judge(self, reply: Reply) -> tuple[Lease, Update, tuple[Part, ...]]:
        """The lease and document of a reply that passes every check; raises `Refusal` at the first that it fails."""
        state = self.state
        acceptance.check_size(state, reply)
        update = acceptance.read_document(reply)
        lease = acceptance.find_lease(state, reply, update)
        acceptance.check_answer(state, lease, update)
        acceptance.check_signature(update, state.workers[lease.worker].public_key)
        acceptance.check_hash(update, reply.payload)
        acceptance.check_shard(state, update)
        acceptance.check_rank(state, update)
        try:
            got = self._numerics.read_manifest(reply.payload)
            parts = acceptance.check_manifest(state, lease, update.manifest, got)
            facts = self._numerics.measure(reply.payload, self._start_of(lease))
        except ProtocolError as error:
            raise Refusal(Code.BAD_PAYLOAD, str(error)) from None
        acceptance.check_numbers(state, lease, facts)
        return lease, update, parts

    def _start_of(self, lease: Lease) -> bytes | None:
        """Adapters that a unit began with."""
        parts = self.state.parts_of(lease) if lease.kind == "train" else ()
        found = [self._ledger.get_blob(blob) for blob in (self.state.nodes[top].blob for top in parts) if blob]
        return self._numerics.select(found, ("node.",)) if len(found) > 1 else next(iter(found), None)

    def _reject(self, reply: Reply, refusal: Refusal) -> None:
        self._emit(
            UpdateRejected(
                unit_id=_name(reply.unit_id),
                worker=_name(reply.worker),
                code=refusal.code,
                reason=refusal.reason[:MAX_REASON],
                at_s=self._clock.now(),
            )
        )

    # --- commands ----------------------------------------------------------------------------------------------------

    def execute(self, command: Command) -> None:
        """Do one thing that was decided, and write it down."""
        now = self._clock.now()
        match command:
            case Welcome():
                self._emit(_joined(command.info, now))
            case Return():
                self._emit(WorkerReturned(worker=command.worker, at_s=now))
            case Lose():
                self._lose(command.worker, now)
            case Expire():
                self._emit(LeaseExpired(unit_id=command.unit_id, reason=command.reason, at_s=now))
            case SetTopology():
                self._set_topology(command)
            case Average():
                self._average(command.top)
            case Split():
                self._split(command.leaf)
            case Keep():
                self._emit(SplitKept(node=command.node, heldout_nll=command.heldout_nll))
            case FoldBack():
                self._fold_back(command)
            case Merge():
                self._merge(command)
            case Divide():
                self._divide(command.node)
            case Solve():
                self._solve(command.reason)
            case Assign():
                self._assign(command)
            case Give():
                self._give(command, now)
            case Adopt():
                self._adopt(command, now)
            case Finish():
                self._emit(RunFinished(reason=command.reason, at_s=now))

    def _lose(self, worker: str, now: float) -> None:
        unit = self.state.workers[worker].unit_id
        expired = [LeaseExpired(unit_id=unit, reason="the worker went offline", at_s=now)] if unit else []
        self._emit(*expired, WorkerLost(worker=worker, at_s=now))

    def _set_topology(self, command: SetTopology) -> None:
        settings = self.state.settings
        depth = 0 if settings.grow else settings.depth
        sketches = {worker: self._blobs.statistics(self.state.workers[worker].sketch)[""] for worker in command.workers}
        volumes = {worker: self.state.workers[worker].log_volume for worker in command.workers}
        known = {worker: volume for worker, volume in volumes.items() if volume is not None}
        leaves = Topology.perfect(depth).leaves
        assignment = dict(sorted(assign(sketches, depth, known).items()))
        self._emit(TopologySet(version=self.state.topology_version + 1, leaves=leaves, assignment=assignment))

    def _assign(self, command: Assign) -> None:
        sketch = self._blobs.statistics(self.state.workers[command.worker].sketch)[""]
        leaf = nearest_leaf(leaf_statistics(self.state, self._blobs), command.leaves, sketch)
        self._emit(WorkerAssigned(worker=command.worker, node=leaf))

    def _average(self, top: NodePath) -> None:
        state, node = self.state, self.state.nodes[top]
        payloads = {update.blob: self._ledger.get_blob(update.blob) for update in node.contributions}
        by_adapter = {
            path: {
                update.worker: payloads[update.blob]
                for update in node.contributions
                if path in state.trained_by(update)
            }
            for path in state.adapters_of(top)
        }
        averaged = self._numerics.average(by_adapter, self._round_of(top))
        self._emit(
            NodeAveraged(
                node=top,
                version=node.version + 1,
                contributors=tuple(sorted({update.worker for update in node.contributions})),
                blob=self._ledger.put_blob(averaged.payload),
                n_steps=node.steps + max(update.n_steps for update in node.contributions),
                mismatch=averaged.mismatch,
                momentum=self._ledger.put_blob(averaged.momentum) if averaged.momentum else "",
            )
        )

    # --- a tree that grows -------------------------------------------------------------------------------------------

    def _split(self, leaf: NodePath) -> None:
        """Two children with the leaf's own adapter; its workers part by their texts, a lone one holds both."""
        state, node = self.state, self.state.nodes[leaf]
        left, right = children(leaf)
        holders = state.holders(leaf)
        sketches = {name: self._blobs.statistics(state.workers[name].sketch)[""] for name in holders}
        is_right = sides(sketches) if len(holders) > 1 else {}
        assignment = {name: (right if is_right[name] else left) if is_right else leaf for name in holders}
        blob = self._numerics.rename(self._ledger.get_blob(node.blob), {leaf: (left, right)})
        topology = Topology(state.leaves).split(leaf)
        self._emit(
            LeafSplit(
                node=leaf,
                version=state.topology_version + 1,
                leaves=topology.leaves,
                assignment=assignment,
                blob=self._ledger.put_blob(blob),
                heldout_nll=node.history[-1],
            )
        )

    def _fold_back(self, command: FoldBack) -> None:
        before = self.state.trials[command.node].before
        self._unite(command.node, before.blob, command.reason)

    def _merge(self, command: Merge) -> None:
        """Both children's adapters become one: the mean of their products, where they are pairs A, B."""
        state, spec = self.state, self.state.settings.spec
        halves = {
            child: self._numerics.rename(self._ledger.get_blob(state.nodes[child].blob), {child: (command.node,)})
            for child in children(command.node)
        }
        how = Round(halves[children(command.node)[0]], "mean" if spec.kind == "tied" else "product", 1.0, 0.0, b"")
        averaged = self._numerics.average({command.node: halves}, how)
        self._unite(command.node, self._ledger.put_blob(averaged.payload), command.reason)

    def _divide(self, node: NodePath) -> None:
        """Those who held all of it get the leaves that nobody holds, then any others."""
        state = self.state
        leaves = state.leaves_below(node)
        held = {worker.node for worker in state.workers.values()}
        free = [leaf for leaf in leaves if leaf not in held] or list(leaves)
        assignment = {name: free[number % len(free)] for number, name in enumerate(state.holders(node))}
        version = state.topology_version + 1
        self._emit(SubtreeDivided(node=node, version=version, leaves=state.leaves, assignment=assignment))

    def _unite(self, node: NodePath, blob: str, reason: str) -> None:
        """The children of a node become one leaf again."""
        state = self.state
        parts = [state.nodes[top] for top in state.parts_below(node)]
        below = sorted(name for name, worker in state.workers.items() if worker.node and is_under(worker.node, node))
        self._emit(
            LeavesMerged(
                node=node,
                version=state.topology_version + 1,
                leaves=Topology(state.leaves).merge(node).leaves,
                assignment=dict.fromkeys(below, node),
                blob=blob,
                node_version=max(part.version for part in parts) + 1,
                n_steps=max(part.steps for part in parts),
                reason=reason,
            )
        )

    # --- gates and units ---------------------------------------------------------------------------------------------

    def _round_of(self, top: NodePath) -> Round:
        """What the workers of a node began its present version with, and how their updates become one."""
        state, node = self.state, self.state.nodes[top]
        settings = state.settings
        if node.blob:
            start = self._ledger.get_blob(node.blob)
        else:
            start = self._numerics.initial(state.base, settings.spec, settings.seed, state.adapters_of(top))
        momentum = self._ledger.get_blob(node.momentum) if node.momentum else b""
        return Round(start, settings.replicas, settings.outer_lr, settings.outer_momentum, momentum)

    def _solve(self, reason: str) -> None:
        state = self.state
        arrays, drift, accuracy = next_gates(state, self._blobs)
        contributors = state.router.contributors or _speakers(state)
        self._emit(
            GatesSolved(
                version=state.router.version + 1,
                contributors=contributors,
                drift=drift,
                blob=self._ledger.put_blob(self._numerics.pack(arrays)),
                reason=reason,
                accuracy=accuracy,
            )
        )

    def _adopt(self, command: Adopt, now: float) -> None:
        sketches = {name: self._blobs.statistics(self.state.workers[name].sketch)[""] for name in command.candidates}
        known = leaf_statistics(self.state, self._blobs)
        below = {
            f"{leaf}/{who}": sums for leaf in self.state.leaves_below(command.node) for who, sums in known[leaf].items()
        }
        self._give(Give(nearest_worker(sketches, below), "train", command.node, is_adopted=True), now)

    def _give(self, command: Give, now: float) -> None:
        """Write the lease down, then send the unit: a unit that was never sent simply expires."""
        state = self.state
        lease = self._lease(command, now)
        what = contents(state, lease)
        blobs = [self._ledger.get_blob(blob) for blob in what.blobs]
        payload = self._numerics.select(blobs, what.prefixes, lease.prefix_rank)
        unit = make_unit(state, lease, payload, self._numerics.read_manifest(payload))
        n_bytes = len(payload) + len(unit.to_json())
        self._emit(lease.model_copy(update={"bytes_sent": n_bytes}))
        self._transport.send(command.worker, unit, payload)

    def _lease(self, command: Give, now: float) -> Lease:
        name = unit_id(self.state.n_units)
        fields: dict[str, Any] = self._training(command) if command.kind == "train" else _NO_TRAINING
        worker = self.state.workers[command.worker]
        return UnitLeased(
            unit_id=name,
            worker=command.worker,
            kind=command.kind,
            node=command.node,
            nonce=self._nonce_source(self.state.run, self.state.settings.seed, name),
            is_adopted=command.is_adopted,
            at_s=now,
            deadline_s=now + deadline_s(self.state, worker, command.kind, fields["n_steps"]),
            **fields,
        )

    def _training(self, command: Give) -> dict[str, Any]:
        """What the lease of a train unit says of the work."""
        state = self.state
        work = task(state, command.node, is_adopted=command.is_adopted)
        node = state.nodes[work.parts[-1]]
        left = min(state.budget(top) - state.nodes[top].steps for top in work.parts)
        return {
            "topology_version": state.topology_version,
            "router_version": state.router.version,
            "node_version": node.version,
            "first_step": node.steps,
            "n_steps": min(state.settings.unit_steps, left),
            "nodes": work.nodes,
            "frozen": work.frozen,
            "factors": factors_of(state, work.parts[-1]),
            "prefix_rank": prefix_rank_of(state, command.worker),
        }


def _at_hand(reply: Reply) -> Reply:
    """With its payload in memory, now that its turn has come."""
    if reply.file is None:
        return reply
    payload = reply.file.read_bytes()
    reply.file.unlink()
    return replace(reply, payload=payload, file=None)


def _joined(info: WorkerInfo, now: float) -> WorkerJoined:
    return WorkerJoined(
        worker=info.worker, name=info.name, public_key=info.public_key.decode("ascii", "replace"), at_s=now
    )


def _speakers(state: Campaign) -> tuple[str, ...]:
    """Workers whose statistics the gates are made of, for a version that no update led to."""
    return tuple(sorted(name for name, worker in state.workers.items() if worker.node is not None and worker.sketch))


def _name(text: str) -> str:
    """A name that an event may hold, whatever a stranger called itself."""
    kept = "".join(letter for letter in text[:128] if letter.isascii() and (letter.isalnum() or letter in "._:-"))
    return kept.lstrip("._:-") or "unnamed"


def _check_same(state: Campaign, start: RunStarted) -> None:
    if state.run != start.run:
        raise SettingError(f"ledger: holds run {state.run}, not {start.run}; give each run a folder of its own")
    if state.base != start.base:
        raise SettingError(
            f"ledger: run {state.run} is on base {state.base.base_id} ({state.base.fingerprint[:12]}), not on "
            f"{start.base.base_id} ({start.base.fingerprint[:12]}); serve it with the base it began with"
        )
    if settings_hash(state.settings) != settings_hash(start.settings):
        mine, theirs = state.settings.model_dump(), start.settings.model_dump()
        changed = ", ".join(
            f"{name} {mine[name]!r} to {theirs[name]!r}" for name in sorted(mine) if mine[name] != theirs[name]
        )
        raise SettingError(
            f"ledger: settings of run {state.run} changed: {changed}; settings are fixed once a run began"
        )
