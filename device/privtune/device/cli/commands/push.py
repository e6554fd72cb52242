"""`privtune push`: give an export to others through a model hub."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from privtune.device.cli.failures import guarded


@guarded
def push(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="What `privtune export` wrote.")],
    repo: Annotated[str, typer.Argument(metavar="REPO", help="owner/name on the hub; made if it is not there.")],
    public: Annotated[bool, typer.Option("--public", help="Readable by everyone. Default: private.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Upload without asking.")] = False,
    message: Annotated[str, typer.Option(help="Of the commit.")] = "Upload a model tuned with PrivTune",
) -> None:
    """Upload an exported model to a Hugging Face hub, after showing what would leave.

    Only files that the export itself wrote are uploaded; a folder that holds anything else is refused. The token is
    HF_TOKEN or that of `hf auth login`; HF_ENDPOINT names another hub. The model was learned from your text: whoever
    can read the repository can try to get it back out.

    \b
    Examples:
      privtune push ./my-adapter alice/reviews
      privtune push ./my-model alice/reviews --public --yes
    """
    from privtune.device.export.push import hub_address, plan_upload
    from privtune.device.export.push import push as upload_to
    from privtune.shared.errors import InvalidInput

    upload = plan_upload(folder.expanduser().absolute())
    typer.echo(f"{repo} at {hub_address()}, {'PUBLIC: readable by everyone' if public else 'private'}", err=True)
    for name, size in upload.files:
        edited = "  (edited since the export)" if name == "README.md" and upload.card_edited else ""
        typer.echo(f"  {size / 1e6:12,.3f} MB  {name}{edited}", err=True)
    typer.echo(f"  {upload.size / 1e6:12,.3f} MB in {len(upload.files)} files", err=True)
    if upload.label_names:
        typer.echo(f"Names of your classes that readers will see: {', '.join(upload.label_names)}", err=True)
    if not yes:
        if not sys.stdin.isatty():
            raise InvalidInput("Nothing was uploaded. Look through the list above, then give --yes.", param="yes")
        if not typer.confirm("Upload?", err=True):
            typer.echo("Nothing was uploaded.", err=True)
            return
    print(upload_to(upload, repo, public=public, message=message))
