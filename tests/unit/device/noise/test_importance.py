"""Token importance: what it is fitted on, and that the perturber hands it to the mechanism."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from privtune.device.data.encode import EncodedDataset
from privtune.device.noise.importance import TokenImportance
from privtune.device.noise.mechanisms.privtune import PrivTune
from privtune.device.noise.params import PrivTuneParams
from privtune.device.noise.public_texts import PublicTexts, declare
from privtune.device.noise.randomness import noise_source
from privtune.device.release.own_records import OwnRecords, importance_for
from privtune.device.release.perturber import Perturber
from privtune.device.release.release_store import ReleaseStore
from privtune.shared.errors import DataInvalid, InvalidInput, JobConflict
from privtune.shared.modeling.partition import Bottom
from tests.support.builders import dataset
from tests.support.noise_contexts import VOCABULARY, tiny_context

POLAR, NEUTRAL, EVERYWHERE = 10, 30, 40


def rows_and_labels(count: int = 60) -> tuple[list[list[int]], list[int]]:
    """POLAR only in class 1, NEUTRAL in half of each class, EVERYWHERE in all."""
    rows, labels = [], []
    for i in range(count):
        label = i % 2
        rows.append([2, EVERYWHERE, *([POLAR] if label else []), *([NEUTRAL] if i % 4 < 2 else []), 50 + i % 7, 3])
        labels.append(label)
    return rows, labels


def importance_of(fitted: TokenImportance, row: list[int]) -> list[float]:
    ids = torch.tensor([row])
    return fitted.of(ids, torch.ones_like(ids))[0].tolist()


def test_words_of_one_class_matter_and_those_of_both_do_not() -> None:
    rows, labels = rows_and_labels()
    polar, neutral, everywhere = importance_of(
        TokenImportance.fit(rows, VOCABULARY, labels), [POLAR, NEUTRAL, EVERYWHERE]
    )
    assert polar > 3 * neutral
    assert everywhere == pytest.approx(0.0, abs=0.01)


def test_without_labels_rare_words_matter() -> None:
    rows, _ = rows_and_labels()
    rare, frequent = importance_of(TokenImportance.fit(rows, VOCABULARY), [50, EVERYWHERE])
    assert rare > frequent + 0.2


def test_repeats_count_by_log_and_padding_is_zero() -> None:
    rows, labels = rows_and_labels()
    fitted = TokenImportance.fit(rows, VOCABULARY, labels)
    fitted.scale *= 4  # away from the ceiling of 1
    ids_BT = torch.tensor([[POLAR, 0, 0], [POLAR, POLAR, POLAR]])
    mask_BT = torch.tensor([[1, 0, 0], [1, 1, 1]])
    out = fitted.of(ids_BT, mask_BT)
    assert out[1, 0] / out[0, 0] == pytest.approx(1 + np.log(3), rel=1e-4)
    assert out[0, 1:].tolist() == [0, 0]
    with pytest.raises(InvalidInput, match="one label for each"):
        TokenImportance.fit(rows, VOCABULARY, labels[:-1])


def own_records(tmp_path: Path, data: EncodedDataset | None) -> OwnRecords:
    return OwnRecords(home=tmp_path, fingerprint="f", job=tmp_path / "jobs" / "j", data=data)


def encoded() -> EncodedDataset:
    rows, labels = rows_and_labels()
    return dataset(rows, labels, ("a", "b"))


def test_private_importance_is_fitted_once_and_kept(bottom: Bottom, tmp_path: Path) -> None:
    context = tiny_context(bottom)
    with pytest.raises(JobConflict, match="not on this device"):
        importance_for("private", context, own_records(tmp_path, None))
    fitted = importance_for("private", context, own_records(tmp_path, encoded()))
    kept = importance_for("private", context, own_records(tmp_path, None))
    assert kept.fingerprint() == fitted.fingerprint()
    rows, labels = rows_and_labels()
    assert torch.equal(kept.weight_V, TokenImportance.fit(rows, VOCABULARY, labels).weight_V)


def test_public_importance_uses_labelled_texts_then_plain_ones(bottom: Bottom) -> None:
    rows, labels = rows_and_labels()
    with pytest.raises(InvalidInput, match="privtune tables public"):
        importance_for("public", tiny_context(bottom), None)
    plain = importance_for("public", tiny_context(bottom, public_rows=rows), None)
    labelled = importance_for("public", tiny_context(bottom, labelled_rows=rows, labels=labels), None)
    assert torch.equal(plain.weight_V, TokenImportance.fit(rows, VOCABULARY).weight_V)
    assert torch.equal(labelled.weight_V, TokenImportance.fit(rows, VOCABULARY, labels).weight_V)


@pytest.mark.parametrize("injection", ["embedding", "cut"])
def test_the_perturber_feeds_importance(bottom: Bottom, tmp_path: Path, injection: str) -> None:
    """With `scale`, the polar word's noise is shorter than that of the word that is everywhere."""
    context = tiny_context(bottom)
    data = encoded()
    params = {"importance": "scale", "least": 0.1, "noise_ratio": 100.0, "steps": 2, "injection": injection}
    seen: list[torch.Tensor] = []

    class Watched(PrivTune):
        def _release(self, *arguments):  # type: ignore[no-untyped-def]
            out = super()._release(*arguments)
            seen.append(out.h_BTD.norm(dim=-1))
            return out

    mechanism = Watched(PrivTuneParams.model_validate(params), context)
    fitted = importance_for("private", context, own_records(tmp_path, data))
    store = ReleaseStore(tmp_path / "r.sqlite", "x", 1 << 20)
    Perturber(bottom, mechanism, noise_source(), store, "fp32", fitted).release(data, np.arange(60))
    lengths = seen[0]
    polar = lengths[1::2, 2].mean()
    everywhere = lengths[:, 1].mean()
    assert polar < 0.4 * everywhere
    assert everywhere > 50 * context.typical_norm(injection)  # type: ignore[arg-type]
    store.close()
    other = Perturber(bottom, mechanism, noise_source(), ReleaseStore(tmp_path / "s.sqlite", "x", 1 << 20), "fp32")
    with pytest.raises(InvalidInput, match="needs the importance"):
        other.release(data, np.arange(2))


def test_a_job_keeps_the_noise_distribution_it_began_with(tmp_path: Path) -> None:
    own = own_records(tmp_path, None)
    own.pin("noise one")
    own.pin("noise one")
    with pytest.raises(JobConflict, match="released a second time"):
        own.pin("noise two")


def test_declared_public_texts_reach_the_context(tmp_path: Path) -> None:
    assert PublicTexts.load(tmp_path) == PublicTexts()
    texts, labelled = tmp_path / "a.txt", tmp_path / "b.tsv"
    texts.write_text("one text\n\nanother\n")
    labelled.write_text("pos\tgood\nneg\tbad film\n")
    declare(tmp_path, texts=texts, labelled=labelled)
    public = PublicTexts.load(tmp_path)
    assert public.texts == ("one text", "another")
    assert public.labelled == (("good", 1), ("bad film", 0))
    labelled.write_text("pos\tgood\nneg bad\n")
    with pytest.raises(DataInvalid, match="line 2"):
        declare(tmp_path, labelled=labelled)
    labelled.write_text("pos\tgood\npos\tfine\n")
    with pytest.raises(DataInvalid, match="two classes"):
        declare(tmp_path, labelled=labelled)
    texts.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataInvalid, match="UTF-8"):
        declare(tmp_path, texts=texts)
    assert PublicTexts.load(tmp_path) == public
