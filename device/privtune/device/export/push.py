"""Uploads an export to a model hub: the files that the export listed, and nothing else."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from privtune.device.export.base_name import names_a_path
from privtune.device.export.export_folder import CARD, MADE_BY
from privtune.shared.errors import (
    ArtifactCorrupt,
    CloudUnreachable,
    InvalidInput,
    PermissionDenied,
    PrivTuneError,
    Unauthenticated,
)
from privtune.shared.manifest import MANIFEST, read_manifest, sha256_file

_WITH_LABELS = ("labels.json", "config.json")
_UNNAMED = re.compile(r"LABEL_\d+")


@dataclass(frozen=True, kw_only=True)
class Upload:
    """What would be uploaded.

    folder: the export.
    files: name and size in bytes.
    label_names: names of the classes that the files carry.
    card_edited: README.md is no longer what the export wrote.
    """

    folder: Path
    files: tuple[tuple[str, int], ...]
    label_names: tuple[str, ...]
    card_edited: bool

    @property
    def size(self) -> int:
        """Total size in bytes."""
        return sum(size for _, size in self.files)


def plan_upload(folder: Path) -> Upload:
    """Check a folder of `privtune export` against its manifest.

    Its card may be edited, everything else must be as it was written. Raises InvalidInput when the folder is no export,
    holds anything besides, or names its base by a path of this machine; ArtifactCorrupt when a file is missing or
    changed.
    """
    if not (folder / MANIFEST).is_file():
        raise InvalidInput(f"{folder} is not a folder that `privtune export` wrote: it has no {MANIFEST}.")
    manifest = read_manifest(folder)
    if manifest.get("made_by") != MADE_BY:
        raise InvalidInput(f"{folder} is not a folder that `privtune export` wrote; nothing else is uploaded.")
    if names_a_path(folder):
        raise InvalidInput(
            f"{folder} names its base model by a path of this machine; export it again with --base-name owner/model."
        )
    listed = {str(entry["name"]): str(entry["sha256"]) for entry in manifest["files"]}
    strange = sorted(
        path.name
        for path in folder.iterdir()
        if path.name not in listed.keys() | {MANIFEST} or path.is_symlink() or not path.is_file()
    )
    if strange:
        raise InvalidInput(
            f"{folder} holds {', '.join(strange[:3])}, which the export did not write; nothing was uploaded. "
            "Move it out of the folder first."
        )
    for name, digest in listed.items():
        if not (folder / name).exists() or (name != CARD and sha256_file(folder / name) != digest):
            raise ArtifactCorrupt(f"{folder / name} is missing or not as the export wrote it; export the job again.")
    names = sorted([*listed, MANIFEST])
    return Upload(
        folder=folder,
        files=tuple((name, (folder / name).stat().st_size) for name in names),
        label_names=_label_names(folder),
        card_edited=CARD in listed and sha256_file(folder / CARD) != listed[CARD],
    )


def push(
    upload: Upload, repo: str, *, public: bool = False, message: str = "Upload a model tuned with PrivTune"
) -> str:
    """Upload to `owner/name`, created if missing, private unless `public`. Returns the commit's URL.

    The token is the environment's (HF_TOKEN) or that of `hf auth login`. Raises Unauthenticated without one,
    PermissionDenied when it may not write there or the repository is public and `public` was not said, InvalidInput
    for what the hub refuses, CloudUnreachable.
    """
    from huggingface_hub import CommitOperationAdd, HfApi, get_token
    from huggingface_hub.errors import HfHubHTTPError, HTTPError

    if get_token() is None:
        raise Unauthenticated("The hub needs a token: set HF_TOKEN, or log in with `hf auth login`.")
    api = HfApi()
    operations = [CommitOperationAdd(name, upload.folder / name) for name, _ in upload.files]
    try:
        api.create_repo(repo, private=not public, exist_ok=True)
        if not public and not api.model_info(repo).private:
            raise PermissionDenied(f"{repo} is public on the hub; nothing was uploaded. Give --public if you mean it.")
        return str(api.create_commit(repo, operations, commit_message=message).commit_url)
    except HfHubHTTPError as error:
        raise _refused(error, repo) from error
    except (HTTPError, OSError, RuntimeError) as error:  # RuntimeError: raised by its uploading threads
        raise CloudUnreachable(
            f"The hub at {api.endpoint} can't be reached, or the connection broke; nothing is visible there.",
            detail=repr(error.__cause__ or error),
        ) from error
    except ValueError as error:  # a name or front matter that breaks the hub's rules
        raise InvalidInput(" ".join(str(error).split())[:300], param="repo") from error


def hub_address() -> str:
    """Where the hub is (HF_ENDPOINT)."""
    from huggingface_hub import constants

    return str(constants.ENDPOINT)


def _refused(error: Any, repo: str) -> PrivTuneError:
    status = error.response.status_code
    said = " ".join(str(getattr(error, "server_message", None) or error).split())[:200]
    if status == 401:
        return Unauthenticated(f"The hub does not accept the token ({said}). Set HF_TOKEN or `hf auth login` again.")
    if status == 403:
        return PermissionDenied(f"The token may not write to {repo} ({said}).")
    if status == 429 or status >= 500:
        return CloudUnreachable(f"The hub failed with status {status}; try again later.", detail=said)
    return InvalidInput(f"The hub refused {repo} with status {status}: {said}", param="repo")


def _label_names(folder: Path) -> tuple[str, ...]:
    """The names of classes that the model's files carry; empty if they are LABEL_0, LABEL_1, ..."""
    for name in _WITH_LABELS:
        if (folder / name).is_file():
            names = json.loads((folder / name).read_text(encoding="utf-8")).get("id2label", {}).values()
            return tuple(str(one) for one in names if not _UNNAMED.fullmatch(str(one)))
    return ()
