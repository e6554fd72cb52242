"""Contextual codes: only public vectors leave, directions are accounted for, randomised response keeps its bound."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from privtune.device.noise.context import NoiseContext
from privtune.device.noise.mechanisms.codes import Codes
from privtune.device.noise.params import CodesParams
from privtune.device.noise.randomness import NoiseSource, noise_source
from privtune.device.noise.tables.class_directions import PrivateMeans, contrasts, public_directions
from privtune.device.noise.tables.private_counts import LabelledRows
from privtune.shared.errors import InvalidInput, JobConflict
from privtune.shared.modeling.partition import Bottom
from tests.support.noise_contexts import HIDDEN, tiny_context

IDS_BT = torch.tensor([[2, *range(10, 28), 3]])


def make(context: NoiseContext, **params: object) -> Codes:
    return Codes(CodesParams.model_validate(params), context)


def release(mechanism: Codes, source: NoiseSource, ids_BT: torch.Tensor = IDS_BT) -> torch.Tensor:
    mask_BT = torch.ones_like(ids_BT)
    return mechanism.release(ids_BT, mechanism.context.bottom(ids_BT, mask_BT), mask_BT, generator=source).h_BTD


def test_only_public_vectors_leave(context: NoiseContext, seeded: NoiseSource) -> None:
    mechanism = make(context, codes=6, dims=4)
    h_BTD = release(mechanism, seeded)
    centres = mechanism._table["centre_KD"]
    assert (torch.cdist(h_BTD[0, 1:-1], centres).min(dim=1).values < 1e-5).all()
    assert len(torch.unique(h_BTD[0, 1:-1], dim=0)) > 1
    # The states of special tokens have read the record: they are replaced by public ones too.
    other = release(mechanism, seeded, IDS_BT + torch.tensor([0, *[40] * 18, 0]))
    assert torch.equal(h_BTD[0, [0, -1]], other[0, [0, -1]])


def test_the_nearest_code_is_chosen(context: NoiseContext) -> None:
    mechanism = make(context, codes=6, dims=4)
    table = mechanism._table
    h_BTD = context.bottom(IDS_BT, torch.ones_like(IDS_BT))
    x_TE = (h_BTD[0] - table["mean_D"]) @ table["basis_DE"]
    assert torch.equal(mechanism.code_of(h_BTD)[0], torch.cdist(x_TE, table["code_KE"]).argmin(dim=1))


def labelled_rows() -> tuple[list[np.ndarray], np.ndarray]:
    rng = np.random.default_rng(0)
    rows = [np.array([2, *(rng.integers(10, 20, 6) + 30 * (i % 2)), 3], dtype=np.int32) for i in range(200)]
    return rows, np.arange(200) % 2


def private_context(bottom: Bottom, folder: Path, **changes: object) -> NoiseContext:
    rows, labels = labelled_rows()
    records = LabelledRows(rows=rows, labels=labels, classes=2)
    facts = {"folder": folder, "fingerprint": "x", "source": noise_source(), "records": records, **changes}
    return tiny_context(bottom, private_means=PrivateMeans(**facts), cache=folder / "tables")  # type: ignore[arg-type]


def test_directions_tell_the_classes_apart_and_cost_what_is_stated(bottom: Bottom, tmp_path: Path) -> None:
    rows, labels = labelled_rows()
    public = public_directions(tiny_context(bottom, labelled_rows=[r.tolist() for r in rows], labels=labels.tolist()))
    context = private_context(bottom, tmp_path)
    private = context.private_means(context, 1000.0)  # type: ignore[misc]
    assert public.shape == private.shape == (HIDDEN, 1)
    assert abs(float((public.T @ private).squeeze())) > 0.9
    noise_alone = context.private_means(context, 1e-3)  # type: ignore[misc]
    assert abs(float((public.T @ noise_alone).squeeze())) < 0.9
    mechanism = make(context, codes=4, dims=2, task="private", epsilon_task=3.0)
    assert mechanism.statement().fitted_epsilon == 3.0
    assert mechanism.statement().guarantee == "none"


def test_codes_that_hide_the_task_are_chosen_by_nothing_correlated_with_it(bottom: Bottom, tmp_path: Path) -> None:
    context = private_context(bottom, tmp_path)
    rows, labels = labelled_rows()
    score_N1 = context.private_means(context, 100.0)  # type: ignore[misc]
    revealed = {}
    for use in ("show", "hide"):
        mechanism = make(context, codes=4, dims=3, task="private", epsilon_task=100.0, task_use=use)
        states_ND = mechanism._public_states() - mechanism._table["mean_D"]
        both = torch.cat([states_ND @ mechanism._table["basis_DE"], states_ND @ score_N1], dim=1).T.corrcoef()
        revealed[use] = float(both[-1, :-1].abs().max())
        assert mechanism.statement().fitted_epsilon == 100.0
        # The share of each code in a record reveals its class, or does not.
        ids_BT = torch.from_numpy(np.stack(rows)).long()
        codes_BT = mechanism.code_of(bottom(ids_BT, torch.ones_like(ids_BT)))[:, 1:-1]
        shares_BK = torch.nn.functional.one_hot(codes_BT, 4).double().mean(dim=1)
        apart_K = shares_BK[labels == 1].mean(0) - shares_BK[labels == 0].mean(0)
        revealed[f"{use}, shares"] = float(apart_K.abs().sum())
    assert revealed["show"] > 0.99
    assert revealed["hide"] < 1e-3
    assert revealed["hide, shares"] < 0.5 * revealed["show, shares"]


def test_private_means_are_drawn_once(bottom: Bottom, tmp_path: Path) -> None:
    first, again = private_context(bottom, tmp_path), private_context(bottom, tmp_path, records=None)
    assert torch.equal(first.private_means(first, 1.0), again.private_means(again, 1.0))  # type: ignore[misc]
    assert torch.equal(first.private_means.shares(first, 1.0), again.private_means.shares(again, 1.0))  # type: ignore[union-attr]
    with pytest.raises(JobConflict, match="class means"):
        again.private_means(again, 2.0)  # type: ignore[misc]


@pytest.mark.parametrize("classes", [2, 3])
def test_one_record_moves_the_sums_by_no_more_than_the_noise_is_made_for(bottom: Bottom, classes: int) -> None:
    sums = []
    for change in (None, 0, 1):
        rows, labels = labelled_rows()
        if change is not None:
            rows[0], labels[0] = np.array([2, *range(70, 90), 3], dtype=np.int32), change
        records = LabelledRows(rows=rows, labels=labels, classes=classes)
        sums.append(contrasts(tiny_context(bottom), records))
    for changed, moved, _, share_B in sums[1:]:
        assert moved == sums[0][1]
        by = float((changed - sums[0][0]).norm())
        assert 0 < by <= moved * (1 + 1e-5)
        # Each of the two records, the old and the new one, knows what it can have moved at most.
        assert by <= moved * (1 + 1e-5) * min(float(share_B[0]), float(sums[0][3][0]))


def test_randomised_response_keeps_its_bound(context: NoiseContext, seeded: NoiseSource) -> None:
    mechanism = make(context, codes=4, dims=2, epsilon_code=1.0)
    count = len(mechanism._table["centre_KD"])
    many_BT = torch.tensor([[2, *[15] * 16, 3]]).expand(400, -1)
    true_BT = mechanism.code_of(context.bottom(many_BT, torch.ones_like(many_BT)))[:, 1:-1]
    said_BT = torch.cdist(release(mechanism, seeded, many_BT)[:, 1:-1], mechanism._table["centre_KD"]).argmin(dim=-1)
    kept = float((said_BT == true_BT).double().mean())
    expected = np.e / (np.e + count - 1)
    assert kept == pytest.approx(expected, abs=0.03)
    statement = make(context, codes=4, dims=2, epsilon_code=1.0).statement()
    assert (statement.row, statement.guarantee, statement.position_epsilon) == ("randomised", "pure", 1.0)
    assert any("attention" in line.lower() for line in statement.lines())


def test_what_the_task_needs_is_asked_for(context: NoiseContext) -> None:
    with pytest.raises(InvalidInput, match="two classes"):
        make(context, task="public")
    with pytest.raises(InvalidInput, match="records have labels"):
        make(context, task="private")
