"""The error table: every way PrivTune can refuse or fail, on both sides and every surface.

A row gives the stable reason, the gRPC status name, the HTTP status, the process exit code and one line of help.
Raise the class; each surface (CLI, REST, gRPC) looks up its own column. The message is public: it says what went wrong
and what to do, and never carries private text, labels or paths of the other side. Log the detail instead.

    PrivTuneError
    |- InvalidInput            a value on the command line, in a request or in a config file is wrong
    |  `- PackageMissing       this machine lacks an optional package; another may have it
    |- DataInvalid             a data file can't be used (names file, line and column)
    |- ModelNotFound           no such model
    |- CorpusNotFound          no such public text
    |- ModelUnsupported        the model can't be split or loaded safely
    |- CutOutOfRange           the cut is not a block boundary of this model
    |- Unauthenticated         no valid API key
    |- PermissionDenied        the key does not allow this
    |- KeyNotFound             no such API key
    |- JobNotFound             no such job for this key
    |- JobConflict             the job's state does not allow this
    |  `- JobHeld              another device holds the job, for as long as its lease runs
    |- PolicyRefused           the device's own policy refuses the job
    |  `- AuditRefused         the same, found by attacking the job's own data; for the owner only
    |- CloudUnreachable        no connection, or it was lost for longer than the patience
    |- VersionMismatch         the two sides speak different protocol versions or hold different models
    |- MessageTooLarge         a frame or request exceeds the agreed size
    |- FrameCorrupt            a frame's checksum, shape or order is wrong
    |- NonFinite               NaN or infinity in a tensor
    |- SessionSuperseded       a newer session holds the job
    |- HomeOutdated            the device's home is an older copy, or was moved away
    |- HomeLocked              the device's home is encrypted, and its key is not at hand
    |- PortInUse               a server can't listen on the address
    |- StorageFull             no room to write, or not allowed to
    |- CloudOutOfMemory        the cloud has no memory left for this
    |- RateLimited             too many requests in a short time
    |- ArtifactCorrupt         a downloaded or stored file does not match its hash
    |- JobFailed               the job ended as failed
    |- JobCancelled            the job was cancelled
    |- JobPaused               the job was paused (Ctrl-C or a request); nothing is lost
    `- InternalError           a defect of ours
"""

from __future__ import annotations

from typing import Any

from privtune.shared.wording import install


class PrivTuneError(Exception):
    """Root of the table; picklable.

    message: one line, public unless `private`.
    detail: for the log only.
    param: the option or field that is wrong, if one is.
    private: the message holds figures or names of the owner's data, so the cloud must not see it.
    """

    reason = "INTERNAL"
    grpc_status = "INTERNAL"
    http_status = 500
    exit_code = 1
    help = "An unexpected failure inside PrivTune. Please report it with the log."

    def __init__(self, message: str, *, detail: str = "", param: str | None = None, private: bool = False) -> None:
        super().__init__(message)
        self.message = message
        self.detail = detail
        self.param = param
        self.private = private

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild, (type(self), self.message, self.detail, self.param, self.private))

    def __str__(self) -> str:
        return self.message


def _rebuild(kind: type[PrivTuneError], message: str, detail: str, param: str | None, private: bool) -> PrivTuneError:
    return kind(message, detail=detail, param=param, private=private)


class InvalidInput(PrivTuneError):
    """A value given by a person or a client is wrong."""

    reason, grpc_status, http_status, exit_code = "INVALID_INPUT", "INVALID_ARGUMENT", 400, 2
    help = "A value on the command line, in a request or in a config file is wrong. The message names it."


class PackageMissing(InvalidInput):
    """This machine lacks an optional package. A job that needs it stays as it is, for another machine or a later try.

    No row of its own: to whoever gave the command, the command asked for what is not here.
    """


class DataInvalid(PrivTuneError):
    """A data set can't be used; the message names file, line and column."""

    reason, grpc_status, http_status, exit_code = "DATA_INVALID", "INVALID_ARGUMENT", 400, 3
    help = "A data file can't be read or used as it is. The message names the file, line and column."


class ModelNotFound(PrivTuneError):
    """No such model."""

    reason, grpc_status, http_status, exit_code = "MODEL_NOT_FOUND", "NOT_FOUND", 404, 4
    help = "No such model is available. `privtune-cloud models` lists what a cloud offers."


class CorpusNotFound(PrivTuneError):
    """No such public text."""

    reason, grpc_status, http_status, exit_code = "CORPUS_NOT_FOUND", "NOT_FOUND", 404, 4
    help = "This cloud has no such public text to teach with. `privtune teachings corpora` lists what it has."


class ModelUnsupported(PrivTuneError):
    """The model can't be split, or can't be loaded without running its own code."""

    reason, grpc_status, http_status, exit_code = "MODEL_UNSUPPORTED", "FAILED_PRECONDITION", 422, 4
    help = "The model's architecture or file format is not supported. docs/models.md lists those that are."


class CutOutOfRange(PrivTuneError):
    """The cut is not between 0 and the model's number of blocks minus one."""

    reason, grpc_status, http_status, exit_code = "CUT_OUT_OF_RANGE", "INVALID_ARGUMENT", 400, 4
    help = "The cut must be from 0 (embedding only) to the model's number of blocks minus one."


class Unauthenticated(PrivTuneError):
    """No valid API key."""

    reason, grpc_status, http_status, exit_code = "UNAUTHENTICATED", "UNAUTHENTICATED", 401, 5
    help = "The API key is missing or wrong. Create one with `privtune-cloud keys create` and set PRIVTUNE_API_KEY."


class PermissionDenied(PrivTuneError):
    """The key is valid but does not allow this."""

    reason, grpc_status, http_status, exit_code = "PERMISSION_DENIED", "PERMISSION_DENIED", 403, 5
    help = "The API key's scopes or a limit of the cloud do not allow that. The message says which."


class KeyNotFound(PrivTuneError):
    """No such API key to rotate or revoke."""

    reason, grpc_status, http_status, exit_code = "KEY_NOT_FOUND", "NOT_FOUND", 404, 5
    help = "There is no such API key. `privtune-cloud keys list` shows the ids."


class JobNotFound(PrivTuneError):
    """No such job for this key."""

    reason, grpc_status, http_status, exit_code = "JOB_NOT_FOUND", "NOT_FOUND", 404, 6
    help = "There is no such job for this API key. `privtune jobs list` shows yours."


class JobConflict(PrivTuneError):
    """The job's state does not allow this."""

    reason, grpc_status, http_status, exit_code = "JOB_CONFLICT", "FAILED_PRECONDITION", 409, 6
    help = "The job's current state does not allow that. `privtune jobs show` prints its state."


class JobHeld(JobConflict):
    """Another device holds the job, until its lease ends."""

    reason = "JOB_HELD"
    help = "Another device holds the job. An agent waits; `privtune jobs release` gives it to the next device at once."


class PolicyRefused(PrivTuneError):
    """The device's own policy refuses the job."""

    reason, grpc_status, http_status, exit_code = "POLICY_REFUSED", "PERMISSION_DENIED", 403, 7
    help = "The device's own policy refuses the job; nothing was sent. Change the job or the policy."


class AuditRefused(PolicyRefused):
    """The audit before a job found more than the policy allows.

    No row of its own: the message holds figures about private text, so the cloud gets a plain PolicyRefused
    (`privtune.device.training.job`).
    """


class CloudUnreachable(PrivTuneError):
    """No connection to the cloud, or it was lost for longer than the patience."""

    reason, grpc_status, http_status, exit_code = "CLOUD_UNREACHABLE", "UNAVAILABLE", 503, 8
    help = "The cloud can't be reached. Check its address, that it runs, and TLS; then run the command again to resume."


class VersionMismatch(PrivTuneError):
    """The two sides speak different protocol versions or hold different models."""

    reason, grpc_status, http_status, exit_code = "VERSION_MISMATCH", "FAILED_PRECONDITION", 409, 9
    help = "The two sides differ in protocol, model or cut. Upgrade the older side or use the same model."


class MessageTooLarge(PrivTuneError):
    """A frame or request exceeds what the other side accepts."""

    reason, grpc_status, http_status, exit_code = "MESSAGE_TOO_LARGE", "RESOURCE_EXHAUSTED", 413, 10
    help = "A message exceeds the agreed size. Lower --batch-size or --max-length, or raise the cloud's limit."


class FrameCorrupt(PrivTuneError):
    """A frame's checksum, shape, codec or order is wrong."""

    reason, grpc_status, http_status, exit_code = "FRAME_CORRUPT", "DATA_LOSS", 400, 10
    help = "A frame arrived damaged or malformed. The sender repeats it; if this happens again, suspect the network."


class NonFinite(PrivTuneError):
    """NaN or infinity in a tensor."""

    reason, grpc_status, http_status, exit_code = "NON_FINITE", "INVALID_ARGUMENT", 422, 11
    help = "Training produced NaN or infinity. Lower --learning-rate, or use --precision fp32."


class SessionSuperseded(PrivTuneError):
    """A newer session holds the job; this one is fenced off."""

    reason, grpc_status, http_status, exit_code = "SESSION_SUPERSEDED", "ABORTED", 409, 6
    help = "A newer run of this job has begun, here or on another device. `privtune jobs show` prints its state."


class HomeOutdated(PrivTuneError):
    """The device's home is not the newest one: what it would draw may have been drawn already."""

    reason, grpc_status, http_status, exit_code = "HOME_OUTDATED", "FAILED_PRECONDITION", 409, 19
    help = "The device's home is an older copy, or was moved away. Use the newest one; see docs/operations.md."


class HomeLocked(PrivTuneError):
    """The device's home is encrypted, and its key is not at hand, or it is being encrypted right now."""

    reason, grpc_status, http_status, exit_code = "HOME_LOCKED", "FAILED_PRECONDITION", 409, 20
    help = "The device's home is encrypted, and its key could not be had. Unlock the keyring or give the passphrase."


class PortInUse(PrivTuneError):
    """A server can't listen on the address."""

    reason, grpc_status, http_status, exit_code = "PORT_IN_USE", "UNAVAILABLE", 500, 12
    help = "The port is in use or not allowed. Choose another with --http-port or --grpc-port."


class StorageFull(PrivTuneError):
    """No room to write, or the folder can't be written."""

    reason, grpc_status, http_status, exit_code = "STORAGE_FULL", "RESOURCE_EXHAUSTED", 507, 13
    help = "The disk is full or the folder can't be written. Free room and run again; existing files are untouched."


class CloudOutOfMemory(PrivTuneError):
    """The cloud has no memory left for this; the job waits, others continue."""

    reason, grpc_status, http_status, exit_code = "OUT_OF_MEMORY", "RESOURCE_EXHAUSTED", 503, 17
    help = "The cloud ran out of memory; the job waits. Lower --batch-size or --max-length, or run it again later."


class RateLimited(PrivTuneError):
    """Too many requests in a short time.

    retry_after_s: seconds until one more is allowed.
    """

    reason, grpc_status, http_status, exit_code = "RATE_LIMITED", "RESOURCE_EXHAUSTED", 429, 18
    help = "Too many requests came in a short time. Wait as long as the message says, then run it again."

    def __init__(self, message: str, *, retry_after_s: int = 1, **fields: Any) -> None:
        super().__init__(message, **fields)
        self.retry_after_s = retry_after_s


class ArtifactCorrupt(PrivTuneError):
    """A downloaded or stored file does not match its hash."""

    reason, grpc_status, http_status, exit_code = "ARTIFACT_CORRUPT", "DATA_LOSS", 500, 14
    help = "A file does not match its recorded hash. Do not use it: delete it and fetch it again."


class JobFailed(PrivTuneError):
    """The job ended as failed."""

    reason, grpc_status, http_status, exit_code = "JOB_FAILED", "FAILED_PRECONDITION", 409, 15
    help = "The job failed. `privtune jobs events` shows why."


class JobCancelled(PrivTuneError):
    """The job was cancelled."""

    reason, grpc_status, http_status, exit_code = "JOB_CANCELLED", "CANCELLED", 409, 16
    help = "The job was cancelled. The cloud keeps what was trained up to the last checkpoint."


class JobPaused(PrivTuneError):
    """The job was paused; the same command resumes it."""

    reason, grpc_status, http_status, exit_code = "JOB_PAUSED", "CANCELLED", 409, 130
    help = "The job was paused (Ctrl-C or a request). Nothing is lost: run it again to resume."


class InternalError(PrivTuneError):
    """A defect of ours."""


def is_failure(error: BaseException) -> bool:
    """Whether code failed, and not somebody asked it to end.

    A panic of a library in Rust (tokenizers, safetensors) is a `BaseException` and no `Exception`.
    """
    return not isinstance(error, KeyboardInterrupt | SystemExit | GeneratorExit)


def all_errors() -> list[type[PrivTuneError]]:
    """Every class with a reason of its own, in the order of the docstring."""
    return [
        row
        for kind in PrivTuneError.__subclasses__()
        for row in (kind, *(one for one in kind.__subclasses__() if one.reason != kind.reason))
    ]


def by_reason(reason: str, message: str) -> PrivTuneError:
    """The error of a reason that came over the wire; InternalError for a reason that this side does not know."""
    for kind in all_errors():
        if kind.reason == reason:
            return kind(message)
    return InternalError(message)


def missing_package(error: ModuleNotFoundError, extra: str) -> PackageMissing | None:
    """The error of a command that runs without its side's packages; None when the module is one of ours."""
    name = (error.name or "").partition(".")[0]
    if name in ("", "privtune"):
        return None
    return PackageMissing(f"This command needs the package {name}: {install(extra)}.")
