"""PrivTune on tiny real bottoms: what it adds, what it claims, and that `scale` importance has no bound."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats

from privtune.device.noise.context import NoiseContext
from privtune.device.noise.mechanisms.privtune import PrivTune
from privtune.device.noise.randomness import NoiseSource, noise_source
from privtune.device.noise.registry import build
from privtune.device.privacy.bounds import position_bound
from privtune.shared.job_spec import MechanismSpec
from privtune.shared.modeling.partition import Bottom, Partition
from tests.support.noise_contexts import HIDDEN, model_context, tiny_context
from tests.support.privacy_losses import certain_loss
from tests.support.tiny_models import tiny_classifier, tiny_lm

COUNT = 40_000


def make(context: NoiseContext, **params: float | str) -> PrivTune:
    mechanism = build(MechanismSpec(name="privtune", params={"steps": 15, **params}), context)
    assert isinstance(mechanism, PrivTune)
    return mechanism


@pytest.mark.parametrize("injection", ["embedding", "cut"])
def test_the_mean_of_the_noise_is_the_shift(context: NoiseContext, injection: str) -> None:
    mechanism = make(context, injection=injection, eta=50.0, clip_ratio=0, shift=0.5)
    ids_BT = torch.tensor([[2, 7, 9, 3]]).expand(2000, -1)
    h_BTD = torch.randn(1, 4, HIDDEN, generator=torch.Generator().manual_seed(1)).expand(2000, -1, -1)
    out = mechanism.release(ids_BT, h_BTD, torch.ones_like(ids_BT), generator=noise_source())
    moved_TD = (out.h_BTD - h_BTD).mean(dim=0)
    assert torch.allclose(moved_TD, 0.5 * mechanism.delta_VD[ids_BT[0]], atol=0.02)
    assert mechanism.delta_VD[[7, 9]].norm(dim=-1).min() > 0.1
    assert not mechanism.delta_VD[[0, 2, 3]].any()


@pytest.mark.parametrize("kind", ["bert", "mpnet", "gpt2", "llama", "gemma"])
@pytest.mark.parametrize("cut", [0, 2])
def test_encoders_and_decoders_at_both_injection_points(kind: str, cut: int) -> None:
    model = tiny_classifier(kind) if kind in ("bert", "mpnet") else tiny_lm(kind)
    bottom = Partition(model).bottom(cut)
    context = model_context(bottom, cut=cut, longest=None)
    for injection in ("embedding", "cut"):
        mechanism = make(context, injection=injection, neighbours=4)
        figures = mechanism.prepare()
        assert figures["loss_last"] < figures["loss_first"]
        assert figures["semantic_kept"] == 1.0
        assert torch.isfinite(mechanism.delta_VD).all()


def test_the_pre_trained_top_changes_the_solution_where_there_is_one(bottom: Bottom) -> None:
    def reads_first_half(h_ND: torch.Tensor) -> torch.Tensor:
        return 5.0 * h_ND[:, : HIDDEN // 2]

    weights = {"w_consistency": 3.0, "tau": 0.0, "rho": 0.0}
    informed = make(tiny_context(bottom, consistency=reads_first_half), **weights)
    blind = make(tiny_context(bottom), **weights)
    assert informed.fingerprint() != blind.fingerprint()
    half = HIDDEN // 2
    kept = [m.delta_VD[:, :half].norm() / m.delta_VD[:, half:].norm() for m in (informed, blind)]
    assert kept[0] < 0.7 * kept[1]


def test_tables_are_read_from_the_cache_and_by_hash(bottom: Bottom, tmp_path: Path) -> None:
    cached = tiny_context(bottom, cache=tmp_path)
    first = make(cached)
    figures = first.prepare()
    (file,) = tmp_path.glob("shift-*.safetensors")
    changed = file.stat().st_mtime_ns
    again = make(tiny_context(bottom, cache=tmp_path))
    assert torch.equal(again.delta_VD, first.delta_VD)
    assert again.prepare() == figures
    assert file.stat().st_mtime_ns == changed
    from privtune.device.noise.tables.table_cache import read_table

    by_hash = make(cached, table=read_table(file).sha256()[:20])
    assert torch.equal(by_hash.delta_VD, first.delta_VD)
    assert by_hash.fingerprint() != first.fingerprint()


def losses_under(mechanism: PrivTune, importance: tuple[float, float], source: NoiseSource) -> list[torch.Tensor]:
    """Releases (COUNT, D) of two tokens at opposite ends of the ball, with the importance of each."""
    clip = mechanism.clip or 0.0
    out = []
    for token, sign, weight in ((7, 1.0, importance[0]), (9, -1.0, importance[1])):
        ids_BT = torch.full((1, COUNT), token)
        h_BTD = torch.zeros(1, COUNT, HIDDEN)
        h_BTD[..., 3] = 10 * sign * clip
        weights = torch.full(ids_BT.shape, weight) if mechanism.uses_importance else None
        out.append(mechanism.release(ids_BT, h_BTD, torch.ones_like(ids_BT), weights, generator=source).h_BTD[0])
    return out


@pytest.mark.parametrize("importance", ["off", "gain"])
def test_the_real_sampler_never_exceeds_the_claimed_bound(
    context: NoiseContext, seeded: NoiseSource, importance: str
) -> None:
    mechanism = make(context, eta=1.5, clip=0.4, importance=importance, importance_from="public", shift=0.3)
    bound = mechanism.statement().position_epsilon
    assert bound == position_bound(1.5, 0.4)
    a, b = losses_under(mechanism, (1.0, 0.2), seeded)
    towards = (a.mean(0) - b.mean(0)).double()
    seen = certain_loss((a.double() @ towards).numpy(), (b.double() @ towards).numpy())
    assert 0.05 < seen <= bound


def test_scale_importance_has_no_bound(context: NoiseContext, seeded: NoiseSource) -> None:
    """The same two tokens, one important: the length of the release alone exceeds what equal noise could ever show."""
    mechanism = make(context, eta=1.5, clip=0.4, importance="scale", least=0.5)
    a, b = losses_under(mechanism, (1.0, 0.0), seeded)
    assert certain_loss(*(x.norm(dim=-1).double().numpy() for x in (a, b))) > position_bound(1.5, 0.4)
    # And it grows without bound: log-ratio of the two distributions of the length, ever farther out.
    lengths = [stats.gamma(HIDDEN, scale=scale / 1.5) for scale in (0.5, 1.0)]
    ratios = [lengths[1].logpdf(r) - lengths[0].logpdf(r) for r in (50.0, 500.0, 5000.0)]
    assert ratios[2] > 10 * ratios[1] - 100 > 10 * ratios[0]
    statement = mechanism.statement()
    assert (statement.row, statement.guarantee, statement.position_epsilon) == ("scale", "none", None)


def test_statements_name_their_row(context: NoiseContext) -> None:
    rows = {
        (("injection", "embedding"),): ("metric", "pure"),
        (("injection", "embedding"), ("clip_ratio", 0)): ("metric", "metric"),
        (): ("clipped", "pure"),
        (("clip_ratio", 0),): ("unclipped", "none"),
        (("importance", "scale"),): ("scale", "none"),
        (("importance", "scale"), ("importance_from", "public")): ("scale", "none"),
        (("importance", "gain"),): ("fitted", "none"),
        (("importance", "gain"), ("importance_from", "public")): ("gain", "pure"),
        (("importance", "gain"), ("importance_from", "public"), ("clip_ratio", 0)): ("unclipped", "none"),
    }
    for params, (row, guarantee) in rows.items():
        statement = make(context, **dict(params)).statement()
        assert (statement.row, statement.guarantee) == (row, guarantee)


def test_the_metric_statement_measures_shifted_vectors(context: NoiseContext) -> None:
    """d_g is over g(t) = e_t + shift * delta_t, so its figures move with the shift and follow the graph's edges."""
    mechanism = make(context, injection="embedding", eta=2.0, clip_ratio=0, shift=1.0)
    numbers = mechanism.statement().numbers
    g_UD = mechanism.tables.prototypes_UD + mechanism.delta_VD[context.usable_ids]
    a, b = mechanism.tables.graph(mechanism.params.neighbours).edges()
    losses = 2.0 * (g_UD[a] - g_UD[b]).norm(dim=-1).numpy()
    assert numbers["neighbour_loss_p50"] == pytest.approx(float(np.median(losses)), rel=1e-5)
    assert numbers["neighbour_loss_worst"] == pytest.approx(float(losses.max()), rel=1e-5)
    assert numbers["neighbour_mu"] == pytest.approx(float(np.median(losses)) / math.sqrt(HIDDEN), rel=1e-5)
    still = make(context, injection="embedding", eta=2.0, clip_ratio=0, shift=0.0).statement().numbers
    assert still["neighbour_loss_p50"] != pytest.approx(numbers["neighbour_loss_p50"], rel=0.01)


def test_importance_is_needed_only_where_it_is_used(context: NoiseContext) -> None:
    ids_BT = torch.tensor([[7, 8]])
    h_BTD = torch.zeros(1, 2, HIDDEN)
    make(context).release(ids_BT, h_BTD, torch.ones_like(ids_BT), generator=noise_source())
    with pytest.raises(Exception, match="needs the importance"):
        make(context, importance="gain").release(ids_BT, h_BTD, torch.ones_like(ids_BT), generator=noise_source())
