"""The settings of one cloud process: frozen, made once by the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from privtune.shared.logs import LogFormat

MIB = 1024 * 1024


class Limits(BaseModel):
    """What an owner may take of the cloud; see `privtune.cloud.limits`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    models: tuple[str, ...] | None = Field(None, description="Models that it may use; None: every one on offer.")
    unfinished_jobs: int = Field(100, ge=1, description="Jobs that have not ended.")
    requests_per_minute: int = Field(6000, ge=1, description="Over REST and gRPC.")
    bytes_per_minute: int | None = Field(None, ge=1, description="What its devices may send; None: no limit.")
    stored_bytes: int | None = Field(None, ge=1, description="Checkpoints and adapters; None: no limit.")


class Settings(BaseModel):
    """Settings of `privtune-cloud serve`. Sizes in bytes; port 0 lets the system choose."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    data_folder: Path = Field(description="Holds database, TLS keys, checkpoints, adapters, bottom packages.")
    host: str = Field("127.0.0.1", min_length=1, description="Address of both servers.")
    http_port: int = Field(8080, ge=0, le=65535)
    grpc_port: int = Field(8081, ge=0, le=65535)
    device_port: int = Field(
        8082, ge=0, le=65535, description="gRPC for enrolled devices; opened only where both servers speak TLS."
    )
    require_enrolment: bool = Field(False, description="gRPC for enrolled devices alone: no API key is enough.")
    certificate_days: int = Field(7, ge=1, le=365, description="Days that a device's certificate lasts.")
    database_url: str | None = Field(None, repr=False, description="None: SQLite in the data folder.")
    artifacts_url: str | None = Field(None, description="s3://BUCKET/PREFIX; None: artifacts are in the data folder.")
    tls_cert: Path | None = Field(None, description="PEM: the server's certificate, then its chain.")
    tls_key: Path | None = Field(None, description="PEM: the private key.")
    metrics_port: int | None = Field(None, ge=0, le=65535, description="For Prometheus; None: nowhere.")
    metrics_host: str = Field("127.0.0.1", min_length=1, description="Address of the listener for Prometheus.")
    max_request_bytes: int = Field(MIB, ge=1024, description="Largest body of a REST request.")
    max_tensor_bytes: int = Field(256 * MIB, ge=MIB, description="Largest tensor that a device may send.")
    max_release_bytes: int = Field(
        2048 * MIB, ge=0, description="Memory for a job's released vectors, kept for later epochs."
    )
    max_memory_bytes: int = Field(
        8192 * MIB,
        ge=64 * MIB,
        description="Memory of all jobs together beside the models: what streams sent, released vectors, forward "
        "passes that wait for their gradients, texts, trained weights and their optimisers.",
    )
    max_teacher_bytes: int = Field(
        32768 * MIB, ge=MIB, description="Disk space for what the model makes of a teaching's public text."
    )
    max_texts_bytes: int = Field(2048 * MIB, ge=MIB, description="Memory for keys and values of texts being generated.")
    max_texts: int = Field(1024, ge=1, description="Texts being generated at once, over all owners.")
    texts_idle_s: float = Field(900.0, gt=0, description="Seconds after which an abandoned text is freed.")
    batch_jobs: int = Field(
        1,
        ge=1,
        le=64,
        description="Passes over one base that are computed as one, of different jobs or micro-batches. 1: each alone, "
        "so that a job's numbers do not depend on what runs beside it.",
    )
    base_weights: Literal["auto", "fp32", "bf16", "int8", "nf4"] = Field(
        "auto",
        description="How the frozen blocks are kept in memory. auto: bf16 on a GPU that computes in it, else fp32.",
    )
    stream_idle_s: float = Field(
        3600.0, gt=0, description="Seconds for which a stream may say nothing while it waits for no answer."
    )
    unread_s: float = Field(120.0, gt=0, description="Seconds that a device may leave a message unread.")
    lease_s: int = Field(
        60, ge=5, le=3600, description="Seconds for which a job stays its device's after the device was last heard of."
    )
    give_up_days: float | None = Field(
        None, gt=0, description="Days for which a job waits for the device that began it. None: for ever."
    )
    limits: Limits = Field(Limits(), description="Of every owner that has no others.")
    max_teachings_per_owner: int = Field(
        20, ge=1, description="Unfinished and succeeded teachings that an owner keeps."
    )
    max_changes_per_minute: int = Field(
        120, ge=1, description="Jobs that an owner may create, pause or resume within a minute."
    )
    keep_jobs_days: int | None = Field(
        None, ge=1, description="Days after which a job that has ended is deleted; None: never."
    )
    keep_events_days: int = Field(90, ge=1, description="Days for which a job that has ended keeps its events.")
    keep_packages_days: int = Field(
        30, ge=1, description="Days after which a bottom package that no device fetches is deleted."
    )
    keep_audit_days: int | None = Field(
        None, ge=1, description="Days after which entries of the audit log are deleted; None: never."
    )
    dashboard: bool = Field(True, description="Serve the dashboard at `/` beside REST.")
    max_event_streams: int = Field(256, ge=1, description="Event streams open at once.")
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: LogFormat = "text"

    @model_validator(mode="after")
    def _certificate_and_key_go_together(self) -> Settings:
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ValueError("--tls-cert and --tls-key go together: give both or neither")
        if self.require_enrolment and self.tls_cert is None:
            raise ValueError("--require-enrolment needs TLS: add --tls-auto, or --tls-cert and --tls-key")
        return self

    @property
    def tls(self) -> bool:
        """Whether both servers speak TLS."""
        return self.tls_cert is not None

    @property
    def tls_folder(self) -> Path:
        """Where the private authority is, and the certificate of `--tls-auto` and `certs create`."""
        return self.data_folder / "tls"
