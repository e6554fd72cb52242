"""The options by which commands reach the cloud."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from privtune.device.cli.option_groups import OptionGroup
from privtune.device.cli.options import CONNECTION, MACHINE, NOISE, Home, Threads, home_folder, option
from privtune.device.client.access import Access

if TYPE_CHECKING:
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
    def access(self) -> Access:
        """The same, as what is done with it takes it."""
        return Access(**{one.name: getattr(self, one.name) for one in fields(Access) if hasattr(self, one.name)})

    @property
    def folder(self) -> Path:
        """The device's home folder, absolute, open until the command ends."""
        return home_folder(self.home)

    def control(self) -> ControlPlane:
        """See `Access.control`."""
        return self.access.control()


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
        """See `Access.settings`."""
        return replace(self.access, home=self.folder).settings(control)

    def local_settings(self, grpc_address: str) -> RunSettings:
        """See `Access.local_settings`."""
        return replace(self.access, home=self.folder).local_settings(grpc_address)


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
