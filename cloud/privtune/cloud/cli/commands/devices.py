"""`privtune-cloud devices`: let devices in, list and revoke them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from privtune.cloud.cli.durations import seconds
from privtune.cloud.cli.output import print_result, print_table, utc
from privtune.cloud.cli.shared_options import DEFAULT_DATA, AsJson, Data, DatabaseUrl

if TYPE_CHECKING:
    from privtune.cloud.auth import Devices
    from privtune.cloud.auth.device_rows import Device

app = typer.Typer(no_args_is_help=True, help="Devices with certificates: let them in, list and revoke them.")


@app.command("token")
def make_token(
    owner: Annotated[str, typer.Option(help="Whose jobs the device may run.")],
    label: Annotated[str, typer.Option(help="Which machine it is, shown in the list.")] = "",
    expires: Annotated[str, typer.Option(help="How long the token can be used, like 1h or 30m.")] = "1h",
    data: Data = DEFAULT_DATA,
    database_url: DatabaseUrl = None,
    as_json: AsJson = False,
) -> None:
    """Print a token that lets one device in, once. Only its hash is kept.

    Its first part is the SHA-256 of this cloud's authority (DATA/tls/ca.pem), by which the device knows the cloud.

    Example: `privtune-cloud devices token --owner alice --label laptop`
    """
    life = seconds(expires, "expires")
    with _devices(data, database_url) as devices:
        token = devices.new_token(owner, label, life)
    print_result({"owner": owner, "label": label, "token": token, "life_s": life}, token, as_json=as_json)
    typer.echo(
        f"Lets one device of {owner} in, within {expires}. On the device: privtune enroll --cloud https://HOST:PORT "
        "--token TOKEN",
        err=True,
    )


@app.command("list")
def list_devices(
    owner: Annotated[str | None, typer.Option(help="Only this owner's.")] = None,
    data: Data = DEFAULT_DATA,
    database_url: DatabaseUrl = None,
    as_json: AsJson = False,
) -> None:
    """List enrolled devices."""
    with _devices(data, database_url, new=False) as devices:
        found = devices.list(owner)
    rows = [[one.id, one.owner, one.label, utc(one.enrolled_at), utc(one.last_seen_at), _state(one)] for one in found]
    columns = ["id", "owner", "label", "enrolled", "last seen", "state"]
    facts = [asdict(one) for one in found] if as_json else None
    print_table(columns, rows, empty="No device yet: `privtune-cloud devices token --owner NAME`.", facts=facts)


@app.command("revoke")
def revoke_device(
    device: Annotated[str, typer.Argument(help="The device's id.")],
    data: Data = DEFAULT_DATA,
    database_url: DatabaseUrl = None,
    as_json: AsJson = False,
) -> None:
    """Shut a device out: its streams end within seconds, and its jobs wait for another device of their owner."""
    with _devices(data, database_url, new=False) as devices:
        revoked = devices.revoke(device)
    print_result(asdict(revoked), f"Revoked {revoked.id} of {revoked.owner}.", as_json=as_json)


@contextmanager
def _devices(data: Path, database_url: str | None, *, new: bool = True) -> Iterator[Devices]:
    from privtune.cloud.auth import Devices
    from privtune.cloud.auth.authority import open_authority
    from privtune.cloud.db.store import open_store

    with open_store(data, database_url, new=new) as store:
        yield Devices(store, open_authority(data / "tls"))


def _state(device: Device) -> str:
    if device.revoked_at is not None:
        return f"revoked {utc(device.revoked_at)}"
    return f"{'until' if device.ended(time.time()) is None else 'expired'} {utc(device.expires_at)}"
