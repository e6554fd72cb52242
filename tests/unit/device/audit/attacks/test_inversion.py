"""Each inversion attack finds nearly everything on clean vectors, less under noise, and the adaptive one most."""

import pytest
import torch

from privtune.device.audit.attacks.codebook import METRICS, Codebook, CodebookSettings
from privtune.device.audit.attacks.learned import LearnedSettings, SequenceInversion, Tokenwise
from privtune.device.audit.metrics import InversionScore
from privtune.device.noise.mechanisms.none import NoMechanism
from privtune.shared.errors import ArtifactCorrupt, InvalidInput

QUICK = LearnedSettings(epochs=4, hidden=64)


def top1(attack, lab, attacked, fit=True, observed=None):
    if fit:
        attack.fit(lab)
    observed = observed or lab.victim.observe(attacked)
    score = InversionScore(lab.public)
    score.add(attack.attack(observed.seen), observed)
    return score.figures()["top1"]


@pytest.fixture(scope="module")
def clean_lab(make_lab):
    return make_lab("none", cut=0)


@pytest.fixture(scope="module")
def noisy_lab(make_lab):
    return make_lab("dchi", {"noise_ratio": 1.5}, records=600)


@pytest.mark.parametrize("knowledge", ["oblivious", "adaptive"])
@pytest.mark.parametrize("metric", [metric for metric in METRICS if metric != "content"])
def test_the_codebook_on_clean_vectors(clean_lab, attacked, metric, knowledge):
    assert top1(Codebook(knowledge, CodebookSettings(metric=metric)), clean_lab, attacked).value >= 0.95


@pytest.mark.parametrize("knowledge", ["oblivious", "adaptive"])
@pytest.mark.parametrize("kind", [Tokenwise, SequenceInversion])
def test_the_learned_inverters_on_clean_vectors(clean_lab, attacked, kind, knowledge):
    assert top1(kind(knowledge, QUICK), clean_lab, attacked).value >= 0.95


def test_under_noise_knowledge_of_the_law_and_the_language_help(noisy_lab, attacked):
    figures = {
        metric: top1(Codebook("adaptive", CodebookSettings(metric=metric)), noisy_lab, attacked * 3)
        for metric in ("euclidean", "bayes", "language")
    }
    assert figures["euclidean"].floor < figures["euclidean"].value < 0.9
    assert figures["bayes"].value > figures["euclidean"].value
    assert figures["language"].value > figures["bayes"].value + 0.02


def test_training_goes_beyond_the_codebook_that_it_starts_from(noisy_lab, attacked):
    observed = noisy_lab.victim.observe(attacked * 3)
    start = top1(Codebook("adaptive"), noisy_lab, None, observed=observed)
    settings = LearnedSettings(epochs=30, learning_rate=5e-3, encoder_rate=1e-3)
    assert top1(SequenceInversion("adaptive", settings), noisy_lab, None, observed=observed).value > start.value + 0.02


@pytest.mark.parametrize(("name", "params"), [("dchi", {"noise_ratio": 2.0}), ("gaussian", {"epsilon": 40.0})])
def test_who_knows_the_noise_loses_nothing_by_it_with_little_text(make_lab, attacked, name, params):
    lab = make_lab(name, params, records=60)
    observed = lab.victim.observe(attacked * 5)
    for metric in ("euclidean", "cosine", "mahalanobis", "bayes"):
        oblivious, adaptive = (
            top1(Codebook(k, CodebookSettings(metric=metric)), lab, None, observed=observed).value
            for k in ("oblivious", "adaptive")
        )
        assert adaptive >= oblivious - 0.02, metric


def test_an_attacker_after_content_words_names_no_frequent_one(make_lab, attacked, monkeypatch):
    monkeypatch.setattr("privtune.device.audit.attacker_text.CONTENT_AFTER", 5)
    lab = make_lab("dchi", {"noise_ratio": 3.0})
    observed = lab.victim.observe(attacked * 3)
    found = {}
    for metric in ("bayes", "content"):
        attack = Codebook("adaptive", CodebookSettings(metric=metric))
        attack.fit(lab)
        guesses_NK = attack.attack(observed.seen)
        score = InversionScore(lab.public)
        score.add(guesses_NK, observed)
        found[metric] = score.figures()["content_top1"].value
    assert found["content"] > found["bayes"] + 0.02
    assert not torch.isin(guesses_NK[:, 0], lab.public.frequent_ids).any()


def test_a_public_mean_shift_fools_only_who_does_not_know_it(make_lab, attacked):
    shift_VD = torch.randn(64, 32, generator=torch.Generator().manual_seed(0)) * 3

    class Shifted(NoMechanism):
        def _release(self, ids_BT, h_BTD, mask_BT, importance_BT, generator):
            return super()._release(ids_BT, h_BTD + shift_VD[ids_BT], mask_BT, importance_BT, generator)

    lab = make_lab(kind=Shifted, cut=0)
    oblivious, adaptive = (top1(Codebook(k), lab, attacked).value for k in ("oblivious", "adaptive"))
    assert adaptive >= 0.95
    assert oblivious < 0.3


def test_sums_of_tokens_are_taken_apart(make_lab, attacked):
    lab = make_lab("pool", {"size": 2, "clusters": False}, cut=0, records=400)
    adaptive = top1(Codebook("adaptive"), lab, attacked)
    oblivious = top1(Codebook("oblivious"), lab, attacked)
    assert adaptive.value > 0.8
    assert adaptive.value > oblivious.value > oblivious.floor
    assert top1(Tokenwise("adaptive", QUICK), lab, attacked).value > adaptive.floor + 0.3


def test_ids_drawn_from_a_cluster_are_decoded_by_frequency(make_lab, attacked):
    class Swapped(NoMechanism):
        def _release(self, ids_BT, h_BTD, mask_BT, importance_BT, generator):
            pair_BT = ids_BT ^ generator.integers(2, *ids_BT.shape)  # one of the two ids that differ in the last bit
            words_BTD = self.context.bottom.embed(torch.where(ids_BT > 3, pair_BT, ids_BT), mask_BT)
            return super()._release(ids_BT, words_BTD, mask_BT, importance_BT, generator)

    lab = make_lab(kind=Swapped, cut=0, records=600)
    nearest = top1(Codebook("adaptive", CodebookSettings(metric="euclidean")), lab, attacked * 3)
    channel = top1(Codebook("adaptive", CodebookSettings(metric="channel")), lab, attacked * 3)
    observed = lab.victim.observe(attacked * 3)
    counts = lab.public.counts_V[lab.public.index(observed.ids_N)]
    other = lab.public.index((observed.ids_N ^ 1).clamp(max=63))
    best = float((counts >= lab.public.counts_V[other]).double().mean())
    assert channel.value >= nearest.value
    assert channel.value == pytest.approx(best, abs=0.06)


@pytest.mark.parametrize("kind", [Codebook, Tokenwise, SequenceInversion])
def test_what_is_saved_attacks_alike(clean_lab, attacked, tmp_path, kind):
    attack = kind("adaptive") if kind is Codebook else kind("adaptive", LearnedSettings(epochs=1, hidden=16))
    with pytest.raises(InvalidInput, match="not been built"):
        attack.attack(None)
    attack.fit(clean_lab)
    attack.save(tmp_path)
    again = type(attack)("adaptive", attack.settings)
    again.load(tmp_path, clean_lab)
    seen = clean_lab.victim.observe(attacked).seen
    assert torch.equal(attack.attack(seen), again.attack(seen))
    assert {file.name for file in tmp_path.iterdir()} == {"attack.json", "attack.safetensors"}
    with pytest.raises(ArtifactCorrupt):
        type(attack)("oblivious", attack.settings).load(tmp_path, clean_lab)


def test_a_seed_repeats_a_trained_attack(noisy_lab, attacked):
    seen = noisy_lab.victim.observe(attacked).seen
    settings = LearnedSettings(epochs=1, hidden=16)
    results = []
    for seed in (0, 0, 1):
        attack = Tokenwise("oblivious", settings)
        attack.fit(noisy_lab, seed=seed)
        results.append(attack.candidates(seen, 3)[1])
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])
