"""The whole model as a teacher: tuned on public labels first, if there are any, then its states of every piece.

B pieces of a batch, T tokens, D hidden width, R real rows of all pieces together, C classes.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from privtune.cloud.compute.teaching.pieces import Pieces
from privtune.cloud.compute.teaching.training import Watch, train_resumably
from privtune.shared.errors import CloudOutOfMemory, JobPaused, StorageFull
from privtune.shared.files import write_text
from privtune.shared.modeling.lora import train_fully
from privtune.shared.modeling.partition import Head, Partition, Top, classification_readout
from privtune.shared.teaching_spec import TeachingSpec

_BATCH = 64  # pieces in a pass without gradients, at most
_CHUNK = 32  # such passes between two flushes to disk
Mixed = Callable[[], contextlib.AbstractContextManager[object]]


class Teacher:
    """A model that this teaching alone uses, as it is tuned in place.

    mixed: the context of a forward pass's precision.
    """

    def __init__(self, partition: Partition, spec: TeachingSpec, mixed: Mixed, device: torch.device) -> None:
        self._partition, self._spec, self._mixed, self._device = partition, spec, mixed, device
        self.at_once = min(_BATCH, spec.batch_size)  # a cloud that has memory for a step has it for this
        self.bottom = partition.bottom(0)
        self.last = partition.tail(1)
        self.head: Head | None = partition.head() if spec.label_column is not None else None

    def tune(self, pieces: Pieces, folder: Path, watch: Watch, stopped: Callable[[], bool]) -> None:
        """Tune the last blocks and the head on the labels of the first pieces; resumable. Raises as `train_resumably`.

        What is tuned is written back into the partition, so that whatever is cut from it is tuned too.
        """
        labels, head, spec = pieces.labels, self.head, self._spec
        if labels is None or head is None:
            return
        count = min(spec.tuned_blocks, self._partition.n_layers - 1)
        below, above = self._partition.top(0, count), self._partition.tail(count)
        train_fully(above)
        tuned = {name: value for name, value in above.named_parameters() if value.requires_grad}
        chosen = pieces.pick(np.arange(min(spec.tuned_pieces, len(pieces))))
        batches = chosen.batches(spec.batch_size, spec.seed, 0)

        def loss(step: int) -> Tensor:
            indices = batches[step]
            ids_BT, mask_BT = self._moved(chosen, indices)
            with self._mixed():
                with torch.no_grad():
                    h_BTD = _every_row(below, self.bottom.embed(ids_BT, mask_BT), mask_BT)
                out_BD = above(h_BTD, mask_BT, readout(self._partition, mask_BT))
            truth_B = torch.from_numpy(labels[indices]).to(self._device)
            return nn.functional.cross_entropy(head(out_BD.float()), truth_B)

        train_resumably(
            "tuning",
            {**tuned, **dict(head.named_parameters())},
            loss,
            steps=len(batches),
            rate=spec.tuning_rate,
            folder=folder,
            checkpoint_every=spec.checkpoint_every,
            watch=watch,
            stopped=stopped,
        )
        head.requires_grad_(False)
        self._partition.model.load_state_dict({name: value.detach() for name, value in tuned.items()}, strict=False)

    @torch.no_grad()
    def states(self, pieces: Pieces, indices: npt.NDArray[np.int64]) -> Tensor:
        """x_RD: the input of the last block, of every real row of these pieces."""
        ids_BT, mask_BT = self._moved(pieces, indices)
        with self._mixed():
            x_BTD = _every_row(self._partition.top(0, 1), self.bottom.embed(ids_BT, mask_BT), mask_BT)
        return x_BTD[mask_BT.bool()].float()

    def _moved(self, pieces: Pieces, indices: npt.NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        ids_BT, mask_BT = pieces.padded(indices)
        return ids_BT.to(self._device), mask_BT.to(self._device)


def readout(partition: Partition, mask_BT: Tensor) -> Tensor:
    """The flat position of each piece that a classifier reads."""
    return classification_readout(partition.readout, mask_BT.sum(1), mask_BT.shape[1])


def _every_row(top: Top, h_BTD: Tensor, mask_BT: Tensor) -> Tensor:
    out: Tensor = top(h_BTD, mask_BT, torch.arange(mask_BT.numel(), device=mask_BT.device))
    return out.view_as(h_BTD)


@dataclass(frozen=True, kw_only=True)
class Targets:
    """The teacher's states of all pieces, on disk: x_RD as bfloat16, in the order of the pieces.

    starts: the first row of each piece; one more at the end.
    """

    file: Path
    starts: npt.NDArray[np.int64]
    width: int

    def rows(self, indices: npt.NDArray[np.int64], width: int) -> Tensor:
        """x_BTD of these pieces, padded with zeros to `width` tokens."""
        kept = np.memmap(self.file, dtype=np.int16, mode="r", shape=(int(self.starts[-1]), self.width))
        x_BTD = torch.zeros(len(indices), width, self.width, dtype=torch.bfloat16)
        for row, index in enumerate(indices):
            start, stop = int(self.starts[index]), int(self.starts[index + 1])
            x_BTD[row, : stop - start] = torch.from_numpy(np.array(kept[start:stop])).view(torch.bfloat16)
        return x_BTD.float()


def write_targets(
    teacher: Teacher,
    pieces: Pieces,
    folder: Path,
    *,
    width: int,
    max_bytes: int,
    watch: Watch,
    stopped: Callable[[], bool],
) -> Targets:
    """The targets of all pieces, computed where they are missing; a stop or a crash loses one chunk at most.

    Raises CloudOutOfMemory for more than `max_bytes`, StorageFull, JobPaused.
    """
    starts = np.concatenate([[0], np.cumsum([len(ids_T) for ids_T in pieces.ids])]).astype(np.int64)
    targets = Targets(file=folder / "states.bf16", starts=starts, width=width)
    size = int(starts[-1]) * width * 2
    if size > max_bytes:
        raise CloudOutOfMemory(
            f"the teacher's states of {len(pieces):,} pieces take {size >> 20:,} MiB, and this cloud keeps "
            f"{max_bytes >> 20:,}; lower max_pieces or max_length"
        )
    done_file, chunk = folder / "states.done", _BATCH * _CHUNK
    done = int(done_file.read_text()) if done_file.exists() else 0
    try:
        if done < len(pieces):
            _check_room(folder, size, targets.file)
            with targets.file.open("r+b" if targets.file.exists() else "w+b") as file:
                file.truncate(size)
        for start in range(done, len(pieces), chunk):
            stop = min(start + chunk, len(pieces))
            _write_rows(targets, teacher, pieces, start, stop)
            write_text(done_file, str(stop))
            watch("states", stop, len(pieces), 0.0)
            if stopped() and stop < len(pieces):
                raise JobPaused("stopped while the teacher's states were computed; it continues from there")
    except OSError as error:
        raise StorageFull(f"the teacher's states can't be written: {error.strerror}; free room") from error
    return targets


def _write_rows(targets: Targets, teacher: Teacher, pieces: Pieces, start: int, stop: int) -> None:
    kept = np.memmap(targets.file, dtype=np.int16, mode="r+", shape=(int(targets.starts[-1]), targets.width))
    lengths = np.diff(targets.starts)
    order = start + np.argsort(lengths[start:stop], kind="stable")
    for first in range(0, len(order), teacher.at_once):
        indices = order[first : first + teacher.at_once]
        x_RD = teacher.states(pieces, indices).to("cpu", torch.bfloat16)
        parts: tuple[Tensor, ...] = torch.split(x_RD, lengths[indices].tolist())
        for index, rows in zip(indices, parts, strict=True):
            kept[targets.starts[index] : targets.starts[index + 1]] = rows.contiguous().view(torch.int16).numpy()
    kept.flush()


def _check_room(folder: Path, size: int, file: Path) -> None:
    free = shutil.disk_usage(folder).free + (file.stat().st_size if file.exists() else 0)
    if size > free:
        raise StorageFull(f"the teacher's states take {size >> 20:,} MiB, and {free >> 20:,} MiB are free; free room")
