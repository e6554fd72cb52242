"""`privtune-cloud certs`: certificates of a private authority."""

from __future__ import annotations

from typing import Annotated

import typer

from privtune.cloud.cli.output import print_result
from privtune.cloud.cli.shared_options import DEFAULT_DATA, AsJson, Data

app = typer.Typer(no_args_is_help=True, help="Certificates of a private authority.")


@app.command("create")
def create_certs(
    name: Annotated[list[str], typer.Option(help="A host name or address that devices dial; repeatable.")],
    data: Data = DEFAULT_DATA,
    as_json: AsJson = False,
) -> None:
    """Create a private authority (once) and a server certificate for the names and localhost, in DATA/tls.

    Example: `privtune-cloud certs create --name cloud.lan --name 192.168.1.20`
    """
    from privtune.cloud.server.tls import create_certificates

    made = create_certificates(data / "tls", name)
    lines = f"Certificate  {made.cert}\nPrivate key  {made.key}\nFor devices  {made.ca}"
    print_result({"cert": made.cert, "key": made.key, "ca": made.ca}, lines, as_json=as_json)
    typer.echo(f"Serve with: privtune-cloud serve --tls-cert {made.cert} --tls-key {made.key}", err=True)
