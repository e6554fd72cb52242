"""Handles the messages of one session's stream in order, and each (step, micro-batch) exactly once.

The device may send the next step's micro-batches early; they wait here until the optimiser step before them is done.
Free of grpc and asyncio: the gateway runs it on the compute thread.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import torch

from privtune.cloud.compute.memory_budget import MemoryBudget, OwnersBudget
from privtune.cloud.compute.padding import together
from privtune.cloud.compute.release_cache import NotHeld, PaddedBatch, ReleaseCache
from privtune.cloud.compute.text_cache import TextCache
from privtune.cloud.compute.top_session import TopSession
from privtune.cloud.compute.turns import NOBODY
from privtune.cloud.compute.work import Work
from privtune.cloud.jobs.states import Request
from privtune.shared.errors import FrameCorrupt, PrivTuneError
from privtune.shared.public_table import PublicTable
from privtune.shared.tracing import span
from privtune.shared.wire import (
    CUT_GRADIENT,
    END,
    FORWARD,
    GRADIENT,
    OUTPUT,
    RESEND,
    STEP,
    TABLE,
    Message,
    tensor_message,
)
from privtune.shared.wording import counted
from privtune.split.v1 import split_pb2 as pb

# Messages held for later steps; a device that sends further ahead ignores the handshake's max_in_flight.
MAX_HELD = 64
MAX_INFERENCE_RECORDS = 4096  # in a message of an inference stream, whose device chooses the size
MAX_INFERENCE_ROWS = 32_768  # of a record in an inference stream, unless the model has fewer positions
MAX_PADDED_BYTES = 512 << 20
ShowStates = Callable[[Mapping[str, torch.Tensor], Mapping[str, torch.Tensor]], None]


class StepMachine:
    """Turns one session's incoming messages into outgoing ones.

    requested: what the job's owner asked to happen at the next step boundary.
    texts: given for an inference session, which never trains.
    closing: whether the cloud is shutting down, so that the next step is the last one and leaves a checkpoint.
    budget: shared by all jobs; None: no bound.
    max_padded_bytes: most that a micro-batch may take once it is padded, in float32.
    keep_table: stores a table that came, for later sessions of the job.
    show: for a device with spot checks: keeps the states before and after a step where the device can fetch them.
    outcome: of the last optimiser step, a `pb.StepOutcome`.
    """

    def __init__(
        self,
        top: TopSession,
        releases: ReleaseCache,
        requested: Callable[[], Request | None],
        *,
        texts: TextCache | None = None,
        closing: Callable[[], bool] = lambda: False,
        budget: OwnersBudget | None = None,
        max_padded_bytes: int = MAX_PADDED_BYTES,
        keep_table: Callable[[PublicTable], None] = lambda table: None,
        show: ShowStates | None = None,
    ) -> None:
        self._keep_table, self._show = keep_table, show
        self._budget, self._max_padded_bytes = budget or MemoryBudget(sys.maxsize).of(NOBODY), max_padded_bytes
        self._pending: dict[int, int] = {}  # bytes that the graph of a micro-batch holds, roughly
        self._top, self._releases, self._requested, self._texts = top, releases, requested, texts
        self._closing = closing
        self._held: deque[Message] = deque()
        self._done: set[int] = set()
        self._masks: dict[int, torch.Tensor] = {}
        self.outcome: int = pb.STEP_OUTCOME_APPLIED

    def handle(self, message: Message) -> Iterator[Message]:
        """Yield the answers to one message as they are computed. Raises `FrameCorrupt`, `NonFinite`, `StorageFull`."""
        for item in self.steps(message):
            if isinstance(item, Work):
                item.compute()
            else:
                yield item

    def steps(self, message: Message) -> Iterator[Message | Work[Any]]:
        """As `handle`, but yield a pass before its answer, to be computed before the next item is asked for."""
        header = message.forward
        if message.kind == FORWARD:
            self._check(message, header or pb.ForwardHeader())
        if self._texts is not None and message.kind == FORWARD and header is not None and header.past:
            yield self._extend(message, header, self._texts)
        elif message.kind == TABLE:
            yield self._take_table(message)
        elif self._texts is not None and message.kind == END and header is not None:
            self._texts.drop(self, header.record_ids)
        elif message.kind == FORWARD and header is not None and header.forward_only:
            yield from self._evaluate(message)
        elif self._texts is not None:
            raise FrameCorrupt("an inference stream takes only forward-only frames")
        elif message.step < self._top.step:
            yield from self._repeat(message)
        elif message.kind == FORWARD and message.step > self._top.step:
            self._hold(message)
        elif message.step != self._top.step:
            raise FrameCorrupt(f"step {self._top.step} is due, a message for step {message.step} came")
        elif message.kind == FORWARD:
            yield from self._forward(message)
        elif message.kind == GRADIENT:
            yield from self._backward(message)
        elif message.kind == STEP:
            yield self._apply(message)
            yield from self._release_held()
        else:
            raise FrameCorrupt(f"a device does not send frames of kind {message.kind}")

    def _check(self, message: Message, header: pb.ForwardHeader) -> None:
        """Raises `FrameCorrupt` for what the job's description does not allow, before anything is computed."""
        train, records, longest = self._top.spec.train, len(header.record_ids), max(header.lengths, default=0)
        if records > (MAX_INFERENCE_RECORDS if self._texts is not None else train.batch_size):
            raise FrameCorrupt(f"a micro-batch of {counted(records, 'record')} is over the job's batch_size")
        most = (
            train.max_length if self._texts is None else max(train.max_length, self._top.positions(MAX_INFERENCE_ROWS))
        )
        if longest > most:
            raise FrameCorrupt(f"a record of {counted(longest, 'row')} is over the job's max_length of {most}")
        if records * longest * self._releases.width * 4 > self._max_padded_bytes:
            raise FrameCorrupt(
                f"{counted(records, 'record')} of up to {counted(longest, 'row')} take too much memory together; "
                "lower --batch-size or --max-length"
            )
        if len(header.readout) > 4 * records * longest:
            raise FrameCorrupt("a forward frame reads out a position twice")
        facts = (header.lengths, header.inlined, header.past, header.shared_labels)
        if max(map(len, facts)) > records:
            raise FrameCorrupt("a forward frame's record ids, lengths and inline flags do not fit together")
        trains = not header.forward_only and self._texts is None and not self._top.spec.tail
        if trains and message.micro_batch >= train.accumulation:
            raise FrameCorrupt(f"micro-batch {message.micro_batch} is over the job's accumulation")

    def _admit(self, message: Message, rows: int) -> None:
        """Enter a forward pass whose graph waits for its gradient. Raises `FrameCorrupt` for one more than agreed."""
        if len(self._pending) >= self._top.spec.train.in_flight:
            raise FrameCorrupt("the device sent more micro-batches without gradients than the handshake allows")
        self._pending[message.micro_batch] = self._top.graph_bytes(rows, self._releases.width)
        try:
            self._hold_bytes()
        except PrivTuneError:
            del self._pending[message.micro_batch]
            raise

    def _settle(self, micro_batch: int | None = None) -> None:
        """Free one forward pass, or all."""
        if micro_batch is None:
            self._pending.clear()
        else:
            self._pending.pop(micro_batch, None)
        self._hold_bytes()

    def _hold_bytes(self) -> None:
        held = sum(max(message.wire_bytes, len(message.payload)) for message in self._held)
        self._budget.hold(self, held + sum(self._pending.values()))

    def _take_table(self, message: Message) -> Message:
        table = PublicTable.from_message(message)
        self._releases.take_table(table)
        self._keep_table(table)
        return Message(kind=TABLE, step=message.step, table=pb.TableHeader(sha256=table.sha256))

    def _output(self, message: Message, out_ND: torch.Tensor) -> Message:
        return tensor_message(OUTPUT, message.step, message.micro_batch, out_ND.numpy(), self._top.spec.output_codec)

    def _evaluate(self, message: Message) -> Iterator[Message | Work[Any]]:
        batch = self._unpack(message)
        if batch is None:
            yield resend(message)
            return
        works = self._top.evaluating(batch.h_BTD, batch.mask_BT, batch.readout_N)
        out_ND = yield from self._traced(works, message, batch)
        yield self._output(message, out_ND)

    def _extend(self, message: Message, header: pb.ForwardHeader, texts: TextCache) -> Message:
        """Extend texts by new rows: all texts of the micro-batch, or none when one of them was evicted."""
        batch = self._releases.unpack_rows(message)
        if len(header.past) != len(header.record_ids):
            raise FrameCorrupt("a forward frame's record ids and past rows do not fit together")
        try:
            caches = [
                texts.get(self, record, past) if past else self._top.new_text()
                for record, past in zip(header.record_ids, header.past, strict=True)
            ]
        except NotHeld:
            return resend(message)
        out_BTD = torch.zeros_like(batch.h_BTD)
        padded = len(caches) * max((cache.nbytes for cache in caches), default=0)
        if not any(header.past):
            self._begin(batch, header, texts, out_BTD)
        elif all(header.past) and max(header.lengths) == 1 and padded <= texts.max_bytes:
            out_BTD[:, 0] = self._top.extend_together(caches, batch.h_BTD[:, 0])
            for record, cache in zip(header.record_ids, caches, strict=True):
                texts.put(self, record, cache)
        else:
            for row, (cache, length) in enumerate(zip(caches, header.lengths, strict=True)):
                out_BTD[row, :length] = self._top.extend(cache, batch.h_BTD[row, :length])
                texts.put(self, header.record_ids[row], cache)
        out_ND = out_BTD.flatten(0, 1).index_select(0, batch.readout_N)
        return self._output(message, out_ND)

    def _begin(self, batch: PaddedBatch, header: pb.ForwardHeader, texts: TextCache, out_BTD: torch.Tensor) -> None:
        """Begin new texts, each kept as soon as its pass is done: over the bound, the first ones give way again."""
        for rows in together(header.lengths):
            lengths = [header.lengths[row] for row in rows]
            caches, longest = [self._top.new_text() for _ in rows], max(lengths)
            out_BTD[rows, :longest] = self._top.begin_together(caches, batch.h_BTD[rows, :longest], lengths)
            for row, cache in zip(rows, caches, strict=True):
                texts.put(self, header.record_ids[row], cache)

    def _forward(self, message: Message) -> Iterator[Message | Work[Any]]:
        if message.micro_batch in self._done or message.micro_batch in self._masks:
            return
        batch, header = self._unpack(message), message.forward
        if batch is None or header is None:
            yield resend(message)
            return
        if header.shared_labels or self._top.spec.labels == "shared":
            labels_N = torch.tensor(list(header.shared_labels), dtype=torch.long)
            if len(labels_N) != len(batch.readout_N) or int(labels_N.max()) >= (self._top.spec.num_labels or 0):
                raise FrameCorrupt("the labels of a micro-batch do not fit its records or the job's num_labels")
            self._admit(message, batch.mask_BT.numel())
            learning = self._top.forward_loss(
                message.micro_batch, batch.h_BTD, batch.mask_BT, batch.readout_N, labels_N, header.weight
            )
            learning.traced = partial(self._span, message, batch)
            yield learning
            self._top.shared_loss += learning.result()
            self._done.add(message.micro_batch)
            self._settle(message.micro_batch)
            yield Message(kind=OUTPUT, step=message.step, micro_batch=message.micro_batch)
            return
        self._admit(message, batch.mask_BT.numel())
        forward = self._top.forward(
            message.micro_batch,
            batch.h_BTD,
            batch.mask_BT,
            batch.readout_N,
            want_cut_gradient=header.want_cut_gradient,
        )
        forward.traced = partial(self._span, message, batch)
        yield forward
        out_ND = forward.result()
        self._masks[message.micro_batch] = batch.mask_BT
        yield self._output(message, out_ND)

    def _backward(self, message: Message) -> Iterator[Message | Work[Any]]:
        if message.micro_batch in self._done:
            return
        backward = self._top.backward(message.micro_batch, torch.from_numpy(message.tensor()))
        backward.traced = partial(self._span, message)
        yield backward
        gradient_BTD = backward.result()
        self._done.add(message.micro_batch)
        mask_BT = self._masks.pop(message.micro_batch)
        self._settle(message.micro_batch)
        if gradient_BTD is not None:
            packed_MD = gradient_BTD[mask_BT.bool()].float().numpy()
            yield tensor_message(CUT_GRADIENT, message.step, message.micro_batch, packed_MD, message.codec)

    def _apply(self, message: Message) -> Message:
        control = message.control or pb.StepControl()
        shared_loss, in_parts = self._top.shared_loss, self._top.in_parts
        before = self._top.training_state() if control.show and self._show is not None else None
        with span("optimiser", step=message.step):
            norm = self._top.apply()
        if before is not None and self._show is not None:
            self._show(before, self._top.training_state())
        self._done, self._masks = set(), {}
        self._settle()
        self._top.begin_step()
        request = self._requested()
        self.outcome = {
            None: pb.STEP_OUTCOME_PAUSE if control.pause else pb.STEP_OUTCOME_APPLIED,
            "pause": pb.STEP_OUTCOME_PAUSE,
            "cancel": pb.STEP_OUTCOME_CANCEL,
        }[request]
        checkpoint = control.checkpoint or self.outcome != pb.STEP_OUTCOME_APPLIED or self._closing()
        if checkpoint:
            with span("checkpoint", step=message.step):
                self._top.save(candidate=control.candidate)
        report = _report(message.step, self.outcome, norm, checkpoint, shared_loss)
        if self._show is not None and report.report is not None:
            report.report.state_sha256, report.report.in_parts = self._top.state_sha256(), in_parts
        return report

    def _repeat(self, message: Message) -> Iterator[Message]:
        """A message of a step that is already applied: a repeated STEP is acknowledged, anything else ignored."""
        if message.kind == STEP:
            yield _report(message.step, pb.STEP_OUTCOME_APPLIED, 0.0, False, 0.0)

    def _hold(self, message: Message) -> None:
        if len(self._held) >= MAX_HELD:
            raise FrameCorrupt("the device sent more micro-batches ahead than the handshake allows")
        self._held.append(message)
        self._hold_bytes()

    def _release_held(self) -> Iterator[Message | Work[Any]]:
        due, self._held = self._held, deque()
        self._hold_bytes()
        for message in due:
            yield from self.steps(message)

    def _traced(
        self, works: Generator[Work[Any], None, torch.Tensor], message: Message, batch: PaddedBatch
    ) -> Generator[Work[Any], None, torch.Tensor]:
        while True:
            try:
                work = next(works)
            except StopIteration as end:
                found: torch.Tensor = end.value
                return found
            work.traced = partial(self._span, message, batch)
            yield work

    def _span(self, message: Message, batch: PaddedBatch | None = None) -> AbstractContextManager[None]:
        rows = None if batch is None else int(batch.mask_BT.sum())
        return span("top", step=message.step, micro_batch=message.micro_batch, rows=rows)

    def _unpack(self, message: Message) -> PaddedBatch | None:
        try:
            return self._releases.unpack(message)
        except NotHeld:
            return None


def resend(message: Message) -> Message:
    """The answer to a micro-batch with records that are no longer held."""
    return Message(kind=RESEND, step=message.step, micro_batch=message.micro_batch)


def _report(step: int, outcome: int, norm: float, checkpointed: bool, shared_loss: float) -> Message:
    report = pb.StepReport(
        outcome=outcome,  # type: ignore[arg-type]
        grad_norm=norm,
        checkpointed=checkpointed,
        shared_loss=shared_loss,
    )
    return Message(kind=STEP, step=step, report=report)
