"""`privtune push`: upload an export to a model hub."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from privtune.device.cli.error_report import guarded
from privtune.device.cli.options import AsJson, to_stderr
from privtune.device.cli.printing import print_result, print_table
from privtune.shared.wording import counted


@guarded
def push(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="A folder that `privtune export` wrote.")],
    repo: Annotated[str, typer.Argument(metavar="REPO", help="owner/name on the hub; created if it does not exist.")],
    public: Annotated[
        bool, typer.Option("--public", help="Let everyone read the repository. Default: private.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Upload without asking.")] = False,
    message: Annotated[str, typer.Option(help="Message of the commit.")] = "Upload a model tuned with PrivTune",
    as_json: AsJson = False,
) -> None:
    """Upload an exported model to a Hugging Face hub, after showing what would be uploaded.

    Only files that the export wrote are uploaded; a folder that holds anything else is refused. The token comes from
    HF_TOKEN or `hf auth login`; HF_ENDPOINT selects another hub. The model was trained on your text: whoever can read
    the repository can try to extract it.

    \b
    Examples:
      privtune push ./my-adapter alice/reviews
      privtune push ./my-model alice/reviews --public --yes
    """
    from privtune.device.export.push import hub_address, plan_upload
    from privtune.device.export.push import push as upload_to
    from privtune.shared.errors import InvalidInput

    upload = plan_upload(folder.expanduser().absolute())
    to_stderr(f"{repo} at {hub_address()}, {'PUBLIC: readable by everyone' if public else 'private'}")
    rows = [(name, size, name == "README.md" and upload.card_edited) for name, size in upload.files]
    rows.append((f"in {counted(len(upload.files), 'file')}", upload.size, False))
    print_table(
        [
            (f"{size / 1e6:,.3f} MB", name + ("  (edited since the export)" if edited else ""))
            for name, size, edited in rows
        ],
        numbers=(0,),
        stream=sys.stderr,
    )
    if upload.label_names:
        to_stderr(f"Names of your classes that readers will see: {', '.join(upload.label_names)}")
    if not yes:
        if not sys.stdin.isatty():
            raise InvalidInput("Nothing was uploaded. Look through the list above, then give --yes.", param="yes")
        if not typer.confirm("Upload?", err=True):
            to_stderr("Nothing was uploaded.")
            return
    url = upload_to(upload, repo, public=public, message=message)
    print_result({"url": url, "bytes": upload.size, "public": public}, url, as_json=as_json)
