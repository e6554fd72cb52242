"""How this device reaches a cloud, and where it keeps its own files: of every command and of a `Client`."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from privtune.device.home.policy import Policy
    from privtune.device.link.rest import ControlPlane
    from privtune.device.session.run_settings import RunSettings


@dataclass(frozen=True, kw_only=True)
class Access:
    """A cloud, the key for it, and the device's home.

    cloud: address of its REST API; None where nothing is asked of one.
    api_key: the owner's key.
    ca_cert: PEM file of the cloud's own authority; None: the one that enrolment kept, else the system's.
    home: the device's folder; None: the default one.
    grpc_address: of the gateway; None: the cloud says where it is.
    patience: seconds without progress after which a run gives up.
    local_model: the owner's own copy of the model; None: the first blocks come from the cloud.
    another_noise: texts may be released under another noise distribution than before.
    """

    cloud: str | None = None
    api_key: str | None = None
    ca_cert: Path | None = None
    home: Path | None = None
    grpc_address: str | None = None
    patience: float = 600.0
    local_model: str | None = None
    another_noise: bool = False

    @property
    def folder(self) -> Path:
        """The device's folder, absolute; it may not exist yet. Raises RuntimeError where there is no home folder."""
        from privtune.device.home.paths import default_home

        return (self.home or default_home()).expanduser().absolute()

    @property
    def identity(self) -> Path | None:
        """The file of this device's identity at the cloud; None where it has not enrolled."""
        from privtune.device.link.identity import identity_file
        from privtune.device.link.rest_client import checked_url

        if not self.cloud:
            return None
        url = checked_url(self.cloud)
        if url.scheme != "https":
            return None
        with suppress(RuntimeError):  # there is no home folder; whatever needs one says so
            file = identity_file(self.folder, url.host, url.port)
            return file if file.exists() else None
        return None

    @property
    def trusted(self) -> Path | None:
        """The file of whom to trust; None: the system decides."""
        from privtune.device.link.identity import authority_file

        kept = None if self.identity is None else authority_file(self.identity)
        return self.ca_cert or (kept if kept is not None and kept.exists() else None)

    def control(self) -> ControlPlane:
        """The REST client. Raises InvalidInput or Unauthenticated when the address or the key is not given."""
        from privtune.device.link.rest import ControlPlane
        from privtune.shared.errors import InvalidInput

        if not self.cloud:
            raise InvalidInput("Which cloud? Set PRIVTUNE_CLOUD or give --cloud https://host:port.", param="cloud")
        return ControlPlane(self.cloud, self.api_key or "", self.trusted, enrolled=self.identity is not None)

    def settings(self, control: ControlPlane | None = None) -> RunSettings:
        """How to reach the gateway, with the device's own policy.

        control: an open REST client, which is asked for the gateway's address if need be; None opens one.

        Raises InvalidInput, Unauthenticated, CloudUnreachable.
        """
        from privtune.device.home.policy_file import home_policy

        policy = home_policy(self.folder)  # first: mistakes of this machine show before the cloud is asked
        if control is None:
            with self.control() as own:
                return self.settings(own)
        return self.local_settings(self.grpc_address or control.grpc_address(), policy=policy)

    def local_settings(self, grpc_address: str, policy: Policy | None = None) -> RunSettings:
        """The same for a gateway whose address is known, or not known yet."""
        from privtune.device.session.run_settings import RunSettings

        return RunSettings(
            grpc_address=grpc_address,
            api_key=(self.api_key or "").strip(),
            ca_cert=self.trusted,
            identity=self.identity,
            tls=(self.cloud or "").lower().startswith("https:"),
            home=self.folder,
            no_progress_timeout=self.patience,
            policy=policy,
            local_model=self.local_model,
            another_noise=self.another_noise,
        )
