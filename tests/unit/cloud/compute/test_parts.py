"""A micro-batch that is too large for the memory is computed in parts, with the same numbers."""

import pytest
import torch

from privtune.cloud.catalog import Catalog
from privtune.cloud.compute.host import Host
from privtune.cloud.compute.top_session import TopSession
from privtune.shared.errors import CloudOutOfMemory
from privtune.shared.job_spec import JobSpec
from privtune.shared.modeling.partition import Top
from tests.support.adapters import exported
from tests.support.tiny_models import WIDTH, save_model

RECORDS, LONGEST = 5, 6


class NoRoomForGradients(torch.autograd.Function):
    @staticmethod
    def forward(ctx, out_ND):
        return out_ND.clone()

    @staticmethod
    def backward(ctx, *gradients):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


@pytest.fixture(scope="module")
def host(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    save_model(folder / "dec", "llama", "causal-lm")
    calm = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    save_model(folder / "enc", "bert", "classification", num_labels=2, **calm)
    return Host(Catalog([f"{name}={folder / name}" for name in ("dec", "enc")]), folder / "bottoms")


@pytest.fixture
def short(monkeypatch):
    """Limits the records that a top has memory for: in its forward pass, or in the backward pass of it."""
    run = Top.forward
    sizes = []

    def limit(most, *, backward=False):
        def forward(self, h_BTD, *arguments):
            sizes.append(len(h_BTD))
            if len(h_BTD) <= most:
                return run(self, h_BTD, *arguments)
            if not backward:
                raise MemoryError("Unable to allocate 8.0 TiB for an array")
            return NoRoomForGradients.apply(run(self, h_BTD, *arguments))

        monkeypatch.setattr(Top, "forward", forward)
        return sizes

    return limit


def batch():
    """h_BTD, mask_BT and readout_N: nothing is read of the third record."""
    seeded = torch.Generator().manual_seed(3)
    mask_BT = (torch.arange(LONGEST)[None] < torch.tensor([6, 3, 5, 2, 6])[:, None]).long()
    readout_N = torch.tensor([0, 2, 5, LONGEST, 3 * LONGEST + 1, 4 * LONGEST, 4 * LONGEST + 5])
    return torch.randn(RECORDS, LONGEST, WIDTH, generator=seeded), mask_BT, readout_N


def session(host, folder, **changes):
    spec = {"model": "dec", "task": "causal-lm", "training_file": "device://x", "optim": {"warmup_ratio": 0.0}}
    spec["tuning"] = {"rank": 2, "dropout": 0.0, "gradient_checkpointing": changes.pop("recompute", False)}
    return TopSession(host, JobSpec.model_validate(spec | changes), 3, folder)


def adapter(top):
    return [value for _, value in sorted(exported(top).items())]


def step(top):
    """Two micro-batches under way at once, then the step: outputs, gradients at the cut, adapter."""
    outs = [top.forward(number, *batch(), want_cut_gradient=True).now() for number in range(2)]
    cuts = [top.backward(number, out_ND.cos()).now() for number, out_ND in enumerate(outs)]
    top.apply()
    return [*outs, *cuts, *adapter(top), top.evaluate(*batch())]


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize(("most", "backward"), [(4, False), (2, False), (1, False), (2, True)])
def test_halves_and_smaller_parts_give_the_numbers_of_the_whole(host, tmp_path, short, most, backward, recompute):
    whole = step(session(host, tmp_path, recompute=recompute))
    sizes = short(most, backward=backward)
    in_parts = step(session(host, tmp_path, recompute=recompute))
    assert {size for size in sizes if size <= most}
    for one, two in zip(whole, in_parts, strict=True):
        torch.testing.assert_close(two, one, rtol=1e-5, atol=1e-5)


def test_the_gradients_of_a_step_add_up(host, tmp_path):
    norms = []
    for micro_batches in (1, 2):
        top = session(host, tmp_path)
        for number in range(micro_batches):
            out_ND = top.forward(number, *batch(), want_cut_gradient=False).now()
            top.backward(number, out_ND.cos()).now()
        norms.append(top.apply())
    assert norms[1] == pytest.approx(2 * norms[0], rel=1e-5)


@pytest.mark.parametrize("backward", [False, True])
def test_with_shared_labels_too(host, tmp_path, short, backward):
    def learn():
        top = session(host, tmp_path, model="enc", task="classification", labels="shared", num_labels=2)
        h_BTD, mask_BT, _ = batch()
        labels_N = torch.tensor([0, 1, 1, 0, 1])
        loss = top.forward_loss(0, h_BTD, mask_BT, torch.arange(RECORDS) * LONGEST, labels_N, 1.0).now()
        top.apply()
        return [torch.tensor(loss), *adapter(top)]

    whole = learn()
    short(2, backward=backward)
    for one, two in zip(whole, learn(), strict=True):
        torch.testing.assert_close(two, one, rtol=1e-5, atol=1e-5)


def test_one_record_that_is_too_much_says_so_and_leaves_no_gradient(host, tmp_path, short):
    top = session(host, tmp_path)
    out_ND = top.forward(0, *batch(), want_cut_gradient=False).now()
    sizes = short(0)
    with pytest.raises(CloudOutOfMemory, match="lower --batch-size"):
        top.forward(1, *batch(), want_cut_gradient=False).now()
    assert sizes == [5, 3, 2, 1]
    short(5)
    top.backward(0, out_ND).now()
    top.apply()
    assert top.step == 1


def test_a_step_is_written_once(host, tmp_path):
    """The last step is checkpointed when it is done; the commit does not write it again."""
    top = session(host, tmp_path)
    top.step = 2
    top.save()
    written = (tmp_path / "step-00000002" / "manifest.json").stat().st_ino
    top.save()
    assert (tmp_path / "step-00000002" / "manifest.json").stat().st_ino == written
    again = session(host, tmp_path)
    again.rewind(2)
    again.save()
    assert (tmp_path / "step-00000002" / "manifest.json").stat().st_ino == written
    again.step = 3
    again.save()
    assert (tmp_path / "step-00000003" / "manifest.json").exists()
