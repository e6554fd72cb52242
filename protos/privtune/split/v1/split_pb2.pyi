from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Codec(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    CODEC_UNSPECIFIED: _ClassVar[Codec]
    CODEC_FP32: _ClassVar[Codec]
    CODEC_BF16: _ClassVar[Codec]
    CODEC_IDS8: _ClassVar[Codec]
    CODEC_IDS16: _ClassVar[Codec]
    CODEC_INT8: _ClassVar[Codec]

class FrameKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    FRAME_KIND_UNSPECIFIED: _ClassVar[FrameKind]
    FRAME_KIND_FORWARD: _ClassVar[FrameKind]
    FRAME_KIND_OUTPUT: _ClassVar[FrameKind]
    FRAME_KIND_GRADIENT: _ClassVar[FrameKind]
    FRAME_KIND_STEP: _ClassVar[FrameKind]
    FRAME_KIND_CUT_GRADIENT: _ClassVar[FrameKind]
    FRAME_KIND_RESEND: _ClassVar[FrameKind]
    FRAME_KIND_END: _ClassVar[FrameKind]
    FRAME_KIND_TABLE: _ClassVar[FrameKind]

class ArtifactKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ARTIFACT_KIND_UNSPECIFIED: _ClassVar[ArtifactKind]
    ARTIFACT_KIND_BOTTOM: _ClassVar[ArtifactKind]
    ARTIFACT_KIND_ADAPTER: _ClassVar[ArtifactKind]
    ARTIFACT_KIND_TAUGHT: _ClassVar[ArtifactKind]
    ARTIFACT_KIND_SHOWN: _ClassVar[ArtifactKind]

class StepOutcome(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    STEP_OUTCOME_UNSPECIFIED: _ClassVar[StepOutcome]
    STEP_OUTCOME_APPLIED: _ClassVar[StepOutcome]
    STEP_OUTCOME_PAUSE: _ClassVar[StepOutcome]
    STEP_OUTCOME_CANCEL: _ClassVar[StepOutcome]
CODEC_UNSPECIFIED: Codec
CODEC_FP32: Codec
CODEC_BF16: Codec
CODEC_IDS8: Codec
CODEC_IDS16: Codec
CODEC_INT8: Codec
FRAME_KIND_UNSPECIFIED: FrameKind
FRAME_KIND_FORWARD: FrameKind
FRAME_KIND_OUTPUT: FrameKind
FRAME_KIND_GRADIENT: FrameKind
FRAME_KIND_STEP: FrameKind
FRAME_KIND_CUT_GRADIENT: FrameKind
FRAME_KIND_RESEND: FrameKind
FRAME_KIND_END: FrameKind
FRAME_KIND_TABLE: FrameKind
ARTIFACT_KIND_UNSPECIFIED: ArtifactKind
ARTIFACT_KIND_BOTTOM: ArtifactKind
ARTIFACT_KIND_ADAPTER: ArtifactKind
ARTIFACT_KIND_TAUGHT: ArtifactKind
ARTIFACT_KIND_SHOWN: ArtifactKind
STEP_OUTCOME_UNSPECIFIED: StepOutcome
STEP_OUTCOME_APPLIED: StepOutcome
STEP_OUTCOME_PAUSE: StepOutcome
STEP_OUTCOME_CANCEL: StepOutcome

class OpenRequest(_message.Message):
    __slots__ = ("protocol_version", "client_version", "job_id", "spec_fingerprint", "hidden_size", "model_fingerprint", "codec", "codec_probe", "checkpoint_steps", "total_steps", "infer", "bottom_sha256", "table_sha256", "holder", "spot_checks", "oldest_protocol_version")
    PROTOCOL_VERSION_FIELD_NUMBER: _ClassVar[int]
    CLIENT_VERSION_FIELD_NUMBER: _ClassVar[int]
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    SPEC_FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    HIDDEN_SIZE_FIELD_NUMBER: _ClassVar[int]
    MODEL_FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    CODEC_FIELD_NUMBER: _ClassVar[int]
    CODEC_PROBE_FIELD_NUMBER: _ClassVar[int]
    CHECKPOINT_STEPS_FIELD_NUMBER: _ClassVar[int]
    TOTAL_STEPS_FIELD_NUMBER: _ClassVar[int]
    INFER_FIELD_NUMBER: _ClassVar[int]
    BOTTOM_SHA256_FIELD_NUMBER: _ClassVar[int]
    TABLE_SHA256_FIELD_NUMBER: _ClassVar[int]
    HOLDER_FIELD_NUMBER: _ClassVar[int]
    SPOT_CHECKS_FIELD_NUMBER: _ClassVar[int]
    OLDEST_PROTOCOL_VERSION_FIELD_NUMBER: _ClassVar[int]
    protocol_version: int
    client_version: str
    job_id: str
    spec_fingerprint: str
    hidden_size: int
    model_fingerprint: str
    codec: Codec
    codec_probe: bytes
    checkpoint_steps: _containers.RepeatedScalarFieldContainer[int]
    total_steps: int
    infer: bool
    bottom_sha256: str
    table_sha256: str
    holder: str
    spot_checks: bool
    oldest_protocol_version: int
    def __init__(self, protocol_version: _Optional[int] = ..., client_version: _Optional[str] = ..., job_id: _Optional[str] = ..., spec_fingerprint: _Optional[str] = ..., hidden_size: _Optional[int] = ..., model_fingerprint: _Optional[str] = ..., codec: _Optional[_Union[Codec, str]] = ..., codec_probe: _Optional[bytes] = ..., checkpoint_steps: _Optional[_Iterable[int]] = ..., total_steps: _Optional[int] = ..., infer: bool = ..., bottom_sha256: _Optional[str] = ..., table_sha256: _Optional[str] = ..., holder: _Optional[str] = ..., spot_checks: bool = ..., oldest_protocol_version: _Optional[int] = ...) -> None: ...

class OpenResponse(_message.Message):
    __slots__ = ("session_epoch", "server_version", "resume_step", "max_in_flight", "max_payload_bytes", "max_tensor_bytes", "top_parameters", "table_sha256", "state_sha256", "dropout_sha256", "protocol_version")
    SESSION_EPOCH_FIELD_NUMBER: _ClassVar[int]
    SERVER_VERSION_FIELD_NUMBER: _ClassVar[int]
    RESUME_STEP_FIELD_NUMBER: _ClassVar[int]
    MAX_IN_FLIGHT_FIELD_NUMBER: _ClassVar[int]
    MAX_PAYLOAD_BYTES_FIELD_NUMBER: _ClassVar[int]
    MAX_TENSOR_BYTES_FIELD_NUMBER: _ClassVar[int]
    TOP_PARAMETERS_FIELD_NUMBER: _ClassVar[int]
    TABLE_SHA256_FIELD_NUMBER: _ClassVar[int]
    STATE_SHA256_FIELD_NUMBER: _ClassVar[int]
    DROPOUT_SHA256_FIELD_NUMBER: _ClassVar[int]
    PROTOCOL_VERSION_FIELD_NUMBER: _ClassVar[int]
    session_epoch: int
    server_version: str
    resume_step: int
    max_in_flight: int
    max_payload_bytes: int
    max_tensor_bytes: int
    top_parameters: int
    table_sha256: str
    state_sha256: str
    dropout_sha256: str
    protocol_version: int
    def __init__(self, session_epoch: _Optional[int] = ..., server_version: _Optional[str] = ..., resume_step: _Optional[int] = ..., max_in_flight: _Optional[int] = ..., max_payload_bytes: _Optional[int] = ..., max_tensor_bytes: _Optional[int] = ..., top_parameters: _Optional[int] = ..., table_sha256: _Optional[str] = ..., state_sha256: _Optional[str] = ..., dropout_sha256: _Optional[str] = ..., protocol_version: _Optional[int] = ...) -> None: ...

class TensorMeta(_message.Message):
    __slots__ = ("codec", "rows", "width")
    CODEC_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    codec: Codec
    rows: int
    width: int
    def __init__(self, codec: _Optional[_Union[Codec, str]] = ..., rows: _Optional[int] = ..., width: _Optional[int] = ...) -> None: ...

class TableHeader(_message.Message):
    __slots__ = ("placed", "offsets", "sha256")
    PLACED_FIELD_NUMBER: _ClassVar[int]
    OFFSETS_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    placed: int
    offsets: int
    sha256: str
    def __init__(self, placed: _Optional[int] = ..., offsets: _Optional[int] = ..., sha256: _Optional[str] = ...) -> None: ...

class ForwardHeader(_message.Message):
    __slots__ = ("record_ids", "lengths", "inlined", "readout", "shared_labels", "want_cut_gradient", "forward_only", "weight", "past")
    RECORD_IDS_FIELD_NUMBER: _ClassVar[int]
    LENGTHS_FIELD_NUMBER: _ClassVar[int]
    INLINED_FIELD_NUMBER: _ClassVar[int]
    READOUT_FIELD_NUMBER: _ClassVar[int]
    SHARED_LABELS_FIELD_NUMBER: _ClassVar[int]
    WANT_CUT_GRADIENT_FIELD_NUMBER: _ClassVar[int]
    FORWARD_ONLY_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_FIELD_NUMBER: _ClassVar[int]
    PAST_FIELD_NUMBER: _ClassVar[int]
    record_ids: _containers.RepeatedScalarFieldContainer[int]
    lengths: _containers.RepeatedScalarFieldContainer[int]
    inlined: _containers.RepeatedScalarFieldContainer[bool]
    readout: bytes
    shared_labels: _containers.RepeatedScalarFieldContainer[int]
    want_cut_gradient: bool
    forward_only: bool
    weight: float
    past: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, record_ids: _Optional[_Iterable[int]] = ..., lengths: _Optional[_Iterable[int]] = ..., inlined: _Optional[_Iterable[bool]] = ..., readout: _Optional[bytes] = ..., shared_labels: _Optional[_Iterable[int]] = ..., want_cut_gradient: bool = ..., forward_only: bool = ..., weight: _Optional[float] = ..., past: _Optional[_Iterable[int]] = ...) -> None: ...

class StepControl(_message.Message):
    __slots__ = ("checkpoint", "pause", "slope", "show", "candidate")
    CHECKPOINT_FIELD_NUMBER: _ClassVar[int]
    PAUSE_FIELD_NUMBER: _ClassVar[int]
    SLOPE_FIELD_NUMBER: _ClassVar[int]
    SHOW_FIELD_NUMBER: _ClassVar[int]
    CANDIDATE_FIELD_NUMBER: _ClassVar[int]
    checkpoint: bool
    pause: bool
    slope: float
    show: bool
    candidate: bool
    def __init__(self, checkpoint: bool = ..., pause: bool = ..., slope: _Optional[float] = ..., show: bool = ..., candidate: bool = ...) -> None: ...

class StepReport(_message.Message):
    __slots__ = ("outcome", "grad_norm", "checkpointed", "shared_loss", "state_sha256", "in_parts")
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    GRAD_NORM_FIELD_NUMBER: _ClassVar[int]
    CHECKPOINTED_FIELD_NUMBER: _ClassVar[int]
    SHARED_LOSS_FIELD_NUMBER: _ClassVar[int]
    STATE_SHA256_FIELD_NUMBER: _ClassVar[int]
    IN_PARTS_FIELD_NUMBER: _ClassVar[int]
    outcome: StepOutcome
    grad_norm: float
    checkpointed: bool
    shared_loss: float
    state_sha256: str
    in_parts: bool
    def __init__(self, outcome: _Optional[_Union[StepOutcome, str]] = ..., grad_norm: _Optional[float] = ..., checkpointed: bool = ..., shared_loss: _Optional[float] = ..., state_sha256: _Optional[str] = ..., in_parts: bool = ...) -> None: ...

class Frame(_message.Message):
    __slots__ = ("session_epoch", "seq", "step", "micro_batch", "kind", "chunk_index", "chunk_count", "payload", "crc32c", "tensor", "forward", "control", "report", "last_micro_batch", "table")
    SESSION_EPOCH_FIELD_NUMBER: _ClassVar[int]
    SEQ_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    MICRO_BATCH_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    CHUNK_INDEX_FIELD_NUMBER: _ClassVar[int]
    CHUNK_COUNT_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_FIELD_NUMBER: _ClassVar[int]
    CRC32C_FIELD_NUMBER: _ClassVar[int]
    TENSOR_FIELD_NUMBER: _ClassVar[int]
    FORWARD_FIELD_NUMBER: _ClassVar[int]
    CONTROL_FIELD_NUMBER: _ClassVar[int]
    REPORT_FIELD_NUMBER: _ClassVar[int]
    LAST_MICRO_BATCH_FIELD_NUMBER: _ClassVar[int]
    TABLE_FIELD_NUMBER: _ClassVar[int]
    session_epoch: int
    seq: int
    step: int
    micro_batch: int
    kind: FrameKind
    chunk_index: int
    chunk_count: int
    payload: bytes
    crc32c: int
    tensor: TensorMeta
    forward: ForwardHeader
    control: StepControl
    report: StepReport
    last_micro_batch: bool
    table: TableHeader
    def __init__(self, session_epoch: _Optional[int] = ..., seq: _Optional[int] = ..., step: _Optional[int] = ..., micro_batch: _Optional[int] = ..., kind: _Optional[_Union[FrameKind, str]] = ..., chunk_index: _Optional[int] = ..., chunk_count: _Optional[int] = ..., payload: _Optional[bytes] = ..., crc32c: _Optional[int] = ..., tensor: _Optional[_Union[TensorMeta, _Mapping]] = ..., forward: _Optional[_Union[ForwardHeader, _Mapping]] = ..., control: _Optional[_Union[StepControl, _Mapping]] = ..., report: _Optional[_Union[StepReport, _Mapping]] = ..., last_micro_batch: bool = ..., table: _Optional[_Union[TableHeader, _Mapping]] = ...) -> None: ...

class CommitRequest(_message.Message):
    __slots__ = ("job_id", "session_epoch", "final_step", "tokens")
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    SESSION_EPOCH_FIELD_NUMBER: _ClassVar[int]
    FINAL_STEP_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    job_id: str
    session_epoch: int
    final_step: int
    tokens: int
    def __init__(self, job_id: _Optional[str] = ..., session_epoch: _Optional[int] = ..., final_step: _Optional[int] = ..., tokens: _Optional[int] = ...) -> None: ...

class CommitResponse(_message.Message):
    __slots__ = ("adapter_sha256",)
    ADAPTER_SHA256_FIELD_NUMBER: _ClassVar[int]
    adapter_sha256: str
    def __init__(self, adapter_sha256: _Optional[str] = ...) -> None: ...

class RefuseRequest(_message.Message):
    __slots__ = ("job_id", "reason", "message", "holder")
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    HOLDER_FIELD_NUMBER: _ClassVar[int]
    job_id: str
    reason: str
    message: str
    holder: str
    def __init__(self, job_id: _Optional[str] = ..., reason: _Optional[str] = ..., message: _Optional[str] = ..., holder: _Optional[str] = ...) -> None: ...

class RefuseResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ClaimRequest(_message.Message):
    __slots__ = ("home_id", "count", "nonce")
    HOME_ID_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    NONCE_FIELD_NUMBER: _ClassVar[int]
    home_id: str
    count: int
    nonce: str
    def __init__(self, home_id: _Optional[str] = ..., count: _Optional[int] = ..., nonce: _Optional[str] = ...) -> None: ...

class ClaimResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ShareRequest(_message.Message):
    __slots__ = ("job_id", "session_epoch", "step", "loss", "held_out_loss", "accuracy", "statement", "verdict")
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    SESSION_EPOCH_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    LOSS_FIELD_NUMBER: _ClassVar[int]
    HELD_OUT_LOSS_FIELD_NUMBER: _ClassVar[int]
    ACCURACY_FIELD_NUMBER: _ClassVar[int]
    STATEMENT_FIELD_NUMBER: _ClassVar[int]
    VERDICT_FIELD_NUMBER: _ClassVar[int]
    job_id: str
    session_epoch: int
    step: int
    loss: float
    held_out_loss: float
    accuracy: float
    statement: str
    verdict: str
    def __init__(self, job_id: _Optional[str] = ..., session_epoch: _Optional[int] = ..., step: _Optional[int] = ..., loss: _Optional[float] = ..., held_out_loss: _Optional[float] = ..., accuracy: _Optional[float] = ..., statement: _Optional[str] = ..., verdict: _Optional[str] = ...) -> None: ...

class ShareResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class RenewRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class RenewResponse(_message.Message):
    __slots__ = ("certificate", "life_s")
    CERTIFICATE_FIELD_NUMBER: _ClassVar[int]
    LIFE_S_FIELD_NUMBER: _ClassVar[int]
    certificate: bytes
    life_s: int
    def __init__(self, certificate: _Optional[bytes] = ..., life_s: _Optional[int] = ...) -> None: ...

class FetchRequest(_message.Message):
    __slots__ = ("kind", "job_id", "file", "offset", "model", "task", "cut", "tail")
    KIND_FIELD_NUMBER: _ClassVar[int]
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    FILE_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    TASK_FIELD_NUMBER: _ClassVar[int]
    CUT_FIELD_NUMBER: _ClassVar[int]
    TAIL_FIELD_NUMBER: _ClassVar[int]
    kind: ArtifactKind
    job_id: str
    file: str
    offset: int
    model: str
    task: str
    cut: int
    tail: int
    def __init__(self, kind: _Optional[_Union[ArtifactKind, str]] = ..., job_id: _Optional[str] = ..., file: _Optional[str] = ..., offset: _Optional[int] = ..., model: _Optional[str] = ..., task: _Optional[str] = ..., cut: _Optional[int] = ..., tail: _Optional[int] = ...) -> None: ...

class FetchResponse(_message.Message):
    __slots__ = ("data",)
    DATA_FIELD_NUMBER: _ClassVar[int]
    data: bytes
    def __init__(self, data: _Optional[bytes] = ...) -> None: ...
