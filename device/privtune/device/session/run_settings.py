"""What training, using and exporting a model need to know about this device and its cloud."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from privtune.device.account.run_account import Account
from privtune.device.home.policy import AuditRule, Budget, Policy, budget_of
from privtune.device.link.gateway import GatewayAccess


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """How this device reaches the cloud, and where it keeps its files.

    grpc_address: host:port of the cloud's gateway.
    api_key: proves who this device's owner is.
    ca_cert: PEM file of the authority to trust; None: the system's.
    tls: the gateway speaks TLS on this machine too, as the REST API does.
    identity: file of this device's identity at the cloud; None: it has not enrolled there.
    home: the device's folder.
    local_model: the owner's own copy of the model; None: the bottom package is downloaded from the cloud.
    no_progress_timeout: seconds without progress after which a run gives up (the job stays resumable).
    policy: what jobs may ask for and how much may be released; None: anything, under one noise distribution.
    another_noise: without a policy, texts may be drawn under another noise distribution than before.
    record_frames: keep the frames of both directions, for the audit.
    audit: attack the data first; the policy's rule, where it has one, takes precedence.
    spot_checks: share of the cloud's work that is computed here as well, from the local model; see `spot_share`.
    share_figures: loss, held-out figures, statement and verdict may go to the cloud; see `shares`.
    tell_data: say what was read of a job's data; for an owner who did not see that when the job was made.
    """

    grpc_address: str
    api_key: str
    ca_cert: Path | None = None
    tls: bool = False
    identity: Path | None = None
    home: Path
    local_model: str | None = None
    no_progress_timeout: float = 600.0
    policy: Policy | None = None
    another_noise: bool = False
    record_frames: bool = False
    audit: AuditRule | None = None
    spot_checks: float = 0.0
    share_figures: bool = False
    tell_data: bool = False

    @property
    def audit_rule(self) -> AuditRule | None:
        """What a job's audit must stay within; None: no audit."""
        return (self.policy.audit if self.policy is not None else None) or self.audit

    @property
    def shares(self) -> bool:
        """Whether figures of a job go to the cloud: by the policy, or without one as the owner asks."""
        return self.share_figures if self.policy is None else self.policy.share_figures

    @property
    def spot_share(self) -> float:
        """The share of the cloud's work that this run checks: what is asked for, or more by the policy.

        0 without a local model, for then nothing can be checked.
        """
        if self.local_model is None:
            return 0.0
        return max(self.spot_checks, self.policy.spot_checks if self.policy is not None else 0.0)

    @property
    def budget(self) -> Budget:
        """What may be released of each data set."""
        return budget_of(self.policy, another_noise=self.another_noise)

    @property
    def endpoint(self) -> GatewayAccess:
        """Address of the gateway, and what proves who this device is."""
        return GatewayAccess(
            address=self.grpc_address,
            api_key=self.api_key,
            ca_cert=self.ca_cert,
            tls=self.tls,
            identity=self.identity,
        )

    def account(self, job_id: str) -> Account:
        """Opens the account of one run of a job."""
        return Account(
            self.home,
            job_id,
            cloud=self.grpc_address,
            budget=self.budget,
            record_frames=self.record_frames,
        )
