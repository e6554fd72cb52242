"""Passes of several jobs as one: the numbers of each alone, whoever comes, fails or goes; and one base in memory."""

import pytest
import torch

from privtune.cloud.catalog import Catalog
from privtune.cloud.compute.host import Host
from privtune.cloud.compute.top_session import TopSession
from privtune.cloud.compute.work import compute_together
from privtune.shared.errors import JobConflict, NonFinite
from privtune.shared.job_spec import JobSpec
from tests.support.adapters import exported, held_tensors
from tests.support.tiny_models import WIDTH, save_model

JOBS = 4


@pytest.fixture(scope="module")
def host(tmp_path_factory):
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("models")
    save_model(folder / "enc", "bert", "classification", num_labels=2, hidden_dropout_prob=0.1)
    return Host(Catalog([f"enc={folder / 'enc'}"]), folder / "bottoms")


def sessions(host, folder, **changes):
    """Jobs with other ranks, learning rates, clipping and seeds."""
    made = []
    for number in range(JOBS):
        spec = {
            "model": "enc",
            "training_file": "device://x",
            "tuning": {"rank": 2 + number % 2, "dropout": 0.2},
            "optim": {"learning_rate": 0.01 * (number + 1), "warmup_ratio": 0.0, "max_grad_norm": number * 0.1},
            "train": {"seed": number},
        }
        made.append(TopSession(host, JobSpec.model_validate(spec | changes), 4, folder / str(number)))
    return made


def batch(job, step, scale=1.0):
    generator = torch.Generator().manual_seed(10 * job + step)
    lengths = torch.tensor([5 - job % 2, 3, 4][: 2 + job % 2])
    mask_BT = (torch.arange(int(lengths.max()))[None] < lengths[:, None]).long()
    h_BTD = scale * torch.randn(*mask_BT.shape, WIDTH, generator=generator)
    return h_BTD, mask_BT, torch.arange(len(lengths)) * mask_BT.shape[1]


def begin(tops, step):
    return [top.forward(0, *batch(job, step), want_cut_gradient=job == 1) for job, top in enumerate(tops)]


def gradient(out_ND):
    return 0.1 * out_ND.cos() * torch.sin(torch.arange(1, WIDTH + 1))


def alone(tops, steps=3):
    found = []
    for step in range(steps):
        outs = [work.now() for work in begin(tops, step)]
        cuts = [top.backward(0, gradient(out_ND)).now() for top, out_ND in zip(tops, outs, strict=True)]
        found += [*outs, cuts[1], *(torch.tensor(top.apply()) for top in tops)]
    return [*found, *weights(tops), *(top.evaluate(*batch(job, 9)) for job, top in enumerate(tops))]


def weights(tops):
    return [value for top in tops for _, value in sorted(exported(top).items())]


def close(found, wanted):
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_jobs_as_one_have_the_numbers_of_jobs_alone(host, tmp_path):
    wanted = alone(sessions(host, tmp_path / "alone"))
    tops, found = sessions(host, tmp_path / "joint"), []
    for step in range(3):
        works = begin(tops, step)
        assert len({work.key for work in works}) == 1
        compute_together(works)
        outs = [work.result() for work in works]
        backs = [top.backward(0, gradient(out_ND)) for top, out_ND in zip(tops, outs, strict=True)]
        compute_together(backs)
        found += [*outs, backs[1].result(), *(torch.tensor(top.apply()) for top in tops)]
    evaluations = [top.evaluating(*batch(job, 9)) for job, top in enumerate(tops)]
    works = [next(evaluation) for evaluation in evaluations]
    compute_together(works)
    close([*found, *weights(tops), *(work.result() for work in works)], wanted)


@pytest.mark.parametrize("order", [[[0], [1, 2, 3]], [[0, 1, 2], [3]], [[2], [0], [3], [1]], [[0, 1], [2, 3]]])
def test_whoever_comes_back_first(host, tmp_path, order):
    """Partners whose gradients come later, or never, are not waited for and lose nothing."""
    wanted = sessions(host, tmp_path / "alone")
    alone(wanted, steps=1)
    tops = sessions(host, tmp_path / "joint")
    works = begin(tops, 0)
    compute_together(works)
    outs = [work.result() for work in works]
    for group in order:
        backs = [tops[job].backward(0, gradient(outs[job])) for job in group]
        compute_together(backs)
        for job, back in zip(group, backs, strict=True):
            back.result()
            tops[job].apply()
    close(weights(tops), weights(wanted))


def test_one_that_fails_fails_alone(host, tmp_path):
    wanted = sessions(host, tmp_path / "alone")
    alone(wanted, steps=1)
    tops = sessions(host, tmp_path / "joint")
    works = begin(tops, 0)
    works[2] = tops[2].forward(0, *batch(2, 0, scale=float("nan")), want_cut_gradient=False)
    compute_together(works)
    backs = [top.backward(0, gradient(work.result())) for top, work in zip(tops, works, strict=True)]
    compute_together(backs)
    with pytest.raises(NonFinite):
        tops[2].apply()
    rest = [top for job, top in enumerate(tops) if job != 2]
    for top in rest:
        top.apply()
    close(weights(rest), weights([top for job, top in enumerate(wanted) if job != 2]))


def test_an_error_is_that_of_its_own_job(host, tmp_path):
    """A label that the head has no class for: torch refuses the whole pass, and the others are computed again."""
    shared = {"labels": "shared", "num_labels": 2, "task": "classification"}
    tops, wanted = sessions(host, tmp_path / "joint", **shared), sessions(host, tmp_path / "alone", **shared)

    def learn(top, job, label=1):
        h_BTD, mask_BT, readout_N = batch(job, 0)
        labels_N = torch.full((len(readout_N),), label)
        return top.forward_loss(0, h_BTD, mask_BT, readout_N, labels_N, 1.0)

    losses = [learn(top, job).now() for job, top in enumerate(wanted)]
    works = [learn(top, job, label=7 if job == 1 else 1) for job, top in enumerate(tops)]
    compute_together(works)
    with pytest.raises(IndexError):
        works[1].result()
    for job in (0, 2, 3):
        assert works[job].result() == pytest.approx(losses[job], rel=1e-5)
        assert tops[job].apply() == pytest.approx(wanted[job].apply(), rel=1e-4)


def test_what_was_asked_before_a_rewind_is_not_computed(host, tmp_path):
    tops = sessions(host, tmp_path)
    works = begin(tops, 0)
    tops[1].rewind(0)
    compute_together(works)
    with pytest.raises(JobConflict, match="began anew"):
        works[1].result()
    works[0].result()
    tops[1].apply()


def test_a_job_that_has_to_repeat_bit_by_bit_keeps_to_itself(host, tmp_path):
    one, other, full = sessions(host, tmp_path)[:3]
    one.compute_alone()
    full = sessions(host, tmp_path / "full", tuning={"method": "full"})[0]
    again = sessions(host, tmp_path / "again", tuning={"gradient_checkpointing": True})[0]
    keys = [top.forward(0, *batch(0, 0), want_cut_gradient=False).key for top in (one, other, full, again)]
    assert [key is None for key in keys] == [True, False, True, True]


def test_other_slices_and_other_arithmetic_keep_apart(host, tmp_path):
    changes = [{}, {"cut": 2}, {"train": {"precision": "bf16"}}, {}]
    tops = [sessions(host, tmp_path / str(number), **change)[0] for number, change in enumerate(changes)]
    keys = [top.forward(0, *batch(0, 0), want_cut_gradient=False).key for top in tops]
    assert keys[0] == keys[3]
    assert len(set(keys)) == 3


def test_little_is_padded(host, tmp_path, monkeypatch):
    """A pass of one long and many short texts would be mostly padding."""
    tops, widths = sessions(host, tmp_path), []
    joint = host.joint_top(tops[0].spec)
    forward = joint.forward
    monkeypatch.setattr(joint, "forward", lambda members, **how: widths.append(len(members)) or forward(members, **how))
    shapes = [(1, 40), (2, 4), (2, 4), (1, 4)]
    works = [
        top.forward(
            0,
            torch.zeros(*shape, WIDTH),
            torch.ones(*shape, dtype=torch.long),
            torch.tensor([0]),
            want_cut_gradient=False,
        )
        for top, shape in zip(tops, shapes, strict=True)
    ]
    compute_together(works)
    assert widths == [3]
    assert all(work.result().shape == (1, WIDTH) for work in works)
    monkeypatch.setattr(joint, "most_rows", 12)
    widths.clear()
    compute_together(begin(sessions(host, tmp_path / "few"), 0))  # of 10, 12, 10 and 12 rows
    assert widths == []


def test_jobs_share_one_base_and_keep_nothing_twice(host, tmp_path):
    """Of each job no more than its adapter and the optimiser's two moments, however many there are."""
    tops = [session for number in range(8) for session in sessions(host, tmp_path / str(number))]
    for top in tops:
        top.backward(0, gradient(top.forward(0, *batch(0, 0), want_cut_gradient=False).now())).now()
        top.apply()
    base = {id(p): p for p in host.partition("enc", "classification").model.parameters()}
    held = {id(t): t for top in tops for t in held_tensors(top)}
    own = sum(t.numel() for key, t in held.items() if key not in base and t.dim() > 0)
    adapters = sum(top.trainable_parameters for top in tops)
    assert sum(t.numel() for t in base.values()) > 0
    assert 3 * adapters <= own <= 1.01 * 3 * adapters + 32 * WIDTH * len(tops)
