"""Properties of every mechanism in the registry."""

import copy

import numpy as np
import pytest
import torch

from privtune.device.noise.randomness import noise_source
from privtune.device.noise.registry import REGISTRY, build
from privtune.shared.job_spec import MechanismSpec
from privtune.shared.modeling.partition import Partition
from tests.support.noise_contexts import model_context
from tests.support.tiny_models import tiny_batch, tiny_classifier


@pytest.fixture(scope="module")
def context():
    return model_context(Partition(tiny_classifier("bert")).bottom(1))


@pytest.fixture(scope="module", params=list(REGISTRY))
def case(request, context):
    mechanism = build(MechanismSpec(name=request.param), context)
    ids_BT, mask_BT = tiny_batch((7, 3, 5))
    run = context.bottom.embed if mechanism.injection == "embedding" else context.bottom
    importance_BT = torch.rand(ids_BT.shape) if mechanism.uses_importance else None
    return mechanism, ids_BT, run(ids_BT, mask_BT), mask_BT, importance_BT


def release(case):
    mechanism, ids_BT, h_BTD, mask_BT, importance_BT = case
    return mechanism.release(ids_BT, h_BTD, mask_BT, importance_BT, generator=noise_source())


def test_shapes_padding_and_finiteness(case):
    mechanism, ids_BT, h_BTD, mask_BT, _ = case
    out = release(case)
    assert out.h_BTD.shape[0] == len(ids_BT)
    assert out.h_BTD.shape[2] == h_BTD.shape[2]
    assert out.mask_BT.shape == out.h_BTD.shape[:2]
    assert torch.isfinite(out.h_BTD).all()
    assert not out.h_BTD[~out.mask_BT].any()
    assert (out.mask_BT.sum(1) >= 1).all()
    if not mechanism.shortens:
        torch.testing.assert_close(out.mask_BT, mask_BT.bool())


def test_what_is_sent_as_ids_is_the_rows_of_a_table(case):
    mechanism, ids_BT, _, _, _ = case
    assert (mechanism.table is not None) == (mechanism.name in ("shared", "codes"))
    out = release(case)
    if mechanism.table is None:
        assert out.sent_BTW is out.h_BTD
        return
    for h_TD, row_T1, mask_T in zip(out.h_BTD, out.sent_BTW, out.mask_BT, strict=True):
        assert np.array_equal(mechanism.table.of_record(row_T1[mask_T].numpy()), h_TD[mask_T].numpy())
    assert out.sent_BTW.shape == (*ids_BT.shape, 1)


@pytest.mark.parametrize(
    "params",
    [{"noise_ratio": 1.0}, {"target": "mixture"}, {"injection": "embedding"}],
)
def test_what_is_no_row_of_a_small_table_is_sent_as_vectors(context, params):
    """Noise, drawn words read in context, and blocks after the targets give more vectors than any table holds."""
    mechanism = build(MechanismSpec(name="shared", params=params), context)
    ids_BT, mask_BT = tiny_batch((7, 3, 5))
    out = mechanism.release(ids_BT, torch.zeros(*ids_BT.shape, 32), mask_BT, generator=noise_source())
    assert mechanism.table is None
    assert out.ids_BT is None


def test_only_none_lets_clean_vectors_out(case):
    mechanism, _, h_BTD, _, _ = case
    out = release(case)
    if mechanism.shortens:
        assert out.h_BTD.shape[1] < h_BTD.shape[1]  # sums of rows: there is nothing to compare row by row
        return
    words = out.mask_BT.clone()
    words[:, 0] = False  # a special token may be public
    # Drawn words may be those of a short record, once in a few hundred runs; never all of the longest.
    same_BT = torch.isclose(out.h_BTD, h_BTD, atol=1e-6).all(-1) & words
    assert same_BT[0].any() == (mechanism.name == "none")


def test_a_statement_never_claims_more_than_its_row(case):
    statement = case[0].statement()
    assert statement.text
    if statement.row in ("none", "scale", "cluster"):
        assert statement.guarantee == "none"
        assert statement.position_epsilon is None


def test_fingerprints_are_stable_and_differ_between_mechanisms(case, context):
    mechanism = case[0]
    again = build(MechanismSpec(name=mechanism.name), context)
    assert again.fingerprint() == mechanism.fingerprint()
    others = {build(MechanismSpec(name=name), context).fingerprint() for name in REGISTRY}
    assert len(others) == len(REGISTRY)


def test_it_reads_its_vectors_or_declares_that_ids_are_enough(case, monkeypatch):
    """The device does not run the bottom for a mechanism that declares so."""
    monkeypatch.setenv("PRIVTUNE_UNSAFE_TEST_SEED", "1")
    mechanism, ids_BT, h_BTD, mask_BT, importance_BT = copy.copy(case[0]), *case[1:]
    drawn = [
        mechanism.release(ids_BT, vectors, mask_BT, importance_BT, generator=noise_source(7)).h_BTD
        for vectors in (h_BTD, torch.zeros_like(h_BTD))
    ]
    assert torch.equal(*drawn) == (not mechanism.reads_vectors)
