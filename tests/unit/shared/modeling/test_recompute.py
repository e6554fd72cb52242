"""Gradient check-pointing: the same gradients bit by bit, with fewer tensors kept. Mixed precision: nearly the same."""

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks

from privtune.cloud.catalog import Catalog
from privtune.cloud.compute.host import Host
from privtune.cloud.compute.top_session import TopSession
from privtune.shared.job_spec import JobSpec, TuningSpec
from privtune.shared.modeling.lora import attach_lora, train_fully, trainable_parameters
from privtune.shared.modeling.partition import Partition
from privtune.shared.modeling.recompute import recompute_blocks
from privtune.shared.modeling.seeding import seeded
from tests.support.adapters import exported
from tests.support.tiny_models import CONFIGS, ENCODERS, WIDTH, save_model, tiny_classifier, tiny_lm


def tops(kind, *, full=False, cut=1, dropout=0.3, spread=0.2):
    """Two like tops with dropout, the second with recomputation. `spread`: standard deviation of the weights."""
    make = tiny_classifier if kind in ENCODERS else tiny_lm
    model = make(kind, initializer_range=spread)
    partition = Partition(model)
    pair = []
    for recomputed in (False, True):
        top = partition.top(cut).train()
        if full:
            train_fully(top)
        else:
            attach_lora(top, TuningSpec(rank=4, dropout=dropout), seed=1)
            for parameter in trainable_parameters(top):
                torch.nn.init.normal_(parameter, std=spread, generator=torch.Generator().manual_seed(2))
        if recomputed:
            recompute_blocks(top)
        pair.append(top)
    return pair


def batch(records=3, tokens=7):
    h_BTD = torch.randn(records, tokens, WIDTH, generator=torch.Generator().manual_seed(3))
    mask_BT = (torch.arange(tokens)[None] < torch.tensor([tokens, 4, 1])[:, None]).long()
    return h_BTD, mask_BT, torch.tensor([0, 6, 8, 14])


def gradients(top, *, autocast=False):
    """Output, gradient at the cut and of every parameter, and the bytes that the forward pass keeps."""
    h_BTD, mask_BT, readout_N = batch()
    h_BTD.requires_grad_(True)
    kept = []

    def pack(tensor):
        kept.append(tensor.nbytes)
        return tensor

    with seeded("x"), torch.autocast("cpu", torch.bfloat16, enabled=autocast), saved_tensors_hooks(pack, lambda t: t):
        out_ND = top(h_BTD, mask_BT, readout_N).float()
    with seeded("other"):  # what recomputes must not depend on the state it finds
        out_ND.backward(torch.randn(out_ND.shape, generator=torch.Generator().manual_seed(4)))
    found = {name: parameter.grad for name, parameter in top.named_parameters() if parameter.requires_grad}
    return {"out": out_ND.detach(), "cut": h_BTD.grad, **found}, sum(kept)


@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize("autocast", [False, True], ids=["fp32", "bf16"])
def test_recomputed_gradients_are_exactly_the_same(kind, autocast):
    plain, recomputed = tops(kind)
    (one, kept), (two, kept_less) = gradients(plain, autocast=autocast), gradients(recomputed, autocast=autocast)
    assert one.keys() == two.keys()
    for name, value in one.items():
        assert torch.equal(value, two[name]), name
    assert any(value.abs().sum() > 0 for name, value in one.items() if "lora_A" in name)
    assert kept_less < kept / 4


def test_full_tuning_too():
    one, two = (gradients(top)[0] for top in tops("llama", full=True))
    assert all(torch.equal(value, two[name]) for name, value in one.items())


def test_without_gradients_nothing_changes():
    plain, recomputed = (top.eval() for top in tops("gpt2"))
    with torch.no_grad():
        assert torch.equal(plain(*batch()), recomputed(*batch()))


@pytest.mark.parametrize("kind", ["llama", "gpt2", "bert"])
def test_mixed_precision_stays_close_and_keeps_fp32_weights(kind):
    plain, mixed = tops(kind, dropout=0.0, spread=0.05)  # large weights would amplify the rounding
    one, two = gradients(plain)[0], gradients(mixed, autocast=True)[0]
    assert not torch.equal(one["out"], two["out"])  # it was indeed computed in another precision
    for name in ("out", "cut"):
        error = (one[name] - two[name]).norm() / one[name].norm()
        assert error < 0.05, name
    flat = [torch.cat([found[name].flatten() for name in one if "lora" in name]) for found in (one, two)]
    assert torch.nn.functional.cosine_similarity(*flat, dim=0) > 0.995
    assert {parameter.dtype for parameter in mixed.parameters()} == {torch.float32}


@pytest.fixture(scope="module")
def host(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    save_model(folder / "dec", "llama", "causal-lm")
    return Host(Catalog([f"dec={folder / 'dec'}"]), folder / "bottoms")


def trained(host, folder, **changes):
    """The adapter after three steps of a session with dropout."""
    spec = JobSpec.model_validate(
        {
            "model": "dec",
            "training_file": "device://x",
            "task": "causal-lm",
            "tuning": {"rank": 4, "dropout": 0.3, "gradient_checkpointing": changes.get("recompute", False)},
            "train": {"precision": changes.get("precision", "fp32")},
            "optim": {"learning_rate": 0.01, "warmup_ratio": 0.0},
        }
    )
    session = TopSession(host, spec, 3, folder)
    for _ in range(3):
        session.begin_step()
        for micro_batch in range(2):  # both forward passes come before the first backward pass
            out_ND = session.forward(micro_batch, *batch(), want_cut_gradient=False).now()
            assert out_ND.dtype == torch.float32
        for micro_batch in range(2):
            session.backward(micro_batch, out_ND).now()
        session.apply()
    return exported(session)


def test_a_session_trains_the_same_adapter(host, tmp_path):
    for precision in ("fp32", "bf16"):
        one, two = (trained(host, tmp_path, precision=precision, recompute=flag) for flag in (False, True))
        assert all(torch.equal(value, two[name]) for name, value in one.items())
        assert {value.dtype for value in one.values()} == {torch.float32}
    assert not all(torch.equal(value, trained(host, tmp_path)[name]) for name, value in one.items())
