"""Side channels of training: what gradients, repetition, lengths of vectors and identical bytes reveal.

B records, N read-out rows, R released rows, D hidden width, C classes.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from privtune.device.audit.attacks.attack import Lab
from privtune.device.audit.attacks.codebook import Codebook, CodebookSettings
from privtune.device.audit.metrics import Figure, InversionScore, bootstrap
from privtune.device.audit.observed import Observed, Seen
from privtune.device.audit.victim import Victim
from privtune.device.data.encode import EncodedDataset, IntArray
from privtune.device.model.head import HeadTrainer
from privtune.device.noise.importance import TokenImportance
from privtune.device.noise.randomness import noise_source
from privtune.device.privacy.bounds import krr_keep_probability
from privtune.device.release.label_store import draw
from privtune.device.release.perturber import Perturber
from privtune.device.release.release_store import ReleaseStore
from privtune.shared.codec import decode
from privtune.shared.errors import InvalidInput
from privtune.shared.job_spec import OptimSpec
from privtune.shared.modeling.partition import Head

EPOCHS = 20  # and as many draws for the averaging attack
LABELS = (
    "Gradients of private labels point in one direction per class. The cloud can group the records by label (and name "
    "the groups if it knows one record of each)."
)
LABEL_EPSILON = 2.0  # of the defence that is measured as well
_BATCH = 16
_KMEANS_ROUNDS = 20
_STORE_BYTES = 1 << 30


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One side channel: how well it works, its floor, and an explanation."""

    name: str
    figure: Figure
    text: str


def label_from_gradients(
    victim: Victim, top: nn.Module, head: Head, data: EncodedDataset, readout: str
) -> tuple[Finding, Finding]:
    """Labels by clustering the directions of the gradients that a first epoch of training sends back.

    The gradient of a record at the head's input is W'(p - y), whose direction gives the label away. Once as a job sends
    them by default, once with randomised labels (`label_epsilon`). The clusters are named in the attacker's favour.
    Raises InvalidInput for unlabelled records.
    """
    if data.labels is None:
        raise InvalidInput("labels can't be looked for in gradients of records that have none")
    classes, true_B = len(data.label_names), torch.from_numpy(data.labels)
    randomised = draw(data.labels, [{}] * len(data.labels), classes, LABEL_EPSILON, noise_source())
    seen = victim.observe(data.ids).seen
    plain_BD = _first_epoch(seen, top, head, true_B, readout)
    private_BD = _first_epoch(seen, top, head, torch.from_numpy(randomised), readout, LABEL_EPSILON)
    keep = krr_keep_probability(LABEL_EPSILON, classes)
    return (
        labels_by_direction(plain_BD, true_B, name="labels from head gradients", text=LABELS),
        labels_by_direction(
            private_BD,
            true_B,
            name=f"labels from head gradients, label_epsilon {LABEL_EPSILON:g}",
            text=f"With `--label-epsilon {LABEL_EPSILON:g}` they reveal a label that was randomised once (true for "
            f"{100 * keep:.0f} in 100 records), however many epochs follow.",
        ),
    )


def _first_epoch(
    seen: Seen, top: nn.Module, head: Head, labels_B: Tensor, readout: str, label_epsilon: float | None = None
) -> Tensor:
    """gradient_BD that the real head trainer sends back, step by step; the head is not changed."""
    steps = -(-len(labels_B) // _BATCH)
    trainer = HeadTrainer(head, OptimSpec(), seed=0, total_steps=steps, label_epsilon=label_epsilon)
    gradients = []
    for step, (part, labels) in enumerate(zip(seen.batches(_BATCH), torch.split(labels_B, _BATCH), strict=True)):
        with torch.no_grad():
            states_BD = _read_out(top, part, readout)
        _, gradient_BD = trainer.loss(states_BD, labels, step=step, micro_batch=0, items=len(labels))
        trainer.step()
        gradients.append(gradient_BD)
    trainer.start_over()
    return torch.cat(gradients)


def labels_by_direction(rows_BD: Tensor, labels_B: Tensor, *, name: str, text: str) -> Finding:
    """Labels by clustering the directions of one row per record, simulated or recorded; the attack itself.

    rows_BD: vectors that depend on the record's label, such as its gradient at the head's input.
    The clusters, one per class, are named in the attacker's favour. The floor is the most common class.
    """
    classes_B = torch.unique(labels_B, return_inverse=True)[1]
    counts_C = torch.bincount(classes_B)
    cluster_B = spherical_kmeans(nn.functional.normalize(rows_BD, dim=1), len(counts_C))
    floor = float(counts_C.max() / len(labels_B))
    right_B = called(cluster_B, classes_B) == classes_B
    return Finding(name=name, figure=share_of(right_B.numpy(), floor), text=text)


def averaging(lab: Lab, records: Sequence[IntArray]) -> tuple[Finding, Finding]:
    """Top-1 of the nearest prototype after averaging 20 fresh draws, and after 20 epochs as really sent."""
    attack = Codebook("adaptive", CodebookSettings(metric="euclidean"))
    attack.fit(lab)
    draws = [lab.victim.observe(records) for _ in range(EPOCHS)]
    mean_RD = torch.stack([draw.seen.y_RD for draw in draws]).mean(0)
    one, fresh = _top1(attack, lab, draws[0]), _top1(attack, lab, _with_rows(draws[0], mean_RD))
    with tempfile.TemporaryDirectory() as folder:
        sent = [_stored_rows(lab.victim, records, Path(folder)) for _ in range(2)]
    stored = _top1(attack, lab, _with_rows(draws[0], torch.stack(sent).mean(0)))
    drawn_once = bool(torch.equal(*sent))
    floor = one.value
    return (
        Finding(
            name=f"averaging {EPOCHS} fresh draws (not what happens)",
            figure=Figure(value=fresh.value, low=fresh.low, high=fresh.high, floor=floor),
            text=f"If each epoch drew fresh noise, {EPOCHS} epochs could be averaged.",
        ),
        Finding(
            name=f"averaging {EPOCHS} epochs as sent",
            figure=Figure(value=stored.value, low=stored.low, high=stored.high, floor=floor),
            text="Each record is released once, with identical bytes in every epoch: averaging gains nothing."
            if drawn_once
            else "The release store drew a record twice: report this.",
        ),
    )


def importance_from_radius(observed: Observed, importance: TokenImportance) -> Finding:
    """Rank correlation between the distance of a released row from the mean and its token's importance."""
    seen = observed.seen
    rows_ND = seen.y_RD[seen.row_N]
    radius_N = (rows_ND - rows_ND.mean(0)).norm(dim=1).numpy()
    weight_N = importance.of(observed.ids_N.unsqueeze(0), torch.ones(1, len(observed.ids_N)))[0].numpy()
    value = abs(_spearman(radius_N, weight_N))
    return Finding(
        name="importance from the length of vectors",
        figure=Figure(value=value, low=value, high=value, floor=0.0),
        text="Noise that depends on a token's importance shows in the vectors' lengths (rank correlation).",
    )


def linkage(victim: Victim, records: Sequence[IntArray]) -> tuple[Finding, Finding]:
    """Records of one job recognised in another: by equal bytes (same settings), by nearest mean (fresh noise)."""
    with tempfile.TemporaryDirectory() as folder:
        one, other = (_stored_rows(victim, records, Path(folder)) for _ in range(2))
    seen = victim.observe(records).seen
    same_R = (one == other).all(1).float()
    same_B = torch.zeros(len(seen)).index_add(0, seen.record_R, same_R) == seen.lengths_B
    first, second = (_means(victim.observe(records).seen) for _ in range(2))
    nearest_B = torch.cdist(first - first.mean(0), second - second.mean(0)).argmin(1)
    chance = 1 / len(seen)
    return (
        Finding(
            name="records linked by identical bytes",
            figure=share_of(same_B.numpy(), chance),
            text="Two jobs with the same model, cut and mechanism send the same bytes for the same text (new draws "
            "could be averaged). The cloud sees that the text is the same, not what it is.",
        ),
        Finding(
            name="records linked across different settings",
            figure=share_of((nearest_B == torch.arange(len(seen))).numpy(), chance),
            text=f"With another draw of the noise, the nearest mean of {len(seen)} records is the same record.",
        ),
    )


def _read_out(top: nn.Module, part: Seen, readout: str) -> Tensor:
    y_BTD, mask_BT = part.padded()
    starts_B = torch.arange(len(part)) * mask_BT.shape[1]
    states_BD: Tensor = top(y_BTD, mask_BT, starts_B if readout == "first" else starts_B + part.lengths_B - 1)
    return states_BD


def spherical_kmeans(unit_BD: Tensor, clusters: int) -> Tensor:
    """Cluster of each direction, starting from directions far apart."""
    picks = [0]
    for _ in range(clusters - 1):
        picks.append(int((unit_BD @ unit_BD[picks].T).max(1).values.argmin()))
    centres_CD = unit_BD[picks]
    for _ in range(_KMEANS_ROUNDS):
        chosen_B = (unit_BD @ centres_CD.T).argmax(1)
        sums_CD = torch.zeros_like(centres_CD).index_add(0, chosen_B, unit_BD)
        centres_CD = nn.functional.normalize(sums_CD, dim=1)
    return chosen_B


def called(cluster_B: Tensor, labels_B: Tensor) -> Tensor:
    """Each cluster named after its most frequent true label, in the attacker's favour."""
    size = int(max(cluster_B.max(), labels_B.max())) + 1
    table_CC = torch.bincount(cluster_B * size + labels_B, minlength=size * size).view(size, size)
    return table_CC.argmax(1)[cluster_B]


def _stored_rows(victim: Victim, records: Sequence[IntArray], folder: Path) -> Tensor:
    """What a job really sends, by perturber, codec and the once-per-record store in `folder`; (R, D)."""
    mechanism = victim.mechanism
    store = ReleaseStore(folder / "releases.sqlite", mechanism.fingerprint(), _STORE_BYTES)
    perturber = Perturber(victim.bottom, mechanism, noise_source(), store, "fp32", victim.importance)
    released = perturber.release(EncodedDataset(ids=tuple(records)), np.arange(len(records)))
    width, codec = mechanism.sent_as("fp32")
    rows = [decode(one.data, one.rows, width, codec) for one in released.releases]
    if mechanism.table is not None:
        rows = [mechanism.table.of_record(ids_T1) for ids_T1 in rows]
    return torch.from_numpy(np.concatenate(rows))


def _with_rows(observed: Observed, rows_RD: Tensor) -> Observed:
    seen = observed.seen
    changed = Seen(y_RD=rows_RD, lengths_B=seen.lengths_B, row_N=seen.row_N, slot_N=seen.slot_N)
    return Observed(seen=changed, ids_N=observed.ids_N)


def _top1(attack: Codebook, lab: Lab, observed: Observed) -> Figure:
    score = InversionScore(lab.public)
    score.add(attack.attack(observed.seen), observed)
    return score.figures()["top1"]


def _means(seen: Seen) -> Tensor:
    sums_BD = torch.zeros(len(seen), seen.y_RD.shape[1]).index_add(0, seen.record_R, seen.y_RD)
    return sums_BD / seen.lengths_B.unsqueeze(1)


def share_of(right_B: NDArray[np.bool_], floor: float) -> Figure:
    """The share of records that an attack got right, with its interval."""
    rows = np.stack([right_B.astype(np.float64), np.ones(len(right_B))], axis=1)
    ((value, low, high),) = bootstrap(rows, [(0, 1)])
    return Figure(value=value, low=low, high=high, floor=floor)


def _spearman(one_N: NDArray[np.floating], other_N: NDArray[np.floating]) -> float:
    ranks = [np.unique(x, return_inverse=True)[1].astype(np.float64) for x in (one_N, other_N)]
    return 0.0 if min(rank.std() for rank in ranks) == 0 else float(np.corrcoef(ranks)[0, 1])
