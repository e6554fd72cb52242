"""The options by which commands reach the cloud."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from privtune.device.cli.option_groups import OptionGroup
from privtune.device.cli.options import CONNECTION, MACHINE, NOISE, Home, Threads, home_folder, option

if TYPE_CHECKING:
    from privtune.device.home.policy import Policy
    from privtune.device.link.rest import ControlPlane
    from privtune.device.session.run_settings import RunSettings


@dataclass(frozen=True, kw_only=True)
class CloudOptions(OptionGroup):
    """Where the cloud's REST API is, the key for it, and the home that may have enrolled there."""

    cloud: Annotated[
        str | None,
        option(
            "Address of the cloud's REST API, like https://cloud.example:8080.", CONNECTION, envvar="PRIVTUNE_CLOUD"
        ),
    ] = None
    api_key: Annotated[
        str | None,
        option(
            "Your key. Set it in the environment instead: other users of this machine can see options.",
            CONNECTION,
            envvar="PRIVTUNE_API_KEY",
        ),
    ] = None
    ca_cert: Annotated[
        Path | None,
        option(
            "PEM file of the cloud's own certificate authority. Default: the one that `privtune enroll` kept, else "
            "SSL_CERT_FILE and SSL_CERT_DIR, else the system's store.",
            CONNECTION,
            envvar="PRIVTUNE_CA",
        ),
    ] = None
    home: Home = None

    @property
    def folder(self) -> Path:
        """The device's home folder, absolute."""
        return home_folder(self.home)

    @property
    def identity(self) -> Path | None:
        """The file of this device's identity at the cloud; None where it has not enrolled."""
        from privtune.device.home.paths import default_home
        from privtune.device.link.identity import identity_file
        from privtune.device.link.rest_client import checked_url

        url = checked_url(self.cloud or "")
        if url.scheme != "https":
            return None
        with suppress(RuntimeError):  # there is no home folder; whatever needs one says so
            file = identity_file((self.home or default_home()).expanduser().absolute(), url.host, url.port)
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


@dataclass(frozen=True, kw_only=True)
class Connection(CloudOptions):
    """How a command that works on the cloud reaches it, and where this device keeps its own files."""

    grpc_address: Annotated[
        str | None,
        option(
            "host:port of the cloud's gateway. Default: the cloud says where it is.",
            CONNECTION,
            envvar="PRIVTUNE_GRPC_ADDRESS",
        ),
    ] = None
    patience: Annotated[
        float,
        option("Seconds without progress before the command gives up. Default: 600.", CONNECTION, min=1),
    ] = 600.0
    threads: Threads = None

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
            ca_cert=self.trusted if self.cloud else self.ca_cert,
            identity=self.identity if self.cloud else None,
            tls=(self.cloud or "").lower().startswith("https:"),
            home=self.folder,
            no_progress_timeout=self.patience,
            policy=policy,
        )


@dataclass(frozen=True, kw_only=True)
class ModelConnection(Connection):
    """A connection of a command that also runs the model's first blocks."""

    local_model: Annotated[
        str | None,
        option(
            "Your own copy of the model (folder, hub id or GGUF file), instead of the first blocks that the cloud "
            "serves.",
            MACHINE,
        ),
    ] = None

    def settings(self, control: ControlPlane | None = None) -> RunSettings:
        """See `Connection.settings`."""
        from dataclasses import replace

        return replace(super().settings(control), local_model=self.local_model)


@dataclass(frozen=True, kw_only=True)
class ReleasingConnection(ModelConnection):
    """A connection of a command that releases texts."""

    another_noise: Annotated[
        bool,
        option(
            "Release texts although they were released under another noise distribution before: whoever has both can "
            "average them. With a policy.yaml, its budget decides (noises).",
            NOISE,
            "--another-noise",
        ),
    ] = False

    def settings(self, control: ControlPlane | None = None) -> RunSettings:
        """See `Connection.settings`."""
        from dataclasses import replace

        return replace(super().settings(control), another_noise=self.another_noise)
