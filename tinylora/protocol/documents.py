"""The two documents of the protocol, `WorkUnit` (coordinator to worker) and `Update` (worker to coordinator).

Each travels as one canonical JSON text (sorted keys, no white space, no NaN) beside one safetensors blob. Reading is
strict: an unknown field, a wrong type or a number out of range is a `ProtocolError` that names the field; nothing that
was read is executed.

Tensor names inside the blobs:

* `node.<path>.<projection>.lora_A` (n_layers, rank, in) and `.lora_B` (n_layers, out, rank): an adapter;
* `router.<path>.{w,b,tau}`: the gates of the unit, from summed statistics (`b`, `tau` are of shape (1,));
* `weights_router.<path>.{w,b}`: the gates by averaged weights, where `router_sync` asks for them;
* `statistics.<path>.{count,total,scatter}` float64: what a sketch or a subtree unit learned about the text of one leaf;
* `candidate.<path>.<projection>.lora_A`, `.lora_B`: in a probe, the adapters of the update that is to be scored;
* `histogram.<path>` float64 (2, n_bins): router scores of held-out text at an inner node, by true side.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Annotated, ClassVar, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from tinylora.adapters.spec import AdapterSpec
from tinylora.config import MAX_FEATURE_DIM
from tinylora.errors import ProtocolError
from tinylora.protocol.plain import plain
from tinylora.tree import by_level

PROTOCOL_VERSION = 1
MAX_DOCUMENT_BYTES = 1_000_000
MAX_LOSSES = 100
MAX_NOTE, MAX_LICENCE = 200, 64
"""Characters of what an owner says of the text, and of its licence."""

UnitKind = Literal["sketch", "train", "probe"]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:-]{0,127}$")]
PathText = Annotated[str, Field(pattern=r"^[01]{0,16}$")]
Count = Annotated[int, Field(ge=0, lt=2**53)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Nats = Annotated[float, Field(ge=0, le=1e6, allow_inf_nan=False)]
"""A mean loss, with room to spare: sums of such numbers stay finite."""
Factor = Literal["lora_A", "lora_B"]
Manifest = dict[str, tuple[str, tuple[int, ...]]]
"""Tensor name to (safetensors dtype such as "BF16", shape)."""


def plain_line(text: str) -> str:
    """The text as `plain` leaves it, however long."""
    return plain(text, at_most=len(text))


DataNote = Annotated[str, Field(max_length=MAX_NOTE), AfterValidator(plain_line)]
"""What a worker's owner chose to say of the text."""
DataLicence = Annotated[str, Field(max_length=MAX_LICENCE), AfterValidator(plain_line)]
"""Licence of the text, such as CC-BY-4.0, in the owner's words."""

AnyEntry = TypeVar("AnyEntry")
AnyDocument = TypeVar("AnyDocument", bound="Document")  # not Self: the type checker of the tests does not know it


class Document(BaseModel):
    """What travels as one canonical JSON text."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=False, allow_inf_nan=False)

    LEFT_OUT_WHERE_EMPTY: ClassVar[frozenset[str]] = frozenset()
    """Fields that came after the first signatures: documents without them have the bytes that they always had."""

    def to_json(self) -> str:
        """Canonical JSON: the same document gives the same bytes everywhere."""
        told = self.model_dump(mode="json")
        told = {key: value for key, value in told.items() if value or key not in self.LEFT_OUT_WHERE_EMPTY}
        return json.dumps(told, sort_keys=True, separators=(",", ":"), allow_nan=False)

    @classmethod
    def from_json(cls: type[AnyDocument], text: str) -> AnyDocument:
        """Read a document from the network.

        Raises:
            ProtocolError: Too long, no JSON, a field unknown, missing or out of range.
        """
        if len(text) > MAX_DOCUMENT_BYTES:
            raise ProtocolError(f"{cls.__name__}: expected at most {MAX_DOCUMENT_BYTES} characters, got {len(text)}")
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            raise _misfit(cls, error) from None


def _misfit(kind: type[Document], error: ValidationError) -> ProtocolError:
    """One sentence on the first field that is wrong; the rule names it only if it is a field of ours."""
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    top = str(first["loc"][0]) if first["loc"] else ""
    rule = f"{first['type']}.{top}" if top in kind.model_fields else first["type"]
    field = ".".join(str(part) for part in first["loc"])[:200] or "document"
    return ProtocolError(f"{kind.__name__}: field {field}: {first['msg']}", rule=rule)


class WorkUnit(Document):
    """The piece of work that a worker leases: one node or subtree, so many steps."""

    protocol: Literal[1] = PROTOCOL_VERSION
    unit_id: Name
    run: Name
    kind: UnitKind
    node: PathText = ""
    """The leaf to train, or the top of the subtree."""
    leaves: tuple[PathText, ...] = ()
    """Leaves below `node`, left to right; a leaf's own is itself."""
    nonce: Name
    """Of the lease; an update that does not repeat it is refused."""
    deadline_s: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    """Seconds from the sending until the unit is leased to somebody else."""
    base_fingerprint: Sha256
    tokenizer_fingerprint: Sha256
    feature_hash: Sha256
    feature_dim: Annotated[int, Field(ge=0, le=MAX_FEATURE_DIM)] = 0
    """Numbers in the run's routing feature; 0 is as many as the worker's base has."""
    topology_version: Count = 0
    router_version: Count = 0
    node_version: Count = 0
    """Version of the adapters in the payload; 0 means: start from `seed`, the payload has none."""
    topology_leaves: tuple[PathText, ...] = ()
    """Leaves of the whole tree (paths only: a few bytes each), so that gates above `node` can be named."""
    adapter: str = "lora"
    """Kind of the adapters, as `AdapterSpec.parse` reads it."""
    rank: Annotated[int, Field(ge=0, le=1024)] = 0
    ranks: dict[str, int] = {}
    """Rank by projection; the others have `rank`."""
    scale: Finite = 0.0
    nodes: tuple[PathText, ...] = ()
    """Nodes whose adapters are trained and come back, upper ones first; none named means `leaves`."""
    node_versions: tuple[Count, ...] = ()
    """Version of each of `nodes`; none named means that all have `node_version`."""
    frozen: tuple[PathText, ...] = ()
    """Nodes above them, whose adapters are in the payload and applied as they are."""
    prefix_rank: Annotated[int, Field(ge=0, le=1024)] = 0
    """Train and send the first so many rows of every adapter alone; 0 means all."""
    factors: tuple[Factor, ...] = ()
    """Which factors of the adapters to train and to send, the others staying as they came; none named means all."""
    has_new_axes: bool = False
    """The adapters' directions are others than in the version before: an optimiser's memory of it does not fit."""
    first_step: Count = 0
    """Steps this node had before: where on the learning-rate schedule the unit starts."""
    n_steps: Count = 0
    total_steps: Count = 0
    batch_windows: Count = 0
    window_tokens: Count = 0
    learning_rate: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    warmup_steps: Count = 0
    sketch_min_sequences: Count = 0
    is_adopted: bool = False
    """The leaf belongs to text of somebody who left: train on those own documents that are nearest to it."""
    subject: Name | None = None
    """Of a probe: the unit whose update is to be scored. Its adapters are in the payload as `candidate.<path>.*`."""
    probe_windows: Count = 0
    """Of a probe: windows of held-out text to score."""
    home: PathText | None = None
    """Of a probe: the node that the worker's own text belongs to, where it belongs to one."""
    router_sync: Literal["statistics", "weights", "both"] = "statistics"
    seed: Count = 0
    manifest: Manifest = {}
    payload_sha256: Sha256

    @property
    def trained(self) -> dict[str, int]:
        """Nodes whose adapters are trained, upper ones first, with the version that each begins from."""
        nodes = self.nodes or self.leaves
        versions = self.node_versions or (self.node_version,) * len(nodes)
        return dict(zip(nodes, versions, strict=False))

    @property
    def applied(self) -> tuple[str, ...]:
        """All nodes whose adapters are at work, trained or not, upper ones first."""
        return by_level({*self.frozen, *self.trained})

    @property
    def is_subtree(self) -> bool:
        """Whether the leaves of a subtree are trained, and with them the gates between them."""
        return len(self.leaves) > 1 and set(self.leaves) <= self.trained.keys()

    @property
    def spec(self) -> AdapterSpec:
        """Kind and ranks of the adapters.

        Raises:
            SettingError: No such kind, or a rank is out of range.
        """
        return AdapterSpec.parse(self.adapter, self.rank, self.ranks)


class ProbeResult(BaseModel):
    """What a worker saw when it scored another worker's update on its own held-out text. Sums of nats over tokens."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    tokens: Count
    """Predicted tokens that the sums are over."""
    nll_parent: Finite
    """With the path above the node alone; with the bare base where nothing is above it."""
    nll_current: Finite
    """With the node as it stands."""
    nll_candidate: Finite
    """With the update in its place."""
    mass: dict[PathText, Annotated[float, Field(ge=0, le=1)]] = {}
    """By leaf: the share of this text that the gates send there."""


class Update(Document):
    """What a worker claims to have done; the ledger believes an `AcceptedUpdate` instead."""

    LEFT_OUT_WHERE_EMPTY = frozenset({"data_note", "data_licence"})

    protocol: Literal[1] = PROTOCOL_VERSION
    unit_id: Name
    run: Name
    kind: UnitKind
    worker: Name
    nonce: Name
    node: PathText = ""
    topology_version: Count = 0
    router_version: Count = 0
    node_version: Count = 0
    shard_version: Sha256
    """Hash of the worker's tokenised training text: one sketch counts for each version."""
    shard_tokens: Count = 0
    tokens: Count = 0
    """Trained on in this unit."""
    n_steps: Count = 0
    seconds: Annotated[float, Field(ge=0, le=1e9, allow_inf_nan=False)] = 0.0
    """Busy time of the worker, for credit and deadlines; never a weight."""
    base_loads: Count = 0
    """How often this worker process has loaded the base so far: one, for its whole life."""
    max_rank: Count = 0
    """Highest rank that this worker can train; 0: any."""
    max_leaves: Count = 0
    """Most leaves that it can train at once; 0: any."""
    heldout_nll_before: Nats | None = None
    heldout_nll_after: Nats | None = None
    log_volume: Annotated[float, Field(ge=-1e6, le=1e6, allow_inf_nan=False)] | None = None
    """Of a sketch: how widely the texts differ among each other (`routing.sketch.log_volume`)."""
    data_note: DataNote = ""
    """Of a sketch: what the owner says of the text, for whoever uses the bundle."""
    data_licence: DataLicence = ""
    """Of a sketch: the text's licence, in the owner's words."""
    losses: Annotated[tuple[Nats, ...], Field(max_length=MAX_LOSSES)] = ()
    """Training loss in nats, a few values along the unit."""
    probe: ProbeResult | None = None
    """Of a probe."""
    manifest: Manifest = {}
    payload_sha256: Sha256
    signature: Annotated[str, Field(max_length=512)] = ""
    """Hex of the worker key's signature over the document without this field; see `envelope`."""


class Receipt(Document):
    """The run's word that an update was accepted; signed by the run's Ed25519 key, kept by the worker."""

    protocol: Literal[1] = PROTOCOL_VERSION
    run: Name
    unit_id: Name
    worker: Name
    kind: UnitKind
    node: PathText = ""
    n_steps: Count = 0
    tokens: Count = 0
    payload_sha256: Sha256
    event: Count
    """Number of the event in the run's log."""
    log_sha256: Sha256
    """The log's chain up to that event: a log that was rewritten does not fit its receipts."""
    signature: str = ""
    """Hex, over the document without this field."""


def only_factors(named: Mapping[str, AnyEntry], factors: Sequence[Factor]) -> dict[str, AnyEntry]:
    """The tensors, shapes or whatever is named as adapters are, of these factors alone; of all where none is given."""
    endings = tuple(f".{factor}" for factor in factors)
    return {name: entry for name, entry in named.items() if not factors or name.endswith(endings)}


def sha256(data: bytes) -> str:
    """Hex sha256 of a payload."""
    return hashlib.sha256(data).hexdigest()
