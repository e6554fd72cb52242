"""A beam search with a language model: exact where it keeps every text, and better than single words under noise."""

import dataclasses
import itertools
import math

import numpy as np
import pytest
import torch

from privtune.device.audit.attacker_text import PublicText
from privtune.device.audit.attacks.attack import Lab
from privtune.device.audit.attacks.beam import Beam, BeamSettings
from privtune.device.audit.attacks.codebook import Codebook
from privtune.device.audit.attacks.evidence import Evidence
from privtune.device.audit.metrics import InversionScore
from privtune.device.audit.victim import Victim
from privtune.device.noise.registry import build
from privtune.shared.errors import InvalidInput
from privtune.shared.job_spec import MechanismSpec
from privtune.shared.modeling.partition import Partition
from tests.support.noise_contexts import model_context
from tests.support.texts import token_rows
from tests.support.tiny_models import tiny_lm

WIDE = BeamSettings(beams=8, candidates=16, shown=40)


@pytest.fixture(scope="module", params=["llama", "gpt2", "gemma3_text"])
def model(request):
    return Partition(tiny_lm(request.param))


@pytest.fixture(scope="module")
def make(model):
    def lab(name="none", params=None, cut=0):
        bottom = model.bottom(cut)
        context = model_context(bottom, cut=cut)
        mechanism = build(MechanismSpec(name=name, params=params or {}), context)
        public = PublicText(token_rows(600, seed=0), context.special_ids, candidates=context.usable_ids)
        return Lab(public, Victim(bottom, mechanism, context.special_ids))

    return lab


def top1(attack, lab, records):
    observed = lab.victim.observe(records)
    attack.fit(lab)
    score = InversionScore(lab.public)
    score.add(attack.attack(observed.seen), observed)
    return score.figures()["top1"].value


@pytest.mark.parametrize("knowledge", ["oblivious", "adaptive"])
def test_on_clean_vectors(make, model, attacked, knowledge):
    assert top1(Beam(knowledge, model.model, WIDE), make(), attacked) >= 0.95


def test_the_best_text_is_that_of_all_texts(make, model, monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)  # as precise as what it is compared with
    lab = make("dchi", {"noise_ratio": 3.0})
    records = [np.array([2, *words, 3], dtype=np.int32) for words in ([5, 9, 30], [40], [7, 8])]
    attack = Beam("adaptive", model.model, BeamSettings(beams=27, candidates=3, shown=30))
    attack.fit(lab)
    seen = lab.victim.observe(records).seen
    told = attack.attack(seen)[:, 0].split([3, 1, 2])
    evidence = Evidence("adaptive")
    evidence.fit(lab)
    numbers_NK, density_NK = evidence.candidates(seen, 3)
    ids_NK, done = lab.public.ids_V[numbers_NK], 0
    for record, found in zip(records, told, strict=True):
        mine = slice(done, done + len(record) - 2)
        done = mine.stop

        def of(choice, mine=mine):
            ids = [int(row[k]) for row, k in zip(ids_NK[mine], choice, strict=True)]
            text = torch.tensor([*attack._shown.tolist(), 2, *ids])
            with torch.no_grad():
                expected_TV = model.model(input_ids=text[None]).logits[0].float().log_softmax(-1)
            total = float(sum(row[k] for row, k in zip(density_NK[mine], choice, strict=True)))
            for place, token in enumerate(ids, start=len(text) - len(ids)):
                reader = float(expected_TV[place - 1, token].exp())
                bigram = float(lab.bigrams.log_prob(text[place - 1], torch.tensor(token)).exp())
                total += math.log((reader + bigram) / 2)
            return total, ids

        _, best = max(of(choice) for choice in itertools.product(range(3), repeat=mine.stop - mine.start))
        assert found.tolist() == best


def test_what_follows_what_helps_under_noise(make, model, attacked):
    lab = make("dchi", {"noise_ratio": 1.5})
    alone = top1(Codebook("adaptive"), lab, attacked * 3)
    assert top1(Beam("adaptive", model.model, WIDE), lab, attacked * 3) > alone + 0.02


def test_progress_is_told_while_it_reads(make, model, attacked):
    told = []
    lab, attack = make(), Beam("adaptive", model.model, WIDE)
    attack.fit(lab)
    attack.attack(lab.victim.observe(attacked).seen, say=lambda what, share: told.append((what, share)))
    shares = [share for _, share in told]
    assert len(shares) > 1
    assert shares == sorted(shares)
    assert told[-1] == ("EIA-1 with a language model (adaptive)", 1.0)


def test_what_is_saved_attacks_alike(make, model, attacked, tmp_path):
    lab, attack = make("dchi", {"noise_ratio": 1.0}), Beam("adaptive", model.model, WIDE)
    attack.fit(lab)
    attack.save(tmp_path)
    again = Beam("adaptive", model.model, WIDE)
    again.load(tmp_path, lab)
    seen = lab.victim.observe(attacked).seen
    assert torch.equal(attack.attack(seen), again.attack(seen))


def test_the_reader_sees_whole_public_records_only(make, model):
    lab, attack = make(), Beam("adaptive", model.model, dataclasses.replace(WIDE, shown=60))
    attack.fit(lab)
    shown = attack._shown.tolist()
    assert 40 < len(shown) <= 60
    known = [record.tolist() for record in lab.public.records]
    while shown:
        record = shown[: shown.index(3) + 1]
        assert record in known
        shown = shown[len(record) :]
    attack = Beam("adaptive", model.model, dataclasses.replace(WIDE, shown=2))
    attack.fit(lab)
    assert attack._shown.tolist() == [2]


def test_not_for_mechanisms_that_shorten(make, model):
    with pytest.raises(InvalidInput, match="a released row for each token"):
        Beam("adaptive", model.model).fit(make("pool", {"size": 2, "clusters": False}))
