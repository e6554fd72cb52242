"""The cloud's step machine: each (step, micro-batch) counts once, under repeats, early arrivals and nonsense."""

import gc

import numpy as np
import pytest
import torch

from privtune.cloud.compute.memory_budget import MemoryBudget
from privtune.cloud.compute.release_cache import ReleaseCache
from privtune.cloud.compute.step_machine import StepMachine
from privtune.cloud.compute.top_session import TopSession
from privtune.shared.errors import CloudOutOfMemory, CloudUnreachable, FrameCorrupt, NonFinite
from privtune.shared.job_spec import JobSpec
from privtune.shared.wire import (
    CUT_GRADIENT,
    FORWARD,
    GRADIENT,
    OUTPUT,
    RESEND,
    STEP,
    Message,
    pack_positions,
    tensor_message,
)
from privtune.split.v1 import split_pb2 as pb
from tests.support.adapters import exported

WIDTH = 32


class Bench:
    """A machine with its top, and messages for it."""

    def __init__(self, host, folder, *, max_bytes=1 << 20, requested=None, tail=0, train=None, budget=None):
        spec = JobSpec.model_validate(
            {
                "model": "enc",
                "training_file": "device://x",
                "codec": "fp32",
                "tail": tail,
                "train": train or {},
                "tuning": {"rank": 2, "dropout": 0.2},
                "optim": {"learning_rate": 0.01, "warmup_ratio": 0.0},
            }
        )
        self.top = TopSession(host, spec, 10, folder)
        self.requested = requested
        self.machine = StepMachine(
            self.top, ReleaseCache(WIDTH, "fp32", max_bytes, budget), lambda: self.requested, budget=budget
        )

    def tell(self, message):
        return list(self.machine.handle(message))

    def adapter(self):
        return exported(self.top)

    def whole_step(self, step, *, repeat=False, **options):
        for message in (forward(step, 0, **options), gradient(step, 0), step_message(step)):
            self.tell(message)
            if repeat:
                self.tell(message)


def forward(step, micro_batch, *, records=(3, 4), lengths=(2, 5), inlined=True, **header):
    rng = np.random.default_rng(list(records))
    h_MD = rng.standard_normal((sum(lengths), WIDTH)).astype(np.float32)
    flags = [inlined] * len(records) if isinstance(inlined, bool) else list(inlined)
    kept = np.concatenate([np.full(n, flag) for n, flag in zip(lengths, flags, strict=True)])
    message = tensor_message(FORWARD, step, micro_batch, h_MD[kept], "fp32")
    readout = header.pop("readout", np.arange(len(records)) * max(lengths))
    message.forward = pb.ForwardHeader(
        record_ids=records, lengths=lengths, inlined=flags, readout=pack_positions(np.asarray(readout)), **header
    )
    return message


def gradient(step, micro_batch, rows=2):
    # Not one number everywhere: a LayerNorm at the end takes no notice of that, and nothing is left but rounding.
    row_W = 0.1 * np.sin(np.arange(1, WIDTH + 1, dtype=np.float32))
    return tensor_message(GRADIENT, step, micro_batch, np.tile(row_W, (rows, 1)), "fp32")


def step_message(step, **control):
    return Message(kind=STEP, step=step, control=pb.StepControl(**control))


def same(a, b):
    return all(torch.equal(a[name], b[name]) for name in a)


def test_a_step_goes_forward_back_and_applies(host, tmp_path):
    bench = Bench(host, tmp_path)
    before = bench.adapter()
    (out,) = bench.tell(forward(0, 0))
    assert (out.kind, out.step, out.micro_batch, out.tensor().shape) == (OUTPUT, 0, 0, (2, WIDTH))
    assert bench.tell(gradient(0, 0)) == []
    (report,) = bench.tell(step_message(0))
    assert report.report.outcome == pb.STEP_OUTCOME_APPLIED
    assert report.report.grad_norm > 0
    assert bench.top.step == 1
    assert not same(before, bench.adapter())


def test_everything_sent_twice_counts_once(host, tmp_path):
    once, twice = Bench(host, tmp_path / "a"), Bench(host, tmp_path / "b")
    for step in range(3):
        once.whole_step(step)
        twice.whole_step(step, repeat=True)
    assert once.top.step == twice.top.step == 3
    assert same(once.adapter(), twice.adapter())


def test_a_step_sent_again_later_is_acknowledged_and_not_applied(host, tmp_path):
    bench = Bench(host, tmp_path)
    bench.whole_step(0)
    after = bench.adapter()
    (report,) = bench.tell(step_message(0))
    assert report.report.outcome == pb.STEP_OUTCOME_APPLIED
    assert bench.top.step == 1
    assert same(after, bench.adapter())


def test_the_next_step_may_come_early_and_waits(host, tmp_path):
    early, late = Bench(host, tmp_path / "a"), Bench(host, tmp_path / "b")
    early.tell(forward(0, 0))
    assert early.tell(forward(1, 0, records=(5, 6))) == []
    early.tell(gradient(0, 0))
    report, out = early.tell(step_message(0))
    assert (report.kind, out.kind, out.step) == (STEP, OUTPUT, 1)
    late.whole_step(0)
    (expected,) = late.tell(forward(1, 0, records=(5, 6)))
    np.testing.assert_array_equal(out.tensor(), expected.tensor())


def test_a_device_can_not_send_without_bound_ahead(host, tmp_path):
    bench = Bench(host, tmp_path)
    for step in range(1, 65):
        bench.tell(forward(step, 0))
    with pytest.raises(FrameCorrupt, match="more micro-batches ahead"):
        bench.tell(forward(65, 0))


def test_records_named_by_handle_give_the_same_result(host, tmp_path):
    bench = Bench(host, tmp_path)
    (first,) = bench.tell(forward(0, 0, forward_only=True))
    (again,) = bench.tell(forward(0, 0, forward_only=True, inlined=False))
    (mixed,) = bench.tell(forward(0, 0, forward_only=True, inlined=(False, True)))
    np.testing.assert_array_equal(first.tensor(), again.tensor())
    np.testing.assert_array_equal(first.tensor(), mixed.tensor())


def test_records_that_are_not_held_are_asked_for(host, tmp_path):
    bench = Bench(host, tmp_path)
    (answer,) = bench.tell(forward(0, 0, inlined=False))
    assert (answer.kind, answer.step, answer.micro_batch) == (RESEND, 0, 0)
    (out,) = bench.tell(forward(0, 0))
    assert out.kind == OUTPUT


def test_the_cache_is_bounded_and_old_records_are_asked_for_again(host, tmp_path):
    bench = Bench(host, tmp_path, max_bytes=7 * WIDTH * 4)
    bench.tell(forward(0, 0, forward_only=True))
    bench.tell(forward(0, 1, records=(8, 9), forward_only=True))
    (answer,) = bench.tell(forward(0, 2, inlined=False, forward_only=True))
    assert answer.kind == RESEND


def test_the_gradient_at_the_cut_comes_back_on_request(host, tmp_path):
    bench = Bench(host, tmp_path)
    bench.tell(forward(0, 0, want_cut_gradient=True))
    (answer,) = bench.tell(gradient(0, 0))
    assert answer.kind == CUT_GRADIENT
    assert answer.tensor().shape == (7, WIDTH)
    assert np.abs(answer.tensor()).sum() > 0


@pytest.mark.parametrize("request_name", ["pause", "cancel"])
def test_a_request_takes_effect_at_the_step_boundary_with_a_checkpoint(host, tmp_path, request_name):
    bench = Bench(host, tmp_path, requested=request_name)
    bench.tell(forward(0, 0))
    bench.tell(gradient(0, 0))
    (answer,) = bench.tell(step_message(0))
    wanted = {"pause": pb.STEP_OUTCOME_PAUSE, "cancel": pb.STEP_OUTCOME_CANCEL}[request_name]
    assert (answer.report.outcome, answer.report.checkpointed) == (wanted, True)
    assert (tmp_path / "step-00000001" / "manifest.json").exists()


def test_rewind_repeats_the_run_bit_by_bit(host, tmp_path):
    bench = Bench(host, tmp_path)
    for step in range(4):
        bench.tell(forward(step, 0, records=(step, step + 1)))
        bench.tell(gradient(step, 0))
        bench.tell(step_message(step, checkpoint=step == 1))
    end = bench.adapter()
    bench.top.rewind(2)
    for step in (2, 3):
        bench.whole_step(step, records=(step, step + 1))
    assert same(end, bench.adapter())


@pytest.mark.parametrize(
    ("message", "complaint"),
    [
        (forward(0, 0, readout=[10]), "reads out a position"),
        (forward(0, 0, lengths=(0, 7)), "without rows"),
        (Message(kind=FORWARD, step=0), "without its header"),
        (gradient(0, 5), "no forward pass"),
        (gradient(3, 0), "step 0 is due"),
        (Message(kind=OUTPUT, step=0), "does not send"),
        (forward(0, 0, shared_labels=[0, 1]), "labels"),
        (tensor_message(FORWARD, 0, 0, np.zeros((7, WIDTH), np.float32), "bf16"), "header"),
    ],
)
def test_malformed_messages_are_refused(host, tmp_path, message, complaint):
    with pytest.raises(FrameCorrupt, match=complaint):
        Bench(host, tmp_path).tell(message)


def test_a_lying_row_count_is_refused(host, tmp_path):
    message = forward(0, 0)
    message.forward.lengths[1] = 4
    with pytest.raises(FrameCorrupt, match="add up"):
        Bench(host, tmp_path).tell(message)


def test_a_gradient_of_another_shape_is_refused(host, tmp_path):
    bench = Bench(host, tmp_path)
    bench.tell(forward(0, 0))
    with pytest.raises(FrameCorrupt, match="shape"):
        bench.tell(gradient(0, 0, rows=3))


def test_a_step_without_all_gradients_is_refused(host, tmp_path):
    bench = Bench(host, tmp_path)
    bench.tell(forward(0, 0))
    with pytest.raises(FrameCorrupt, match="no gradient"):
        bench.tell(step_message(0))


def test_nan_in_a_frame_is_refused(host, tmp_path):
    message = forward(0, 0)
    message.payload = np.full((7, WIDTH), np.nan, np.float32).tobytes()
    with pytest.raises(NonFinite, match="NaN"):
        Bench(host, tmp_path).tell(message)


def test_a_job_with_a_tail_takes_forward_only_frames_and_trains_nothing(host, tmp_path):
    bench = Bench(host, tmp_path, tail=1)
    assert bench.top.trainable_parameters == 0
    every = {"readout": [0, 1, 5, 6, 7, 8, 9]}
    (out,) = bench.tell(forward(0, 0, forward_only=True, **every))
    assert out.tensor().shape == (7, WIDTH)
    with pytest.raises(FrameCorrupt, match="trains on its device"):
        bench.tell(forward(0, 1))
    with pytest.raises(FrameCorrupt, match="no forward pass"):
        bench.tell(gradient(0, 0))
    (report,) = bench.tell(step_message(0, checkpoint=True))
    assert (report.report.checkpointed, report.report.grad_norm, bench.top.step) == (True, 0.0, 1)
    bench.top.rewind(1)
    (again,) = bench.tell(forward(1, 0, forward_only=True, **every))
    np.testing.assert_array_equal(again.tensor(), out.tensor())


# ---- what the job's description does not allow


def counting(bench, monkeypatch):
    """How often the top computed."""
    calls = []
    for name in ("forward", "evaluate"):
        real = getattr(bench.top, name)
        monkeypatch.setattr(bench.top, name, lambda *a, _real=real, **k: calls.append(1) or _real(*a, **k))
    return calls


@pytest.mark.parametrize("evaluation", [False, True])
@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"records": (1, 2, 3), "lengths": (1, 1, 1)}, "over the job's batch_size"),
        ({"records": (1,), "lengths": (9,)}, "over the job's max_length"),
        ({"readout": [0] * 40}, "a position twice"),
        ({"records": (5, 5)}, "a record twice"),
    ],
)
def test_what_the_job_does_not_allow_is_never_computed(host, tmp_path, monkeypatch, changes, words, evaluation):
    bench = Bench(host, tmp_path, train={"batch_size": 2, "max_length": 8})
    calls = counting(bench, monkeypatch)
    with pytest.raises(FrameCorrupt, match=words):
        bench.tell(forward(0, 0, forward_only=evaluation, **changes))
    assert calls == []


def test_micro_batches_are_numbered_within_the_accumulation(host, tmp_path):
    bench = Bench(host, tmp_path, train={"accumulation": 2})
    bench.tell(forward(0, 1))
    with pytest.raises(FrameCorrupt, match="over the job's accumulation"):
        bench.tell(forward(0, 2, records=(5, 6)))


def test_forwards_without_gradients_do_not_pile_up(host, tmp_path):
    bench = Bench(host, tmp_path, train={"batch_size": 2, "accumulation": 1024, "in_flight": 3})
    for number in range(3):
        bench.tell(forward(0, number, records=(2 * number, 2 * number + 1)))
    with pytest.raises(FrameCorrupt, match="without gradients"):
        bench.tell(forward(0, 3, records=(8, 9)))
    bench.tell(gradient(0, 0))
    bench.tell(forward(0, 3, records=(8, 9)))


def test_a_ragged_micro_batch_is_measured_as_it_will_be_padded(host, tmp_path, monkeypatch):
    bench = Bench(host, tmp_path, train={"batch_size": 4096, "max_length": 32768})
    calls = counting(bench, monkeypatch)
    records = tuple(range(1000))
    with pytest.raises(FrameCorrupt, match="too much memory"):
        bench.tell(forward(0, 0, records=records, lengths=(20_000, *[1] * 999)))
    assert calls == []


def test_releases_of_failed_frames_are_bounded_too(host, tmp_path):
    """Each frame brings records and names one that nobody has."""
    bench = Bench(host, tmp_path, max_bytes=4 * 7 * WIDTH * 4)
    for number in range(50):
        records = (10 * number, 10 * number + 1, 999_999)
        bench.tell(forward(0, 0, records=records, lengths=(2, 5, 1), inlined=(True, True, False)))
    assert bench.machine._releases._size <= 4 * 7 * WIDTH * 4


def test_all_jobs_share_one_budget(host, tmp_path):
    budget = MemoryBudget(160 << 10).of("alice")
    train = {"batch_size": 64, "accumulation": 1024, "in_flight": 16}
    first, second = (Bench(host, tmp_path / name, train=train, budget=budget) for name in "ab")
    first.tell(forward(0, 0, lengths=(7, 7)))
    with pytest.raises(CloudOutOfMemory, match="--max-memory-mib"):
        first.tell(forward(0, 1, lengths=(7, 7), records=(1, 2)))
    with pytest.raises(CloudUnreachable, match="memory for jobs"):
        second.tell(forward(0, 0, lengths=(7, 7), records=(1, 2), readout=[0]))
    del first
    gc.collect()
    second.tell(forward(0, 0))


def test_a_full_budget_evicts_releases_before_it_refuses(host, tmp_path):
    bench = Bench(host, tmp_path, budget=MemoryBudget(96 << 10).of("alice"), max_bytes=1 << 30)
    for step in range(12):
        bench.whole_step(step, records=(2 * step, 2 * step + 1), lengths=(4, 4))
    assert bench.top.step == 12
