"""The blocks that are taught: those below the cut and the last ones, in sequence, as a device without a cloud runs.

The embedding stage stays the model's own: what a device releases is made by it and by the untaught blocks.

B pieces, T tokens, D hidden width, N rows that are not padding, C classes.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from privtune.cloud.compute.teaching.relations import Projections, relation_loss
from privtune.cloud.compute.teaching.teacher import Mixed, Teacher
from privtune.shared.modeling.lora import train_fully
from privtune.shared.modeling.partition import Head, Partition
from privtune.shared.teaching_spec import TeachingSpec


class Student(nn.Module):
    """A device's blocks with weights of their own and, with public labels, a copy of the tuned head."""

    def __init__(self, partition: Partition, spec: TeachingSpec) -> None:
        super().__init__()
        self.below = partition.below(spec.cut) if spec.cut else None
        self.tail = partition.tail(spec.tail)
        self.head: Head | None = None
        for part in (self.below, self.tail):
            if part is not None:
                train_fully(part)
        self.eval()

    def forward(self, h0_BTD: Tensor, mask_BT: Tensor, readout_N: Tensor) -> Tensor:
        """out_ND at the read-out rows, from the embedding stage's output."""
        h_BTD = h0_BTD
        if self.below is not None:
            h_BTD = self.below(h0_BTD, mask_BT, torch.arange(mask_BT.numel(), device=mask_BT.device)).view_as(h0_BTD)
        out_ND: Tensor = self.tail(h_BTD, mask_BT, readout_N)
        return out_ND

    def state(self) -> dict[str, nn.Parameter]:
        """Name in the full model -> what is taught, live."""
        parts = [part for part in (self.below, self.tail, self.head) if part is not None]
        return {name: value for part in parts for name, value in part.named_parameters() if value.requires_grad}


@dataclass(frozen=True, kw_only=True)
class PieceBatch:
    """Some pieces, as teacher and student see them.

    x_BTD: the teacher's input of its last block.
    labels_B: their classes; None without labels.
    readout_B: the row of each that a classifier reads, b * T + t.
    """

    ids_BT: Tensor
    mask_BT: Tensor
    x_BTD: Tensor
    readout_B: Tensor
    labels_B: Tensor | None


@dataclass(frozen=True, kw_only=True)
class Distance:
    """How far the student is from the teacher on a batch.

    states: mean squared error of the final states, over the variance of the teacher's.
    relations: of `relation_loss`.
    soft_labels: cross-entropy of its classes against what the tuned model predicts.
    hard_labels: cross-entropy against the labels.
    """

    states: Tensor
    relations: Tensor
    soft_labels: Tensor
    hard_labels: Tensor


class Distillation:
    """Teacher and student side by side. The student begins as the model's own blocks, untaught."""

    def __init__(self, teacher: Teacher, student: Student, spec: TeachingSpec, mixed: Mixed) -> None:
        self._teacher, self.student, self._spec, self._mixed = teacher, student, spec, mixed
        if teacher.head is not None:
            student.head = copy.deepcopy(teacher.head).requires_grad_(True)
        pair = (student.tail, teacher.last)
        self._projections = [Projections(top.get_submodule(top.block_names[-1])) for top in pair]

    def distance(self, batch: PieceBatch) -> Distance:
        """The student's distance on a batch."""
        mask_BT = batch.mask_BT
        real_N = mask_BT.flatten().nonzero().squeeze(1)
        with self._mixed():
            with torch.no_grad():
                theirs_ND = self._teacher.last(batch.x_BTD, mask_BT, real_N).float()
            h0_BTD = self.embed(batch.ids_BT, mask_BT)
            mine_ND = self.student(h0_BTD, mask_BT, real_N).float()
        states = (mine_ND - theirs_ND).square().mean() / theirs_ND.var()
        none = states.new_zeros(())
        relations, soft, hard = none, none, none
        if self._spec.relations:
            mine, theirs = (projections.found for projections in self._projections)
            relations = relation_loss(mine, theirs, mask_BT)
        if self._teacher.head is not None and self.student.head is not None and batch.labels_B is not None:
            place_B = torch.searchsorted(real_N, batch.readout_B)
            mine_BC = self.student.head(mine_ND[place_B])
            with torch.no_grad():
                theirs_BC = self._teacher.head(theirs_ND[place_B]).softmax(-1)
            soft = nn.functional.cross_entropy(mine_BC, theirs_BC)
            hard = nn.functional.cross_entropy(mine_BC, batch.labels_B)
        return Distance(states=states, relations=relations, soft_labels=soft, hard_labels=hard)

    @torch.no_grad()
    def embed(self, ids_BT: Tensor, mask_BT: Tensor) -> Tensor:
        """h0_BTD, which neither of the two changes."""
        return self._teacher.bottom.embed(ids_BT, mask_BT)

    def loss(self, distance: Distance) -> Tensor:
        """What is minimised."""
        spec = self._spec
        labels = spec.soft_labels * distance.soft_labels + spec.hard_labels * distance.hard_labels
        return distance.states + spec.relations * distance.relations + labels
