"""What a mechanism costs the task: train the model above the cut on releases, and score it on held-out releases.

This is the job's own training in one process and without the wire (tests/integration show that the split equals the
whole). Every weight of the top (or of the tail) is trained, an upper bound for an adapter. B records, T tokens, R rows,
D width, C classes.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from privtune.device.audit.attacks.attack import Say, silent
from privtune.device.audit.observed import Seen
from privtune.device.audit.victim import Victim
from privtune.device.data.encode import EncodedDataset
from privtune.device.model.tail import MEAN, fuse
from privtune.device.runtime.memory import fast_memory
from privtune.shared.errors import InvalidInput, NonFinite
from privtune.shared.job_spec import OptimSpec
from privtune.shared.modeling.optim import build_schedule, clip_gradients
from privtune.shared.modeling.partition import Head, Top, classification_readout
from privtune.shared.modeling.seeding import seeded

_BUCKET = 20  # batches that are sorted by length together, which keeps padding small
_SCORE_BATCH = 64


@dataclass(frozen=True, kw_only=True)
class UtilityTraining:
    """How utility is trained. precision: bfloat16 is twice as fast if the processor has the instructions."""

    epochs: int = 3
    batch: int = 32
    top_rate: float = 1e-4
    head_rate: float = 1e-3
    warmup: float = 0.06
    precision: Literal["float32", "bfloat16"] = "float32"


@dataclass(frozen=True, kw_only=True)
class Utility:
    """What training reached.

    predicted_B: the predicted class of each held-out record.
    right_B: whether it is the true one.
    by_epoch: the share of right ones after each epoch.
    """

    predicted_B: NDArray[np.int64]
    right_B: NDArray[np.bool_]
    by_epoch: tuple[float, ...]


@fast_memory()
def measure_utility(
    victim: Victim,
    top: nn.Module,
    head: Head,
    train: EncodedDataset,
    held_out: EncodedDataset,
    *,
    readout: Literal["first", "last"],
    training: UtilityTraining,
    tail: Top | None = None,
    below: Top | None = None,
    skip: bool = True,
    seed: int = 0,
    clean: bool = False,
    say: Say = silent,
) -> Utility:
    """Accuracy on `held_out` after training on `train`. Every record is released once.

    top: a `Top`, or a `DeviceAlone` if there is no cloud.
    tail: the blocks after `top`, trained in its place while `top` stays frozen (`privtune.device.model.tail`).
    skip: whether clean vectors reach the tail past `top`.
    below: the blocks below the cut, a copy of which is trained in the skip.
    clean: without the mechanism.

    The given modules are not changed. The last epoch counts: none is picked.
    Raises InvalidInput for records without labels, NonFinite if training diverges.
    """
    if train.labels is None or held_out.labels is None:
        raise InvalidInput("utility is measured on labelled records")
    observe = victim.clean if clean else victim.observe
    seen, unseen = observe(train.ids).seen, observe(held_out.ids).seen
    labels_B, truth_B = torch.from_numpy(train.labels), held_out.labels
    if tail is None:
        network = _Network(top, head, readout, training.precision)
    else:
        seen, unseen = _passed(top, seen), _passed(top, unseen)
        network = _Network(tail, head, readout, training.precision)
    if tail is not None and skip:
        both = ((seen, train), (unseen, held_out))
        seen, unseen = (_with_clean(one, victim, data, embedded=below is not None) for one, data in both)
        network = _TailNetwork(tail, head, readout, training.precision, below)

    def loss(chosen: Tensor) -> Tensor:
        y_BTD, mask_BT = rows(seen, chosen)
        return nn.functional.cross_entropy(network(y_BTD, mask_BT), labels_B[chosen])

    by_epoch = []
    for _ in epochs(network, loss, seen, training, seed, say):
        predicted_B = network.predict(unseen)
        by_epoch.append(float((predicted_B == truth_B).mean()))
    return Utility(predicted_B=predicted_B, right_B=predicted_B == truth_B, by_epoch=tuple(by_epoch))


class DeviceAlone(nn.Module):
    """In place of a top: the blocks that a device with a tail trains, in sequence, without the cloud's.

    Its input is the embedding stage (a victim of cut 0, clean), so no cloud is involved at all.
    """

    def __init__(self, below: Top, tail: Top) -> None:
        super().__init__()
        self.below, self.tail = below, tail

    def forward(self, h0_BTD: Tensor, mask_BT: Tensor, readout_N: Tensor) -> Tensor:
        """out_ND, as of a `Top`."""
        h_BTD = self.below(h0_BTD, mask_BT, torch.arange(mask_BT.numel())).view_as(h0_BTD)
        out_ND: Tensor = self.tail(h_BTD, mask_BT, readout_N)
        return out_ND


class Trainee(nn.Module):
    """The trained modules: a copy of the blocks above the cut, and a head."""

    def __init__(self, top: nn.Module, head: Head) -> None:
        super().__init__()
        self.top, self.head = copy.deepcopy(top).requires_grad_(True), head

    def groups(self, training: UtilityTraining) -> list[dict[str, Any]]:
        """Parameter groups with their learning rates."""
        return [
            {"params": [p for p in part.parameters() if p.requires_grad], "lr": rate}
            for part, rate in ((self.top, training.top_rate), (self.head, training.head_rate))
        ]


def epochs(
    network: Trainee, loss: Callable[[Tensor], Tensor], seen: Seen, training: UtilityTraining, seed: int, say: Say
) -> Iterator[None]:
    """Train on releases; yields after each epoch.

    loss: of the records at the indices. Frozen parameters stay. Raises NonFinite.
    """
    optimizer = torch.optim.AdamW([group for group in network.groups(training) if group["params"]], fused=True)
    steps = training.epochs * -(-len(seen) // training.batch)
    schedule = build_schedule(optimizer, OptimSpec(warmup_ratio=training.warmup, schedule="linear"), steps)
    rng, done = np.random.default_rng(seed), 0
    with seeded("audit-utility", seed):
        for _ in range(training.epochs):
            network.train()
            for chosen in _batches(seen.lengths_B.numpy(), training.batch, rng):
                value = loss(chosen)
                if not torch.isfinite(value):
                    raise NonFinite("training on the releases diverged; use a lower rate")
                optimizer.zero_grad(set_to_none=True)
                value.backward()  # type: ignore[no-untyped-call]
                clip_gradients(network.parameters(), 1.0)
                optimizer.step()
                schedule.step()
                done += 1
                say("training on releases", done / steps)
            yield


class _Network(Trainee):
    """A trainable copy of top and head."""

    def __init__(self, top: nn.Module, head: Head, readout: Literal["first", "last"], precision: str) -> None:
        super().__init__(top, copy.deepcopy(head).requires_grad_(True))
        self._readout: Literal["first", "last"] = readout
        self._low = precision == "bfloat16"

    def forward(self, y_BTD: Tensor, mask_BT: Tensor) -> Tensor:
        """Class scores, (B, C)."""
        readout_B = classification_readout(self._readout, mask_BT.sum(1), mask_BT.shape[1])
        with torch.autocast("cpu", torch.bfloat16, enabled=self._low):
            out_BD = self.states(y_BTD, mask_BT, readout_B)
        scores_BC: Tensor = self.head(out_BD.float())
        return scores_BC

    def states(self, y_BTD: Tensor, mask_BT: Tensor, readout_B: Tensor) -> Tensor:
        """out_BD, what the head reads."""
        out_BD: Tensor = self.top(y_BTD, mask_BT, readout_B)
        return out_BD

    @torch.no_grad()
    def predict(self, seen: Seen) -> NDArray[np.int64]:
        """The class of each record."""
        self.eval()
        predicted = []
        for part in seen.batches(_SCORE_BATCH):
            y_BTD, mask_BT = part.padded()
            predicted.append(self(y_BTD, mask_BT).argmax(1))
        classes: NDArray[np.int64] = torch.cat(predicted).numpy()
        return classes


class _TailNetwork(_Network):
    """A trainable copy of the tail (as `top`) and head, and the skip. A row: the cloud's state, then the clean vector.

    below: the clean vector is of the embedding stage and first passes a trainable copy of these blocks.
    """

    def __init__(
        self, tail: Top, head: Head, readout: Literal["first", "last"], precision: str, below: Top | None
    ) -> None:
        super().__init__(tail, head, readout, precision)
        self.below = None if below is None else copy.deepcopy(below).requires_grad_(True)
        self.skip = nn.Parameter(MEAN * torch.eye(int(tail.config.hidden_size)))

    def groups(self, training: UtilityTraining) -> list[dict[str, Any]]:
        """The skip learns at the head's rate."""
        found = [*super().groups(training), {"params": [self.skip], "lr": training.head_rate}]
        if self.below is not None:
            trained = [parameter for parameter in self.below.parameters() if parameter.requires_grad]
            found.append({"params": trained, "lr": training.top_rate})
        return found

    def states(self, y_BTD: Tensor, mask_BT: Tensor, readout_B: Tensor) -> Tensor:
        """out_BD, from rows of width 2 D."""
        z_BTD, h_BTD = y_BTD.chunk(2, dim=-1)
        if self.below is not None:
            h_BTD = self.below(h_BTD, mask_BT, torch.arange(mask_BT.numel())).view_as(h_BTD)
        return super().states(fuse(z_BTD, h_BTD, self.skip, MEAN), mask_BT, readout_B)


@torch.no_grad()
def _passed(top: nn.Module, seen: Seen) -> Seen:
    """The frozen top's state of every row."""
    states = []
    for part in seen.batches(_SCORE_BATCH):
        y_BTD, mask_BT = part.padded()
        states.append(top.eval()(y_BTD, mask_BT, mask_BT.flatten().nonzero().squeeze(1)))
    return replace(seen, y_RD=torch.cat(states))


@torch.no_grad()
def _with_clean(seen: Seen, victim: Victim, data: EncodedDataset, *, embedded: bool) -> Seen:
    """The input of a tail with a skip: the cloud's state of each row, beside the clean vector of the same position.

    embedded: the clean vector is of the embedding stage, not of the cut.
    Raises InvalidInput for a mechanism that shortens: its rows have no clean vector of their own.
    """
    if victim.mechanism.shortens:
        raise InvalidInput(f"mechanism {victim.mechanism.name} shortens records, so a skip has no rows to be added to")
    clean_RD = victim.embedded(data.ids) if embedded else victim.clean(data.ids).seen.y_RD
    return replace(seen, y_RD=torch.cat([seen.y_RD, clean_RD], dim=1))


def _batches(lengths_B: NDArray[np.int64], size: int, rng: np.random.Generator) -> list[Tensor]:
    """Shuffled batches of records of similar length."""
    order = rng.permutation(len(lengths_B))
    batches = []
    for start in range(0, len(order), size * _BUCKET):
        bucket = order[start : start + size * _BUCKET]
        bucket = bucket[np.argsort(lengths_B[bucket], kind="stable")]
        batches += [torch.from_numpy(bucket[first : first + size]) for first in range(0, len(bucket), size)]
    return [batches[index] for index in rng.permutation(len(batches))]


def rows(seen: Seen, chosen: Tensor) -> tuple[Tensor, Tensor]:
    """y_BTD and mask_BT of some records."""
    starts_B = seen.lengths_B.cumsum(0) - seen.lengths_B
    lengths_B = seen.lengths_B[chosen]
    place_T = torch.arange(int(lengths_B.max()))
    mask_BT = place_T < lengths_B.unsqueeze(1)
    row_BT = (starts_B[chosen].unsqueeze(1) + place_T).clamp(max=len(seen.y_RD) - 1)
    y_BTD = seen.y_RD[row_BT].masked_fill(~mask_BT.unsqueeze(-1), 0.0)
    return y_BTD, mask_BT.long()
