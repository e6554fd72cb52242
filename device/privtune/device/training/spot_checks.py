"""Spot checks: a random share of the cloud's work is computed here as well, from the owner's own copy of the model.

With a tail the cloud's blocks are frozen, so any micro-batch of states can be computed again. Where the cloud trains,
each report of a step names (by hash) the state that the step leaves. Only when a step has been answered does the device
ask to be shown the states before and after it: outputs, gradients and the optimiser's step are then repeated here. Each
state is named before anyone knows whether it will be asked for, and every step begins in the state that the last one
named; so a cloud that skips, fakes or alters a step is noticed when that step is drawn.

docs/spot-checks.md derives the tolerances and the chance of being caught.
"""

from __future__ import annotations

import json
import math
import secrets
import shutil
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, replace
from functools import cached_property

import torch
from safetensors import SafetensorError
from torch import Tensor

import privtune.split.v1.split_pb2 as pb
from privtune.device.home.job_folder import JobFolder
from privtune.device.link.download import artifact_of, fetch_folder
from privtune.device.link.rpc import Link
from privtune.device.model.replica import AnsweredBatch, Replica, check_replica
from privtune.device.session.run_settings import RunSettings
from privtune.device.session.window import PendingBatch
from privtune.device.training.spot_report import FILE, SpotReport
from privtune.shared.at_rest import read_text
from privtune.shared.errors import (
    ArtifactCorrupt,
    CloudCheated,
    InvalidInput,
    JobConflict,
    StorageFull,
    VersionMismatch,
)
from privtune.shared.job_spec import JobSpec
from privtune.shared.modeling.adapter_folder import exported_name, trained_tensors
from privtune.shared.modeling.checkpoint import parameters_of
from privtune.shared.modeling.seeding import dropout_sha256
from privtune.shared.modeling.tensor_files import load_tensors, save_tensors
from privtune.shared.modeling.weights_hash import weights_sha256
from privtune.shared.public_table import PublicTable
from privtune.shared.wire import Message

FP32 = 2.0**-10  # relative difference that float32 in another order explains, with room
BF16 = 2.0**-6  # for each square root of a block
ROUNDED = 2.0**-8  # of a vector in bf16
GRADIENT = 4.0  # a gradient differs by more than an output: it sums over rows that cancel
UPDATE = 2.0**-8  # of an optimiser's step in float32 on the same gradient


def check_spot_checks(spec: JobSpec, local_model: str | None) -> None:
    """Raises InvalidInput for a job whose cloud can't be checked, PackageMissing for LoRA without peft."""
    if local_model is None:
        raise InvalidInput(
            "Spot checks need your own copy of the model: name it with --local-model.", param="spot_checks"
        )
    if spec.train.early_stopping is not None and not spec.tail:
        raise InvalidInput(
            "Spot checks compare the adapter with the state of the last step, and early stopping may keep an earlier "
            "one: drop --spot-checks or --early-stopping, or train a tail here (--tail).",
            param="spot_checks",
        )
    if spec.zeroth_order.on or spec.labels == "shared":
        raise InvalidInput(
            "Spot checks are for jobs with a tail, and for those that train in the cloud by gradients of private "
            "labels; drop --spot-checks.",
            param="spot_checks",
        )
    check_replica(spec)


class SpotChecks:
    """The checks of one run of a job.

    table: what the job's ids stand for; None: vectors are sent.

    Every method but `announcement` raises CloudCheated.
    """

    def __init__(
        self,
        settings: RunSettings,
        spec: JobSpec,
        folder: JobFolder,
        link: Link,
        total_steps: int,
        table: PublicTable | None,
    ) -> None:
        known = spec.tail > 0 or spec.train.early_stopping is None  # which state becomes the model
        possible = known and not spec.zeroth_order.on and spec.labels == "private"
        self._share = settings.spot_share if possible else 0.0
        self._local_model, self._spec, self._folder, self._link = settings.local_model, spec, folder, link
        self._total_steps, self._table = total_steps, table
        self._counts = SpotReport(share=self._share, unit="micro-batch" if spec.tail else "step")
        self._named: dict[int, str] = {}  # hashes of states by step since the last checkpoint but one
        self._checkpoints: list[int] = []
        self._drawn: set[int] = set()  # steps to be shown, until they have been
        self._batches: list[AnsweredBatch] = []
        self._waiting: tuple[int, list[AnsweredBatch]] | None = None  # reported, not shown yet
        self._repeatable = True
        self._load()

    @property
    def of_steps(self) -> bool:
        """Whether steps are checked, for which the cloud has to name its states."""
        return self._share > 0 and not self._spec.tail

    @property
    def report(self) -> SpotReport | None:
        """What was checked so far; None where nothing is."""
        return self._counts if self._share else None

    def announcement(self) -> str:
        """What is checked, for a person."""
        if self._share:
            return (
                f"Spot checks: {self._share:.1%} of each {self._counts.unit} of the cloud's are computed here as well."
            )
        return "Spot checks: none; nothing shows whether the cloud computes what it should (docs/spot-checks.md)."

    def states(self, batch: PendingBatch, answer: Message) -> None:
        """A micro-batch of a frozen top's states came."""
        if not self._share:
            return
        self._counts = replace(self._counts, answered=self._counts.answered + 1)
        if not self._draw():
            return
        began = time.monotonic()
        mine_MD = self._replica.states(batch.released)
        self._compare(f"micro-batch {batch.number} of step {batch.step}", torch.from_numpy(answer.tensor()), mine_MD)
        self._checked(began)

    def opened(self, opened: pb.OpenResponse) -> None:
        """A session begins at a step whose state the cloud names again. Raises VersionMismatch if it names none."""
        if not self.of_steps:
            return
        self._repeatable = opened.dropout_sha256 == dropout_sha256(torch.device("cpu"))
        self._look()
        step = opened.resume_step
        if step == self._total_steps:  # nothing more trains, and the state may be gone
            return
        if not opened.state_sha256:
            raise VersionMismatch("this cloud does not name the states of its steps; upgrade it or drop --spot-checks")
        if self._named.setdefault(step, opened.state_sha256) != opened.state_sha256:
            raise self._cheated(f"the state after step {step} is another one than the cloud named before", {})
        lost = {drawn for drawn in self._drawn if drawn >= step}
        self._counts = replace(self._counts, interrupted=self._counts.interrupted + len(lost))

    def begins(self, step: int) -> bool:
        """Whether the cloud is to show this step once it is done; the last one always, for its state is the adapter."""
        self._batches = []
        if self.of_steps and (step in self._drawn or step + 1 == self._total_steps or self._draw()):
            self._drawn.add(step)
        return step in self._drawn

    def answered(self, batch: PendingBatch, answer: Message, gradient: Message) -> None:
        """A micro-batch of a step was answered, and this gradient is sent for it."""
        if batch.step in self._drawn:
            self._batches.append(
                AnsweredBatch(
                    number=batch.number,
                    released=batch.released,
                    readout_N=batch.readout_N,
                    answer_ND=torch.from_numpy(answer.tensor()),
                    gradient_ND=torch.from_numpy(gradient.tensor()),
                )
            )

    def stepped(self, step: int, report: pb.StepReport) -> None:
        """A step was applied. Raises as `fetch_folder` if the cloud shows it only later."""
        if not self.of_steps:
            return
        self._named[step + 1] = report.state_sha256
        self._counts = replace(self._counts, answered=self._counts.answered + 1)
        if step in self._drawn:
            first, repeatable = self._batches[0], self._repeatable and not report.in_parts
            repeatable = repeatable or not self._replica.draws(first.released, first.readout_N)
            self._waiting = step, self._batches if repeatable else []
            self._look()
            self._drawn.discard(step)
        if report.checkpointed:
            self._checkpoints = [*self._checkpoints, step + 1][-2:]
            self._named = {at: self._named[at] for at in self._checkpoints if at in self._named}
            self._save()

    def ended(self) -> None:
        """The job is committed: its adapter, which is fetched and kept, is the state that the last step left."""
        shown = self._folder.path / "shown"
        if not self.of_steps or not shown.exists():
            return
        last = load_tensors(shown / "after.safetensors")
        where, most = self._folder.path / "adapter", 2 * self._replica.state_bytes + (1 << 20)
        try:
            fetch_folder(self._link, artifact_of(pb.ARTIFACT_KIND_ADAPTER, self._folder.job_id), where, most_bytes=most)
            adapter = trained_tensors(where)
        except (ArtifactCorrupt, SafetensorError, FileNotFoundError) as error:
            raise self._cheated("the cloud does not hand over the adapter that it trained", {}) from error
        trained = {exported_name(name): value for name, value in parameters_of(last).items()}
        if (
            weights_sha256(last) != self._named.get(self._total_steps)
            or adapter.keys() != trained.keys()
            or any(not torch.equal(adapter[name], value) for name, value in trained.items())
        ):
            shutil.rmtree(where, ignore_errors=True)
            raise self._cheated("the adapter that the cloud hands over is not the one that it trained", adapter)
        shutil.rmtree(shown, ignore_errors=True)

    def _look(self) -> None:
        """Fetch the states of the step that waits, and repeat it; without batches only what its optimiser did."""
        if self._waiting is None:
            return
        began, (step, batches) = time.monotonic(), self._waiting
        before, after = self._shown(step)
        what = f"step {step}"
        for state, at in ((before, step), (after, step + 1)):
            if weights_sha256(state) != self._named.get(at):
                raise self._cheated(f"the cloud shows another state after step {at} than it named", state)
        if step == 0 and not self._replica.starts_with(before):
            raise self._cheated("the cloud did not begin with the adapter of the job's seed", before)
        try:
            theirs = self._replica.gradients_in(before, after)
            if batches:
                outs, gradients = self._replica.repeat(step, before, batches)
                for batch, mine_ND in zip(batches, outs, strict=True):
                    self._compare(f"micro-batch {batch.number} of {what}", batch.answer_ND, mine_ND)
                self._compare(f"the gradient of {what}", _row(theirs, gradients), _row(gradients), of_gradient=True)
            self._compare_update(what, before, after, self._replica.advance(step, before, theirs))
        except ArtifactCorrupt as error:
            raise self._cheated(f"the cloud shows a state of {what} that is none of this job's", before) from error
        self._waiting = None
        if not batches:
            self._counts = replace(self._counts, unrepeatable=self._counts.unrepeatable + 1)
        self._checked(began, int(bool(batches)))

    def _shown(self, step: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        target = self._folder.path / "shown"
        shutil.rmtree(target, ignore_errors=True)
        most = 4 * self._replica.state_bytes + (1 << 20)
        try:
            fetch_folder(self._link, artifact_of(pb.ARTIFACT_KIND_SHOWN, self._folder.job_id), target, most_bytes=most)
            before, after = (load_tensors(target / f"{name}.safetensors") for name in ("before", "after"))
        except (JobConflict, ArtifactCorrupt, SafetensorError, FileNotFoundError) as error:
            raise self._cheated(
                f"the cloud does not show the state of step {step}, which it was asked for", {}
            ) from error
        finally:
            if step + 1 != self._total_steps:  # the last one is what the adapter has to be
                shutil.rmtree(target, ignore_errors=True)
        return before, after

    def _compare(self, what: str, theirs_ND: Tensor, mine_ND: Tensor, *, of_gradient: bool = False) -> None:
        """Row by row. Both in float32."""
        tolerance = self._tolerance * GRADIENT if of_gradient else self._tolerance
        worst = float("inf")
        if theirs_ND.shape == mine_ND.shape:
            apart_N = (theirs_ND - mine_ND).norm(dim=-1) / mine_ND.norm(dim=-1).clamp_min(1e-12)
            worst = float(apart_N.max())
        self._judge(what, worst, tolerance, {"received": theirs_ND, "computed": mine_ND})

    def _compare_update(
        self, what: str, before: Mapping[str, Tensor], after: Mapping[str, Tensor], mine: Mapping[str, Tensor]
    ) -> None:
        """Whether the cloud's optimiser did the step that its own gradient asks for."""
        worst = 0.0 if mine.keys() == after.keys() else float("inf")
        for name in mine.keys() & after.keys():
            start = before.get(name, torch.zeros(()))
            if after[name].shape != mine[name].shape:
                worst = float("inf")
                continue
            moved = float((mine[name] - start).norm()) + 2.0**-12 * float(mine[name].norm()) + 1e-12
            apart = float((after[name] - mine[name]).norm()) / moved
            worst = max(worst, apart if math.isfinite(apart) else float("inf"))
        self._judge(f"the optimiser's part of {what}", worst, UPDATE, {f"after.{k}": v for k, v in after.items()})

    def _judge(self, what: str, apart: float, tolerance: float, evidence: Mapping[str, Tensor]) -> None:
        if not apart <= tolerance:
            raise self._cheated(
                f"what the cloud computed for {what} is not what the model gives: it differs by {apart:.2g} of its "
                f"length, rounding explains {tolerance:.2g}",
                evidence,
            )
        self._counts = replace(self._counts, worst=max(self._counts.worst, apart / tolerance))

    @cached_property
    def _replica(self) -> Replica:
        if self._local_model is None:
            raise InvalidInput("spot checks need the owner's own copy of the model", param="spot_checks")
        return Replica(self._local_model, self._spec, self._total_steps, self._table)

    @cached_property
    def _tolerance(self) -> float:
        """Largest relative difference of a row of outputs that rounding explains."""
        computed = FP32 if self._spec.train.precision == "fp32" else BF16 * math.sqrt(self._replica.blocks)
        sent = {"fp32": 0.0, "bf16": ROUNDED, "int8": math.sqrt(self._replica.width) / 254}
        return computed + sent[self._spec.output_codec]

    def _draw(self) -> bool:
        return secrets.SystemRandom().random() < self._share

    def _checked(self, began: float, more: int = 1) -> None:
        counts, took = self._counts, time.monotonic() - began
        self._counts = replace(counts, checked=counts.checked + more, seconds=counts.seconds + took)
        self._save()

    def _cheated(self, message: str, evidence: Mapping[str, Tensor]) -> CloudCheated:
        """The error that ends the job; what shows it stays in the job's folder."""
        folder = self._folder.path / "evidence"
        with suppress(OSError, SafetensorError, StorageFull):
            self._save()
            folder.mkdir(mode=0o700, exist_ok=True)
            save_tensors({name: value.contiguous() for name, value in evidence.items()}, folder / "cheated.safetensors")
            self._folder.write_json("evidence/cheated.json", {"message": message, "at": time.time()})
        return CloudCheated(f"{message}. Use nothing that this job computed; the job's folder keeps the evidence")

    def _load(self) -> None:
        with suppress(OSError, ValueError, TypeError, KeyError):
            kept = json.loads(read_text(self._folder.path / FILE))
            self._named = {int(step): str(name) for step, name in kept["named"].items()}
            self._checkpoints = sorted(self._named)
            self._counts = replace(SpotReport(**kept["report"]), share=self._share)

    def _save(self) -> None:
        if self._share:
            named = {at: name for at, name in self._named.items() if at in self._checkpoints}
            self._folder.write_json(FILE, {"report": asdict(self._counts), "named": named})


def _row(gradients: list[Tensor | None] | list[Tensor], like: list[Tensor] | None = None) -> Tensor:
    """All gradients as one row; zeros for one that is not there."""
    shapes = like or gradients
    parts = [torch.zeros_like(b) if a is None else a for a, b in zip(gradients, shapes, strict=True) if b is not None]
    return torch.cat([part.flatten() for part in parts]).unsqueeze(0)
