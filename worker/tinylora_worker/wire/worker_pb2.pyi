from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class LoadRequest(_message.Message):
    __slots__ = ("base", "data", "columns", "feature_dim", "device", "dtype", "quantise", "vram_limit_bytes", "cpu_threads", "max_rank", "worker", "allow", "base_fingerprint", "vram_share")
    class ColumnsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    BASE_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    COLUMNS_FIELD_NUMBER: _ClassVar[int]
    FEATURE_DIM_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    QUANTISE_FIELD_NUMBER: _ClassVar[int]
    VRAM_LIMIT_BYTES_FIELD_NUMBER: _ClassVar[int]
    CPU_THREADS_FIELD_NUMBER: _ClassVar[int]
    MAX_RANK_FIELD_NUMBER: _ClassVar[int]
    WORKER_FIELD_NUMBER: _ClassVar[int]
    ALLOW_FIELD_NUMBER: _ClassVar[int]
    BASE_FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    VRAM_SHARE_FIELD_NUMBER: _ClassVar[int]
    base: str
    data: _containers.RepeatedScalarFieldContainer[str]
    columns: _containers.ScalarMap[str, str]
    feature_dim: int
    device: str
    dtype: str
    quantise: str
    vram_limit_bytes: int
    cpu_threads: int
    max_rank: int
    worker: str
    allow: _containers.RepeatedScalarFieldContainer[str]
    base_fingerprint: str
    vram_share: float
    def __init__(self, base: _Optional[str] = ..., data: _Optional[_Iterable[str]] = ..., columns: _Optional[_Mapping[str, str]] = ..., feature_dim: _Optional[int] = ..., device: _Optional[str] = ..., dtype: _Optional[str] = ..., quantise: _Optional[str] = ..., vram_limit_bytes: _Optional[int] = ..., cpu_threads: _Optional[int] = ..., max_rank: _Optional[int] = ..., worker: _Optional[str] = ..., allow: _Optional[_Iterable[str]] = ..., base_fingerprint: _Optional[str] = ..., vram_share: _Optional[float] = ...) -> None: ...

class LoadEvent(_message.Message):
    __slots__ = ("progress", "loaded", "failure")
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    LOADED_FIELD_NUMBER: _ClassVar[int]
    FAILURE_FIELD_NUMBER: _ClassVar[int]
    progress: LoadProgress
    loaded: Loaded
    failure: Failure
    def __init__(self, progress: _Optional[_Union[LoadProgress, _Mapping]] = ..., loaded: _Optional[_Union[Loaded, _Mapping]] = ..., failure: _Optional[_Union[Failure, _Mapping]] = ...) -> None: ...

class LoadProgress(_message.Message):
    __slots__ = ("stage", "share", "downloaded_bytes")
    STAGE_FIELD_NUMBER: _ClassVar[int]
    SHARE_FIELD_NUMBER: _ClassVar[int]
    DOWNLOADED_BYTES_FIELD_NUMBER: _ClassVar[int]
    stage: str
    share: float
    downloaded_bytes: int
    def __init__(self, stage: _Optional[str] = ..., share: _Optional[float] = ..., downloaded_bytes: _Optional[int] = ...) -> None: ...

class Loaded(_message.Message):
    __slots__ = ("base_facts_json", "device", "device_kind", "dtype", "dtype_reason", "n_train_documents", "n_heldout_documents", "n_tokens", "n_rejected", "layout", "seconds")
    BASE_FACTS_JSON_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    DEVICE_KIND_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    DTYPE_REASON_FIELD_NUMBER: _ClassVar[int]
    N_TRAIN_DOCUMENTS_FIELD_NUMBER: _ClassVar[int]
    N_HELDOUT_DOCUMENTS_FIELD_NUMBER: _ClassVar[int]
    N_TOKENS_FIELD_NUMBER: _ClassVar[int]
    N_REJECTED_FIELD_NUMBER: _ClassVar[int]
    LAYOUT_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    base_facts_json: str
    device: str
    device_kind: str
    dtype: str
    dtype_reason: str
    n_train_documents: int
    n_heldout_documents: int
    n_tokens: int
    n_rejected: int
    layout: str
    seconds: float
    def __init__(self, base_facts_json: _Optional[str] = ..., device: _Optional[str] = ..., device_kind: _Optional[str] = ..., dtype: _Optional[str] = ..., dtype_reason: _Optional[str] = ..., n_train_documents: _Optional[int] = ..., n_heldout_documents: _Optional[int] = ..., n_tokens: _Optional[int] = ..., n_rejected: _Optional[int] = ..., layout: _Optional[str] = ..., seconds: _Optional[float] = ...) -> None: ...

class SizeRequest(_message.Message):
    __slots__ = ("settings_json", "again")
    SETTINGS_JSON_FIELD_NUMBER: _ClassVar[int]
    AGAIN_FIELD_NUMBER: _ClassVar[int]
    settings_json: str
    again: bool
    def __init__(self, settings_json: _Optional[str] = ..., again: _Optional[bool] = ...) -> None: ...

class SizeReply(_message.Message):
    __slots__ = ("fit", "failure")
    FIT_FIELD_NUMBER: _ClassVar[int]
    FAILURE_FIELD_NUMBER: _ClassVar[int]
    fit: Fit
    failure: Failure
    def __init__(self, fit: _Optional[_Union[Fit, _Mapping]] = ..., failure: _Optional[_Union[Failure, _Mapping]] = ...) -> None: ...

class Fit(_message.Message):
    __slots__ = ("micro_windows", "gradient_checkpointing", "quantise", "max_rank", "max_leaves", "peak_bytes", "free_bytes", "tokens_per_s", "watts")
    MICRO_WINDOWS_FIELD_NUMBER: _ClassVar[int]
    GRADIENT_CHECKPOINTING_FIELD_NUMBER: _ClassVar[int]
    QUANTISE_FIELD_NUMBER: _ClassVar[int]
    MAX_RANK_FIELD_NUMBER: _ClassVar[int]
    MAX_LEAVES_FIELD_NUMBER: _ClassVar[int]
    PEAK_BYTES_FIELD_NUMBER: _ClassVar[int]
    FREE_BYTES_FIELD_NUMBER: _ClassVar[int]
    TOKENS_PER_S_FIELD_NUMBER: _ClassVar[int]
    WATTS_FIELD_NUMBER: _ClassVar[int]
    micro_windows: int
    gradient_checkpointing: bool
    quantise: str
    max_rank: int
    max_leaves: int
    peak_bytes: int
    free_bytes: int
    tokens_per_s: float
    watts: float
    def __init__(self, micro_windows: _Optional[int] = ..., gradient_checkpointing: _Optional[bool] = ..., quantise: _Optional[str] = ..., max_rank: _Optional[int] = ..., max_leaves: _Optional[int] = ..., peak_bytes: _Optional[int] = ..., free_bytes: _Optional[int] = ..., tokens_per_s: _Optional[float] = ..., watts: _Optional[float] = ...) -> None: ...

class RunRequest(_message.Message):
    __slots__ = ("folder",)
    FOLDER_FIELD_NUMBER: _ClassVar[int]
    folder: str
    def __init__(self, folder: _Optional[str] = ...) -> None: ...

class RunEvent(_message.Message):
    __slots__ = ("progress", "done", "failure", "step_down")
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    DONE_FIELD_NUMBER: _ClassVar[int]
    FAILURE_FIELD_NUMBER: _ClassVar[int]
    STEP_DOWN_FIELD_NUMBER: _ClassVar[int]
    progress: Progress
    done: Done
    failure: Failure
    step_down: StepDown
    def __init__(self, progress: _Optional[_Union[Progress, _Mapping]] = ..., done: _Optional[_Union[Done, _Mapping]] = ..., failure: _Optional[_Union[Failure, _Mapping]] = ..., step_down: _Optional[_Union[StepDown, _Mapping]] = ...) -> None: ...

class Progress(_message.Message):
    __slots__ = ("node", "step", "n_steps", "loss", "tokens_per_s", "checkpoint_age_s")
    NODE_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    N_STEPS_FIELD_NUMBER: _ClassVar[int]
    LOSS_FIELD_NUMBER: _ClassVar[int]
    TOKENS_PER_S_FIELD_NUMBER: _ClassVar[int]
    CHECKPOINT_AGE_S_FIELD_NUMBER: _ClassVar[int]
    node: str
    step: int
    n_steps: int
    loss: float
    tokens_per_s: float
    checkpoint_age_s: float
    def __init__(self, node: _Optional[str] = ..., step: _Optional[int] = ..., n_steps: _Optional[int] = ..., loss: _Optional[float] = ..., tokens_per_s: _Optional[float] = ..., checkpoint_age_s: _Optional[float] = ...) -> None: ...

class Done(_message.Message):
    __slots__ = ("payload_sha256",)
    PAYLOAD_SHA256_FIELD_NUMBER: _ClassVar[int]
    payload_sha256: str
    def __init__(self, payload_sha256: _Optional[str] = ...) -> None: ...

class StepDown(_message.Message):
    __slots__ = ("reason", "fit")
    REASON_FIELD_NUMBER: _ClassVar[int]
    FIT_FIELD_NUMBER: _ClassVar[int]
    reason: str
    fit: Fit
    def __init__(self, reason: _Optional[str] = ..., fit: _Optional[_Union[Fit, _Mapping]] = ...) -> None: ...

class Failure(_message.Message):
    __slots__ = ("kind", "message", "code")
    KIND_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    CODE_FIELD_NUMBER: _ClassVar[int]
    kind: str
    message: str
    code: str
    def __init__(self, kind: _Optional[str] = ..., message: _Optional[str] = ..., code: _Optional[str] = ...) -> None: ...

class PingRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class PingReply(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class StopRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class StopReply(_message.Message):
    __slots__ = ("has_checkpoint",)
    HAS_CHECKPOINT_FIELD_NUMBER: _ClassVar[int]
    has_checkpoint: bool
    def __init__(self, has_checkpoint: _Optional[bool] = ...) -> None: ...

class CanaryRequest(_message.Message):
    __slots__ = ("settings_json", "n_canaries", "n_repeats", "n_steps", "seed")
    SETTINGS_JSON_FIELD_NUMBER: _ClassVar[int]
    N_CANARIES_FIELD_NUMBER: _ClassVar[int]
    N_REPEATS_FIELD_NUMBER: _ClassVar[int]
    N_STEPS_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    settings_json: str
    n_canaries: int
    n_repeats: int
    n_steps: int
    seed: int
    def __init__(self, settings_json: _Optional[str] = ..., n_canaries: _Optional[int] = ..., n_repeats: _Optional[int] = ..., n_steps: _Optional[int] = ..., seed: _Optional[int] = ...) -> None: ...

class CanaryEvent(_message.Message):
    __slots__ = ("progress", "report", "failure")
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    REPORT_FIELD_NUMBER: _ClassVar[int]
    FAILURE_FIELD_NUMBER: _ClassVar[int]
    progress: Progress
    report: CanaryReport
    failure: Failure
    def __init__(self, progress: _Optional[_Union[Progress, _Mapping]] = ..., report: _Optional[_Union[CanaryReport, _Mapping]] = ..., failure: _Optional[_Union[Failure, _Mapping]] = ...) -> None: ...

class CanaryReport(_message.Message):
    __slots__ = ("exposures_bits", "most_bits", "n_extracted")
    EXPOSURES_BITS_FIELD_NUMBER: _ClassVar[int]
    MOST_BITS_FIELD_NUMBER: _ClassVar[int]
    N_EXTRACTED_FIELD_NUMBER: _ClassVar[int]
    exposures_bits: _containers.RepeatedScalarFieldContainer[float]
    most_bits: float
    n_extracted: int
    def __init__(self, exposures_bits: _Optional[_Iterable[float]] = ..., most_bits: _Optional[float] = ..., n_extracted: _Optional[int] = ...) -> None: ...

class StatusRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class PauseRequest(_message.Message):
    __slots__ = ("until_s",)
    UNTIL_S_FIELD_NUMBER: _ClassVar[int]
    until_s: float
    def __init__(self, until_s: _Optional[float] = ...) -> None: ...

class ResumeRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class FinishRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class LeaveRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ReloadLimitsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class CommandReply(_message.Message):
    __slots__ = ("sentence", "error")
    SENTENCE_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    sentence: str
    error: str
    def __init__(self, sentence: _Optional[str] = ..., error: _Optional[str] = ...) -> None: ...

class Status(_message.Message):
    __slots__ = ("version", "pid", "home", "run", "coordinator", "worker", "name", "state", "reason", "detail", "until_s", "is_finishing", "unit_id", "kind", "node", "round", "step", "n_steps", "loss", "losses", "tokens_per_s", "unit_eta_s", "checkpoint_age_s", "device", "dtype", "temperature_c", "memory_bytes", "sent_bytes", "received_bytes", "month_bytes", "month_cap_bytes", "n_outbox", "n_receipts", "accepted_tokens", "started_s", "fit", "log")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    PID_FIELD_NUMBER: _ClassVar[int]
    HOME_FIELD_NUMBER: _ClassVar[int]
    RUN_FIELD_NUMBER: _ClassVar[int]
    COORDINATOR_FIELD_NUMBER: _ClassVar[int]
    WORKER_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    UNTIL_S_FIELD_NUMBER: _ClassVar[int]
    IS_FINISHING_FIELD_NUMBER: _ClassVar[int]
    UNIT_ID_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    NODE_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    N_STEPS_FIELD_NUMBER: _ClassVar[int]
    LOSS_FIELD_NUMBER: _ClassVar[int]
    LOSSES_FIELD_NUMBER: _ClassVar[int]
    TOKENS_PER_S_FIELD_NUMBER: _ClassVar[int]
    UNIT_ETA_S_FIELD_NUMBER: _ClassVar[int]
    CHECKPOINT_AGE_S_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    TEMPERATURE_C_FIELD_NUMBER: _ClassVar[int]
    MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    SENT_BYTES_FIELD_NUMBER: _ClassVar[int]
    RECEIVED_BYTES_FIELD_NUMBER: _ClassVar[int]
    MONTH_BYTES_FIELD_NUMBER: _ClassVar[int]
    MONTH_CAP_BYTES_FIELD_NUMBER: _ClassVar[int]
    N_OUTBOX_FIELD_NUMBER: _ClassVar[int]
    N_RECEIPTS_FIELD_NUMBER: _ClassVar[int]
    ACCEPTED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    STARTED_S_FIELD_NUMBER: _ClassVar[int]
    FIT_FIELD_NUMBER: _ClassVar[int]
    LOG_FIELD_NUMBER: _ClassVar[int]
    version: str
    pid: int
    home: str
    run: str
    coordinator: str
    worker: str
    name: str
    state: str
    reason: str
    detail: str
    until_s: float
    is_finishing: bool
    unit_id: str
    kind: str
    node: str
    round: int
    step: int
    n_steps: int
    loss: float
    losses: _containers.RepeatedScalarFieldContainer[float]
    tokens_per_s: float
    unit_eta_s: float
    checkpoint_age_s: float
    device: str
    dtype: str
    temperature_c: float
    memory_bytes: int
    sent_bytes: int
    received_bytes: int
    month_bytes: int
    month_cap_bytes: int
    n_outbox: int
    n_receipts: int
    accepted_tokens: int
    started_s: float
    fit: Fit
    log: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, version: _Optional[str] = ..., pid: _Optional[int] = ..., home: _Optional[str] = ..., run: _Optional[str] = ..., coordinator: _Optional[str] = ..., worker: _Optional[str] = ..., name: _Optional[str] = ..., state: _Optional[str] = ..., reason: _Optional[str] = ..., detail: _Optional[str] = ..., until_s: _Optional[float] = ..., is_finishing: _Optional[bool] = ..., unit_id: _Optional[str] = ..., kind: _Optional[str] = ..., node: _Optional[str] = ..., round: _Optional[int] = ..., step: _Optional[int] = ..., n_steps: _Optional[int] = ..., loss: _Optional[float] = ..., losses: _Optional[_Iterable[float]] = ..., tokens_per_s: _Optional[float] = ..., unit_eta_s: _Optional[float] = ..., checkpoint_age_s: _Optional[float] = ..., device: _Optional[str] = ..., dtype: _Optional[str] = ..., temperature_c: _Optional[float] = ..., memory_bytes: _Optional[int] = ..., sent_bytes: _Optional[int] = ..., received_bytes: _Optional[int] = ..., month_bytes: _Optional[int] = ..., month_cap_bytes: _Optional[int] = ..., n_outbox: _Optional[int] = ..., n_receipts: _Optional[int] = ..., accepted_tokens: _Optional[int] = ..., started_s: _Optional[float] = ..., fit: _Optional[_Union[Fit, _Mapping]] = ..., log: _Optional[_Iterable[str]] = ...) -> None: ...
