"""From a finished job to a standard PEFT folder: the cloud's adapter joined with the head that never left home."""

from __future__ import annotations

import shutil
from pathlib import Path

from privtune.split.v1 import split_pb2 as pb
from safetensors.torch import load_file

from device.fetch import fetch_folder
from device.head import HeadTrainer
from device.jobfolder import JobFolder
from device.link import Link
from device.parts import load_parts
from device.run import RunSettings
from shared.errors import InvalidInput, JobConflict, StorageFull
from shared.files import native_os_errors
from shared.manifest import MANIFEST
from shared.modeling.export import add_head_to_adapter

HEAD_WEIGHTS = "head.safetensors"  # what the cloud calls the head of a job with shared labels


def export_adapter(job_id: str, target: Path, settings: RunSettings) -> Path:
    """Write a PEFT folder that plain transformers + peft loads, head and label names included.

    `target` must not exist or be empty; it appears whole or not at all. Raises JobNotFound when this device does not
    hold the job, JobConflict while it is not finished, StorageFull when the disk is.
    """
    folder = JobFolder(settings.home, job_id)
    state = folder.load()
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise InvalidInput(f"{target} exists and is not empty; choose another folder")
    if state.final_step is None:
        raise JobConflict("this job is not finished; run `privtune finetune --job` to go on, then export")
    scratch = target.with_name(f".{target.name}.part")
    with Link(settings.endpoint) as link:
        adapter = fetch_folder(link, pb.ARTIFACT_KIND_ADAPTER, job_id, folder.path / "adapter")
        parts = load_parts(
            link,
            job_id,
            state.spec,
            home=settings.home,
            local_model=settings.local_model or state.local_model,
            num_labels=max(len(state.label_names), 2),
            say=lambda _: None,
        )
    head = HeadTrainer(parts.head, state.spec.optim, seed=0, total_steps=1)
    if state.spec.labels == "shared":
        parts.head.load_state_dict(load_file(adapter / HEAD_WEIGHTS))
    elif state.spec.task == "classification":
        head.load(folder.checkpoints, state.final_step)
    try:
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(adapter, scratch, ignore=shutil.ignore_patterns(MANIFEST, HEAD_WEIGHTS))
        with native_os_errors():
            add_head_to_adapter(
                scratch,
                parts.head,
                task=state.spec.task,
                label_names=state.label_names,
                base_model=settings.local_model or state.local_model or state.spec.model,
            )
            parts.tokenizer.save_pretrained(scratch)
        if target.exists():
            target.rmdir()
        scratch.rename(target)
    except OSError as error:
        shutil.rmtree(scratch, ignore_errors=True)
        raise StorageFull(f"{target} can't be written: {error.strerror}; free room and export again") from error
    return target
