"""The tail: the model's last blocks, trained on the device on states that the cloud computed. No gradient leaves.

    h~ ---- the cloud's frozen blocks ----------> z --+--> blocks of the tail -> head -> loss
    clean, never sent ---- (tuned copy of the        |
                            bottom's blocks) - W h --+

The skip connection, from the device's clean vectors into the tail, carries what the noise hides from the cloud.

z_BTD: the cloud's states after its last block.
clean_BTD: input of the skip: the bottom's clean output or, where the skip is tuned, its embedding stage's.
h_BTD: the device's own states at the cut.
out_ND: final states at the read-out positions.
B records, T tokens, D hidden width, N read-out positions, M rows without padding.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from privtune.device.data.batches import IndexArray
from privtune.shared.errors import ArtifactCorrupt, FrameCorrupt, InternalError
from privtune.shared.job_spec import JobSpec, Task
from privtune.shared.modeling.bottom_package import BottomPackage
from privtune.shared.modeling.lora import (
    adapter_state,
    attach_lora,
    check_lora,
    load_adapter_state,
    save_adapter,
    train_fully,
    trainable_parameters,
)
from privtune.shared.modeling.partition import Top
from privtune.shared.modeling.recompute import recompute_blocks
from privtune.shared.wording import counted

_SKIP, _SHARE = "skip.weight", "skip.share"
MEAN = 0.5  # share of a skip that begins at the mean of the cloud's states and the device's own
Place = Literal["embedding", "cut"]
PIECE_ROWS = 96  # positions that the tail trains on at a time


@dataclass(frozen=True, kw_only=True)
class States:
    """The tail's input of a micro-batch.

    clean_BTD: None without a skip.
    mask_BT: 1 = real.
    """

    z_BTD: Tensor
    clean_BTD: Tensor | None
    mask_BT: Tensor


def check_tail(spec: JobSpec) -> None:
    """Raises `PackageMissing` where the job has a tail that this machine can't train."""
    if spec.tail and spec.tuning.method == "lora":
        check_lora()


class Tail:
    """The last blocks and, if the job has one, the skip connection, a square map W.

    The blocks' input is (1 - s) z + W h, where W starts at s times the identity. A language model starts as it was
    pre-trained, s = 0. A classifier, whose head has yet to learn everything, starts at the mean of both, s = 1/2: it
    learned more where the noise was strong, and no less elsewhere (SST-2, dev split).

    blocks: the model's last blocks.
    below: where the skip is tuned, a copy of the bottom's blocks that the clean vectors pass first; the frozen ones
        still release.

    Raises `PackageMissing` for LoRA without peft, `InvalidInput` for LoRA on layers that the blocks do not have.
    """

    def __init__(self, blocks: Top, spec: JobSpec, below: Top | None = None) -> None:
        self.blocks, self.below = blocks, below if spec.skip == "tuned" else None
        if spec.skip == "tuned" and below is None:
            raise InternalError("a tuned skip needs the blocks below the cut")
        for part in self._parts:
            if spec.tuning.method == "lora":
                attach_lora(part, spec.tuning, spec.train.seed)
            else:
                train_fully(part)
            recompute_blocks(part)  # on a device memory is scarcer than time
        self.share = skip_share(spec.task) if spec.skip != "none" else 0.0
        start_DD = self.share * torch.eye(int(blocks.config.hidden_size))
        self.skip = nn.Parameter(start_DD) if spec.skip != "none" else None

    @classmethod
    def of(cls, package: BottomPackage, spec: JobSpec) -> Tail | None:
        """The job's tail, if it has one."""
        return None if package.tail is None else cls(package.tail, spec, package.below)

    @property
    def _parts(self) -> list[Top]:
        return [self.blocks, *([] if self.below is None else [self.below])]

    @property
    def begins_with(self) -> Place | None:
        """Where the skip's clean vectors are taken from; None without a skip."""
        if self.skip is None:
            return None
        return "cut" if self.below is None else "embedding"

    @property
    def parameters(self) -> list[nn.Parameter]:
        """What is trained, in a stable order."""
        trained = [parameter for part in self._parts for parameter in trainable_parameters(part)]
        return [*trained, *([] if self.skip is None else [self.skip])]

    def state(self) -> dict[str, Tensor]:
        """Name -> value of what is trained (live tensors), and the share that the skip began with."""
        state = {name: value for part in self._parts for name, value in adapter_state(part).items()}
        skip = {} if self.skip is None else {_SKIP: self.skip.detach(), _SHARE: torch.tensor(self.share)}
        return state | skip

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Copy a saved state in. Raises `ArtifactCorrupt` for the state of another tail."""
        left = {name: value for name, value in state.items() if name not in (_SKIP, _SHARE)}
        if self.below is not None:
            mine = adapter_state(self.below).keys()
            load_adapter_state(self.below, {name: value for name, value in left.items() if name in mine})
            left = {name: value for name, value in left.items() if name not in mine}
        load_adapter_state(self.blocks, left)
        if self.skip is not None:
            if not {_SKIP, _SHARE} <= state.keys():
                raise ArtifactCorrupt("the checkpoint of this job's tail holds no skip connection; restore a backup")
            with torch.no_grad():
                self.skip.copy_(state[_SKIP])
            self.share = float(state[_SHARE])

    def train(self, mode: bool) -> None:
        """Dropout on or off."""
        for part in self._parts:
            part.train(mode)

    def fused(self, z: Tensor, h: Tensor | None) -> Tensor:
        """The blocks' input, (..., D). h: the device's states at the cut. Raises `InternalError` when it is missing."""
        if self.skip is None:
            return z
        if h is None:
            raise InternalError("a tail with a skip needs the clean vectors")
        return fuse(z, h, self.skip, self.share)

    def forward(self, states: States, readout_N: Tensor) -> Tensor:
        """out_ND."""
        h_BTD = states.clean_BTD
        if self.below is not None and h_BTD is not None:
            h_BTD = self.below(h_BTD, states.mask_BT, torch.arange(states.mask_BT.numel())).view_as(h_BTD)
        out_ND: Tensor = self.blocks(self.fused(states.z_BTD, h_BTD), states.mask_BT, readout_N)
        return out_ND

    def save_adapter(self, folder: Path) -> None:
        """Write what is trained of the blocks as `privtune.shared.modeling.lora.save_adapter` does."""
        save_adapter(self.blocks, folder)

    def sha256(self) -> str:
        """Identifies the tuned tail: SHA-256 over names and values of what is trained."""
        digest = hashlib.sha256()
        for name, value in sorted(self.state().items()):
            digest.update(name.encode())
            digest.update(value.detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()


def skip_share(task: Task) -> float:
    """The share of the device's own states that a skip begins with."""
    return MEAN if task == "classification" else 0.0


def fuse(z: Tensor, h: Tensor, skip_DD: Tensor, share: float) -> Tensor:
    """The input of a tail, (..., D): the cloud's states z and, through the map, the device's own h."""
    return (1 - share) * z + nn.functional.linear(h, skip_DD)


def padded(rows_MD: Tensor, lengths_B: IndexArray) -> tuple[Tensor, Tensor]:
    """z_BTD, right-padded with zeros, and mask_BT (1 = real). Raises `FrameCorrupt` for another number of rows."""
    lengths = torch.from_numpy(lengths_B)
    if len(rows_MD) != int(lengths.sum()):
        raise FrameCorrupt(f"the cloud sent {counted(len(rows_MD), 'state')} for {counted(int(lengths.sum()), 'row')}")
    mask_BT = torch.arange(int(lengths.max())) < lengths[:, None]
    z_BTD = torch.zeros(*mask_BT.shape, rows_MD.shape[1])
    z_BTD[mask_BT] = rows_MD
    return z_BTD, mask_BT.long()


def pieces(states: States, readout_N: Tensor, targets_N: Tensor) -> Iterator[tuple[States, Tensor, Tensor]]:
    """A micro-batch in parts of at most `PIECE_ROWS` positions, or of one record, each as narrow as its longest record.

    A backward pass keeps many times a position's vector; in pieces it keeps no more for a larger micro-batch.
    """
    lengths_B, width = states.mask_BT.sum(1), states.mask_BT.shape[1]
    records_N, places_N = readout_N // width, readout_N % width
    start = 0
    while start < len(lengths_B):
        stop = start + 1
        while stop < len(lengths_B) and int(lengths_B[start : stop + 1].max()) * (stop + 1 - start) <= PIECE_ROWS:
            stop += 1
        some, longest = slice(start, stop), int(lengths_B[start:stop].max())
        here_N = (records_N >= start) & (records_N < stop)
        part = States(
            z_BTD=states.z_BTD[some, :longest],
            clean_BTD=None if states.clean_BTD is None else states.clean_BTD[some, :longest],
            mask_BT=states.mask_BT[some, :longest],
        )
        yield part, (records_N[here_N] - start) * longest + places_N[here_N], targets_N[here_N]
        start = stop
