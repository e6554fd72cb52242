"""Findings about what a job really sent: labels in gradients, slopes and states, second draws, equal bytes, other jobs.

B records, E epochs, D hidden width.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn

from privtune.device.account.hash_chain import digest
from privtune.device.account.run_account import TRANSCRIPT
from privtune.device.account.verify import KEY_BYTES, read_run
from privtune.device.audit.attacks.channels import LABELS, Finding, labels_by_direction, share_of
from privtune.device.audit.attacks.slope_labels import SlopeStep, labels_from_slopes
from privtune.device.audit.jobs.recorded import Collected, Traffic
from privtune.device.audit.metrics import Figure
from privtune.device.data.batches import BatchPlan
from privtune.device.data.encode import EncodedDataset
from privtune.device.model.slope_head import SlopeHead
from privtune.device.privacy.statements import SlopeStatement
from privtune.shared.at_rest import read_bytes
from privtune.shared.job_spec import JobSpec
from privtune.shared.modeling.partition import Head
from privtune.shared.wording import counted

_STATES = (
    "States that the tuned top computed for the records, grouped by direction. The cloud computes these itself: a "
    "defence of the gradients does not hide them, and the better the model is tuned, the more they reveal."
)


def label_findings(found: Collected, data: EncodedDataset) -> Iterator[Finding]:
    """Labels of the training records, from what training sent and received; nothing for language models."""
    if data.labels is None:
        return
    if found.labels:
        everything = Figure(value=1.0, low=1.0, high=1.0, floor=0.0)
        yield Finding(
            name="labels that were sent",
            figure=everything,
            text=f"The job had labels: shared. Sent in the clear: {counted(found.labels, 'class number')}.",
        )
    handles, gradients_EBD = found.gradients_EBD()
    labels_B = torch.from_numpy(data.labels[handles])
    epochs = len(gradients_EBD)
    if epochs:
        yield labels_by_direction(gradients_EBD[0], labels_B, name="labels from recorded head gradients", text=LABELS)
    if epochs > 1:
        units_EBD = nn.functional.normalize(gradients_EBD, dim=2)
        yield labels_by_direction(
            units_EBD.transpose(0, 1).flatten(1),
            labels_B,
            name=f"the same, {epochs} epochs side by side",
            text="Every epoch sends a gradient of each record: several may reveal what one leaves open.",
        )
    if found.states:
        seen = sorted(found.states)
        states_BD = torch.stack([found.states[handle] for handle in seen])
        yield labels_by_direction(
            states_BD - states_BD.mean(0),
            torch.from_numpy(data.labels[seen]),
            name="labels from the states that came back",
            text=_STATES,
        )


def slope_findings(
    found: Collected, data: EncodedDataset, spec: JobSpec, head: Head, trained: int
) -> Iterator[Finding]:
    """Labels of the training records from a zeroth-order job's slopes; nothing for other jobs, or without every step.

    head: as the job began with it. trained: how many of the records, which come first, the job trains on.
    """
    wanted, steps = spec.zeroth_order, len(found.slopes)
    if data.labels is None or wanted.epsilon is None or sorted(found.slopes) != list(range(steps)) or not steps:
        return
    plan = BatchPlan(data.lengths[:trained], spec.train)
    times = plan.times(plan.total_steps)
    claim = SlopeStatement(
        epsilon=wanted.epsilon,
        delta=wanted.delta,
        clip=wanted.clip,
        times=times,
        support=wanted.support,
        ratio=wanted.support_ratio,
    )
    labels_B, replayed, seen = torch.from_numpy(data.labels[:trained]), SlopeHead(head, spec, plan.total_steps, []), []
    for step in range(steps):
        handles, outputs = zip(*found.both[step].values(), strict=True)
        record_N, out_2ND = torch.cat(handles), torch.cat([torch.stack(out.chunk(2)) for out in outputs], dim=1)
        of_class = [torch.full_like(record_N, label) for label in range(len(data.label_names))]
        slope_NC = torch.stack([replayed.slopes(out_2ND.flatten(0, 1), one_N) for one_N in of_class], dim=1)
        slope_NC = slope_NC.clamp(-claim.clip, claim.clip)
        seen.append(SlopeStep(record_N=record_N, slope_NC=slope_NC, total=found.slopes[step] * len(record_N)))
        replayed.learn(found.slopes[step])
    yield labels_from_slopes(seen, labels_B, claim)


def identity_findings(
    found: Collected, traffic: Traffic, home: Path, job_id: str, keys: Sequence[bytes]
) -> Iterator[Finding]:
    """Whether the bytes of a record ever changed, equal those of another record, or occur in another job."""
    handles = sorted(found.uploads)
    if not handles:
        return
    several = [len(found.uploads[handle]) > 1 for handle in handles]
    again = sum(sum(found.uploads[handle].values()) > 1 for handle in handles)
    note = "The bytes were the same every time, in every epoch: there is nothing to average."
    if any(several):
        note = f"{sum(several):,} of them had other bytes, which can be averaged: the attacked rows are the mean."
    yield Finding(
        name="records sent as two different draws",
        figure=share_of(np.array(several), 0.0),
        text=f"{again:,} of {counted(len(handles), 'record')} sent more than once (new sessions, resends). {note}",
    )
    owners = Counter(draw for handle in handles for draw in found.uploads[handle])
    equal = [any(owners[draw] > 1 for draw in found.uploads[handle]) for handle in handles]
    yield Finding(
        name="records with the bytes of another record",
        figure=share_of(np.array(equal), 0.0),
        text="Equal bytes show the cloud that two records are equal, not what they say.",
    )
    jobs, elsewhere = _sent_elsewhere(home, job_id, traffic.scopes)
    linked = [keys[handle] in elsewhere for handle in handles]
    yield Finding(
        name="records whose bytes other jobs sent as well",
        figure=share_of(np.array(linked), 0.0),
        text=f"{counted(jobs, 'other job')} of this device used the same model and noise: if they have the same "
        "record, the "
        "cloud sees that it is the same (new draws could be averaged).",
    )


def _sent_elsewhere(home: Path, job_id: str, scopes: set[str]) -> tuple[int, set[bytes]]:
    """How many other jobs drew from the same noise distribution, and the keys of all records that they sent."""
    jobs: set[str] = set()
    sent: set[bytes] = set()
    for path in sorted((home / "jobs").glob(f"*/{TRANSCRIPT}/[0-9]*.jsonl")):
        other = path.parent.parent.name
        if other == job_id:
            continue
        keys: list[bytes] = []
        for line in read_run(path, other)[0]:
            if line["type"] == "records":
                keys = _keys(path.parent / f"{line['keys']}.keys", line["keys"]) if line["scope"] in scopes else []
            carried = [keys[handle] for handle in line.get("releases", ()) if handle < len(keys)]
            sent.update(carried)
            jobs.update([other] if carried else [])
    return len(jobs), sent


def _keys(file: Path, name: str) -> list[bytes]:
    packed = read_bytes(file) if file.exists() else b""
    if digest(packed) != name:
        return []  # `privtune transcript verify` of that job says so
    return [packed[at : at + KEY_BYTES] for at in range(0, len(packed), KEY_BYTES)]


def not_kept(traffic: Traffic) -> Iterator[str]:
    """Traffic that was not examined because only its hash was kept: one line per kind of frame."""
    for kind, count in sorted(traffic.counts.items()):
        lacking = count.frames - count.kept_frames
        if lacking and "(call)" not in kind:
            yield f"{lacking:,} of {counted(count.frames, 'frame')} {kind}: only hashes of them were kept."
