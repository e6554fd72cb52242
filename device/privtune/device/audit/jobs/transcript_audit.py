"""`privtune audit --transcript`: attacks what a job of this device really sent, and what came back.

Needs the frames (`privtune finetune --record-frames`), the unchanged data, and the owner's own copy of the model.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from privtune.device.account.hash_chain import digest
from privtune.device.account.run_account import TRANSCRIPT
from privtune.device.audit.attacks import channels
from privtune.device.audit.attacks.attack import Lab, Say
from privtune.device.audit.attacks.gradients import SentBack
from privtune.device.audit.attacks.retrieval import retrieval
from privtune.device.audit.attacks.row_space import row_space
from privtune.device.audit.case import build_case, choose_attacked, public_texts, whole_model
from privtune.device.audit.identifying import hidden_words
from privtune.device.audit.jobs.evidence import identity_findings, label_findings, not_kept, slope_findings
from privtune.device.audit.jobs.recorded import Collected, Collector, Traffic
from privtune.device.audit.jobs.sent_records import SentRecords, Sources, sent_records
from privtune.device.audit.report.document import NOT_TESTED, Audit, audit_of
from privtune.device.audit.sizes import Size
from privtune.device.audit.strengths import place
from privtune.device.audit.suite import attack_gradients, attack_releases
from privtune.device.data.batches import IndexArray
from privtune.device.data.encode import EncodedDataset, IntArray
from privtune.device.home.job_folder import JobFolder, JobState
from privtune.device.home.paths import check_job_id
from privtune.device.home.run_request import RunRequest
from privtune.device.model.bottom import encode_records
from privtune.device.release.noising import Noise, build_noise, release_scope
from privtune.device.release.own_records import OwnRecords
from privtune.device.release.record_keys import record_keys
from privtune.shared.errors import InvalidInput, JobConflict
from privtune.shared.modeling.bottom_package import BottomPackage, bottom_from_model

_LABEL_ROWS = 20_000  # most gradients that the label attack holds, over all epochs
_PADDED = "Lengths: attackers were told which rows are filler; finding the end of a text was not tried."
_SIMULATED = (
    "Fresh noise (averaging of fresh draws, links between jobs of different settings): none was sent. "
    "`privtune audit --data` simulates it."
)


@dataclass(frozen=True, kw_only=True)
class JobAudit:
    """Which job, and what this device has no record of.

    model: the owner's copy; None: the one that the job started with.
    sources: training and held-out data; None: those given to `privtune finetune`.
    """

    job_id: str
    model: str | None = None
    sources: Sources | None = None
    public_text: Path | None = None
    size: Size
    seed: int = 0


def audit_job(request: JobAudit, home: Path, say: Say, keep: Path | None = None) -> Audit:
    """Attack the recorded frames of a job.

    Raises JobNotFound (not a job of this device), JobConflict (no frames were kept; the data, the model or the noise's
    public tables are not those of the job), InvalidInput (no model or data named), ArtifactCorrupt (damaged frames).
    """
    began = time.monotonic()
    folder = JobFolder(home, check_job_id(request.job_id))
    state = folder.load()
    sources = _sources(request, home)
    material = sent_records(sources, state)
    parts, data, trained = _parts_and_data(request, sources, material, state)
    keys = [key.packed() for key in (*record_keys(data.ids[:trained]), *record_keys(data.ids[trained:]))]
    traffic = Traffic(folder.path / TRANSCRIPT, request.job_id, digest(b"".join(keys)))
    own = OwnRecords(home=home, fingerprint=state.data_fingerprint, job=folder.path, data=data.pick(np.arange(trained)))
    noise = build_noise(parts, state.spec.mechanism, state.spec.cut, home, own, job=state.spec, progress=say)
    _check_noise(traffic, noise, parts, state)
    whole = whole_model(parts.name, state.spec.task, len(state.label_names))
    say("model, data and frames", 1.0)
    sent = np.array(sorted(handle for handle in traffic.handles if handle < len(data)), dtype=np.int64)
    chosen = choose_attacked(data, request.size, request.seed, among=sent)
    found = _collect(traffic, chosen, sent[sent < trained], state, noise, request.seed)
    chosen = np.array([handle for handle in chosen if handle in found.rows], dtype=np.int64)
    if not len(chosen):
        raise JobConflict(f"the kept frames of job {request.job_id} carry no whole record of its data")
    longest = state.spec.train.longest(parts.max_positions)
    case, records = build_case(
        parts,
        noise,
        data,
        chosen,
        size=request.size,
        seed=request.seed,
        public=public_texts(request.public_text, home),
        max_length=longest,
        whole=whole,
        hidden=hidden_words(material.own_words, data, longest, parts.tokenizer),
    )
    case = replace(case, skip=state.spec.tail > 0 and state.spec.skip != "none")
    rows = [_of_text(noise, ids_T, found.rows[handle]) for ids_T, handle in zip(case.attacked.ids, chosen, strict=True)]
    observed = case.victim.received(case.attacked.ids, rows)
    lab = Lab(case.public, case.victim, case.encoder)
    outcome = attack_releases(case, lab, request.size, [observed] * request.size.seeds, say=say, keep=keep)
    if found.words:
        attack_gradients(case, observed, [_numbered(sent, chosen) for sent in found.words], outcome)
    outcome.add_replaced(case.hidden)
    outcome.findings.append(retrieval(lab, observed, case.attacked.ids, case.public.records))
    outcome.findings.append(row_space(lab, observed))
    outcome.findings.extend(label_findings(found, data))
    outcome.findings.extend(slope_findings(found, data, state.spec, parts.head, trained))
    outcome.findings.extend(identity_findings(found, traffic, home, request.job_id, keys))
    if noise.importance is not None:
        outcome.findings.append(channels.importance_from_radius(observed, noise.importance))
    say("side channels", 1.0)
    statement = noise.mechanism.statement(noise.source)
    statement = statement if material.replacement is None else material.replacement.claim(statement)
    points = place(case, lab, request.size, outcome, [], say)
    facts = {
        "frontier": points,
        "model": parts.name,
        "cut": state.spec.cut,
        "tail": state.spec.tail,
        "skip": state.spec.skip if state.spec.tail else None,
        "mechanism": state.spec.mechanism.model_dump(),
        "size": request.size.name,
        "records": records,
        "seconds": round(time.monotonic() - began, 1),
        "statement": statement.to_dict(),
        "surrogates": None if material.replacement is None else asdict(material.replacement),
        "transcript": {
            "job": request.job_id,
            "records_sent": len(found.uploads),
            "frames": {kind: asdict(count) for kind, count in sorted(traffic.counts.items())},
            "notes": traffic.notes,
        },
    }
    padded = () if noise.padding is None else (_PADDED,)
    return audit_of(facts, case, outcome, (*not_kept(traffic), *padded, _SIMULATED, *NOT_TESTED))


def _of_text(noise: Noise, ids_T: IntArray, rows_MD: Tensor) -> Tensor:
    """The rows of a record without those of its filler, which the attacker is told."""
    if noise.padding is None or noise.mechanism.shortens:
        return rows_MD
    own_T = noise.padding.own(ids_T)
    if len(rows_MD) <= own_T[-1]:
        raise JobConflict("the kept frames carry records of other lengths than this job pads to; they are damaged")
    return rows_MD[own_T]


def _sources(request: JobAudit, home: Path) -> Sources:
    asked = RunRequest.load(home, request.job_id)
    sources = request.sources or (None if asked is None else (asked.train, asked.validation))
    if sources is None:
        raise InvalidInput(
            f"job {request.job_id} was not started by `finetune` here: name its data with --data, or the "
            "agent's file with --config",
            param="data",
        )
    return sources


def _parts_and_data(
    request: JobAudit, sources: Sources, material: SentRecords, state: JobState
) -> tuple[BottomPackage, EncodedDataset, int]:
    """The model's parts, the job's records in the order of their handles, and the number of training records."""
    model, spec = request.model or state.local_model, state.spec
    if model is None:
        raise InvalidInput(
            f"job {request.job_id} used the bottom that the cloud serves, and the attacker has the whole model: name "
            "your copy of it with --model",
            param="model",
        )
    parts = bottom_from_model(
        model, spec.task, spec.cut, num_labels=max(len(state.label_names), 2), seed=spec.train.seed
    )
    train, *held_out = [
        encode_records(parts, records, spec, state.label_names, state.prompt) for records in material.parts
    ]
    if train.fingerprint != state.data_fingerprint:
        raise JobConflict(
            f"{sources[0].path} is not what job {request.job_id} was trained on (or the tokenizer has changed), so "
            "what was sent is not known; restore the file"
        )
    return parts, _joined([train.pick(state.order(len(train))), *map(state.shuffled, held_out)]), len(train)


def _joined(parts: Sequence[EncodedDataset]) -> EncodedDataset:
    labels = [part.labels for part in parts if part.labels is not None]
    masks = [part.loss_masks for part in parts if part.loss_masks is not None]
    starts = [sum(len(part) + part.dropped for part in parts[:number]) for number in range(len(parts))]
    return EncodedDataset(
        ids=tuple(ids_T for part in parts for ids_T in part.ids),
        labels=np.concatenate(labels) if labels else None,
        loss_masks=tuple(mask_T for part in masks for mask_T in part) if masks else None,
        label_names=parts[0].label_names,
        places=tuple(start + place for start, part in zip(starts, parts, strict=True) for place in part.places),
    )


def _check_noise(traffic: Traffic, noise: Noise, parts: BottomPackage, state: JobState) -> None:
    """Attacks simulate the mechanism, so it must be the one that drew what was sent. Raises JobConflict."""
    if not traffic.scopes:
        raise JobConflict("the held-out data is not what the job used; restore the file")
    if traffic.scopes != {release_scope(noise, parts, state.spec)}:
        raise JobConflict(
            "the noise that can be built here is not the job's: the model's weights, the public texts or tables, or "
            "the version have changed since; restore them"
        )


def _collect(
    traffic: Traffic, attacked: IndexArray, trained: IndexArray, state: JobState, noise: Noise, seed: int
) -> Collected:
    epochs = max(state.spec.train.epochs, 1)
    few = np.random.default_rng(seed).permutation(trained)[: max(_LABEL_ROWS // epochs, 1)]
    words, table = state.spec.task == "causal-lm", noise.mechanism.table
    collector = Collector(set(attacked.tolist()), set(few.tolist()), words=words, table=table)
    for session, message in traffic.messages():
        collector.take(session, message)
    return collector.found


def _numbered(sent: SentBack, chosen: IndexArray) -> SentBack:
    """The same with records numbered among the attacked ones instead of by handle."""
    numbers = {handle: number for number, handle in enumerate(chosen.tolist())}
    kept_P = torch.isin(sent.record_P, torch.from_numpy(chosen))
    return SentBack(
        record_P=torch.tensor([numbers[handle] for handle in sent.record_P[kept_P].tolist()], dtype=torch.int64),
        place_P=sent.place_P[kept_P],
        gradient_PD=sent.gradient_PD[kept_P],
        out_PD=None if sent.out_PD is None else sent.out_PD[kept_P],
        items=sent.items,
    )
