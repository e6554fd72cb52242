"""`privtune tune-noise` on a tiny model: from the command line to choice, page and picture; kept work; refusals."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import stat
import subprocess
import sys
import time
from dataclasses import replace
from xml.etree import ElementTree

import numpy as np
import pytest
from typer.testing import CliRunner

from privtune.device.audit.engine import Engine
from privtune.device.audit.sizes import QUICK
from privtune.device.audit.tuning.choice import Wish
from privtune.device.audit.tuning.request import TuneRequest
from privtune.device.audit.tuning.trials import SETTINGS
from privtune.device.audit.tuning.tune import tune
from privtune.device.audit.utility import UtilityTraining
from privtune.device.cli import app, main
from privtune.device.data.source import DataSource
from privtune.device.protections.measured import NO_GAIN
from privtune.shared.errors import CutOutOfRange, DataInvalid, InvalidInput, StorageFull
from tests.support.texts import topic_row, write_rows
from tests.support.tiny_models import save_model

# Two attacks and few iterations: what is tested here is what is made of their figures.
SIZE = replace(QUICK, metrics=("euclidean", "bayes"), optimise=replace(QUICK.optimise, iterations=5))

NOISE = ("--protect", "none", "--mechanism", "dchi")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """model/, train.csv, dev.csv: one of 25 words of each record reveals its class."""
    made = tmp_path_factory.mktemp("tune")
    save_model(made / "model", "bert", "classification")
    rng = np.random.default_rng(0)
    for name, count in (("train", 150), ("dev", 70)):
        write_rows(made / f"{name}.csv", [topic_row(rng) for _ in range(count)])
    return made


def arguments(folder, out, *more):
    named = ("--model", folder / "model", "--data", folder / "train.csv", "--out", out, "--home", out / "home")
    return ["tune-noise", *map(str, named), *NOISE, *more]


def run(folder, out, *more):
    result = CliRunner().invoke(app, arguments(folder, out, *more), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output, json.loads((out / "tune.json").read_text())


def request(folder, **changes):
    train = DataSource(path=str(folder / "train.csv"))
    plain = TuneRequest(
        model=str(folder / "model"),
        train=train,
        dev=replace(train, path=str(folder / "dev.csv")),
        mechanism="dchi",
        param="noise_ratio",
        values=(0.05, 200.0),
        wish=Wish(words="all", max_recovery=0.5, max_drop=None),
        size=SIZE,
        training=UtilityTraining(epochs=1),
    )
    return replace(plain, **changes)


class Watcher:
    """What was begun, and which of it had been measured before; stops at a setting like a person with Ctrl-C."""

    def __init__(self, stop_at=None):
        self.kept, self.left, self._stop_at, self._number = {}, [], stop_at, 0

    def begin(self, name, number, total, seconds_left):
        self._number, self.total = number, total
        self.left.append(seconds_left)

    def say(self, what, share):
        if self._number == self._stop_at:
            raise KeyboardInterrupt

    def end(self, name, facts, *, kept):
        self.kept[name] = kept


def test_from_the_command_line_to_choice_page_and_picture(folder, tmp_path):
    wishes = ("--dev", str(folder / "dev.csv"), "--max-recovery", "0.5", "--of", "all", "--epochs", "1")
    printed, facts = run(folder, tmp_path, *wishes, "--vary", "noise_ratio=0.05,200")
    assert facts["split"] == "dev"
    assert facts["records"] == {"train": 150, "dev": 70, "dev_left_out": 0, "attacked": 70}
    assert facts["no_noise"]["recovered"]["all"]["value"] >= 0.95
    weak, strong = facts["settings"]
    assert weak["recovered"]["all"]["value"] > 0.9 > 0.3 > strong["recovered"]["all"]["value"]
    assert {row["kind"] for row in strong["attacks"]} == {"inversion"}
    worst = max(row["figures"]["top1"]["value"] for row in strong["attacks"])
    assert strong["recovered"]["all"]["value"] == worst
    lost = facts["no_noise"]["accuracy"]["value"] - strong["accuracy"]["value"]
    assert strong["drop"]["value"] == pytest.approx(lost)
    assert strong["drop"]["low"] <= lost <= strong["drop"]["high"]
    assert facts["choice"]["met"]
    assert facts["choice"]["value"] == 200
    assert facts["cloud_gain"] == NO_GAIN
    assert NO_GAIN in printed

    command = shlex.split(facts["command"])
    assert facts["command"] in printed
    assert command[:2] == ["privtune", "finetune"]
    given = dict(zip(command[2::2], command[3::2], strict=True))
    assert given["--mechanism"] == "dchi"
    assert given["--param"] == "noise_ratio=200"
    assert given["--validation"] == str(folder / "dev.csv")
    assert given["--epochs"] == "1"

    page, drawing = (tmp_path / "tune.html").read_text(), (tmp_path / "tune.svg").read_text()
    ElementTree.fromstring(drawing)
    for text in (printed, page, drawing):
        assert "dev split" in text
    assert "200 (chosen)" in drawing
    assert facts["command"] in page
    for outside in ("<script", "<link", "src=", "@import", "url("):
        assert outside not in page
    assert not re.search(r"\bw\d", (tmp_path / "tune.json").read_text())  # no text of the owner's
    for file in [*tmp_path.glob("tune.*"), tmp_path / SETTINGS]:
        assert stat.S_IMODE(file.stat().st_mode) == 0o600

    # Another goal measures nothing again; where no setting meets it, no command is given.
    before = (tmp_path / SETTINGS).stat().st_mtime_ns
    wishes = ("--dev", str(folder / "dev.csv"), "--max-recovery", "0.001", "--of", "all", "--epochs", "1")
    printed, facts = run(folder, tmp_path, *wishes, "--vary", "noise_ratio=0.05,200.0")
    assert printed.count("measured before") == 3
    assert (tmp_path / SETTINGS).stat().st_mtime_ns == before
    assert not facts["choice"]["met"]
    assert facts["command"] is None
    assert "privtune finetune" not in printed
    assert "No setting that was tried hides enough" in printed


def test_what_is_measured_before_ctrl_c_is_kept_and_other_questions_find_nothing_of_it(folder, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        tune(request(folder), tmp_path / "home", tmp_path, Watcher(stop_at=3))
    assert len((tmp_path / SETTINGS).read_text().splitlines()) == 2
    watcher = Watcher()
    found = tune(request(folder, refine=1), tmp_path / "home", tmp_path, watcher)
    assert watcher.kept == {
        "no noise": True,
        "noise_ratio=0.05": True,
        "noise_ratio=200": False,
        "noise_ratio=3.16": False,
    }
    assert watcher.total == 4
    assert watcher.left[0] is None
    assert watcher.left[-1] > 0
    assert [setting.value for setting in found.settings] == [0.05, 3.16, 200.0]

    damaged, *others = (tmp_path / SETTINGS).read_text().splitlines()
    assert damaged.startswith('{"key":"dchi')
    (tmp_path / SETTINGS).write_text("\n".join([damaged[:100], *others]) + "\n")
    watcher = Watcher()
    tune(request(folder, values=(0.05, 3.16, 200)), tmp_path / "home", tmp_path, watcher)
    assert sorted(watcher.kept.values()) == [False, True, True, True]

    for changes in ({"cut": 0}, {"seed": 1}, {"training": UtilityTraining(epochs=2)}, {"fixed": {"clip_ratio": 2}}):
        with pytest.raises(KeyboardInterrupt):  # it has to measure again
            tune(request(folder, **changes), tmp_path / "home", tmp_path, Watcher(stop_at=2))


def test_with_a_tail_training_is_the_device_s_and_the_loss_is_counted_from_the_whole_model(folder, tmp_path):
    wishes = ("--dev", str(folder / "dev.csv"), "--max-drop", "100", "--epochs", "1", "--mechanism", "codes")
    tried = (*wishes, "--param", "dims=1", "--vary", "codes=2")
    _, plain = run(folder, tmp_path, *tried)
    printed, facts = run(folder, tmp_path, *tried, "--tail", "1", "--skip", "tuned")
    assert printed.count("measured before") == 1  # without noise the cloud trains, tail or not
    assert facts["no_noise"] == plain["no_noise"]
    assert (plain["tail"], plain["skip"]) == (0, None)
    assert (facts["tail"], facts["skip"]) == (1, "tuned")
    given = shlex.split(facts["command"])
    assert given[given.index("--tail") :][:4] == ["--tail", "1", "--skip", "tuned"]
    assert "tail 1 (skip tuned)" in (tmp_path / "tune.html").read_text()
    with pytest.raises(CutOutOfRange, match="leave none"):
        tune(request(folder, tail=9), tmp_path / "home", tmp_path, Watcher())
    pooled = request(folder, tail=1, mechanism="pool", fixed={"clusters": False}, param="size", values=(2,))
    with pytest.raises(InvalidInput, match="shortens records"):
        tune(pooled, tmp_path / "home", tmp_path, Watcher())


def test_with_surrogates_noise_is_tuned_on_the_text_that_they_make(folder, tmp_path, monkeypatch):
    trained = []
    utility = Engine.utility
    monkeypatch.setattr(
        Engine, "utility", lambda self, *given, **more: trained.append(given[2].train) or utility(self, *given, **more)
    )
    (tmp_path / "terms.txt").write_text("w7\n")
    options = ("--dev", str(folder / "dev.csv"), "--max-drop", "100", "--epochs", "1", "--vary", "noise_ratio=0.05")
    options += ("--surrogates", "identifying", "--own-terms", str(tmp_path / "terms.txt"), "--gain")
    printed, facts = run(folder, tmp_path, *options)
    own, sent = trained
    assert own.fingerprint != sent.fingerprint, "what is compared trains on the owner's text, the split on the other"
    assert facts["surrogates"]["replace"] == "identifying"
    (setting,) = facts["settings"]
    assert "Surrogates: given types" in setting["statement"]["text"]
    assert setting["statement"]["numbers"]["words_replaced"] > 0
    gain = facts["gains"]["0.05"]
    assert gain["low"] <= gain["value"] <= gain["high"]
    assert "Measured on your dev split: the cloud added " in facts["cloud_gain"]
    assert facts["cloud_gain"] in printed
    assert facts["cloud_gain"] in (tmp_path / "tune.html").read_text()
    given = shlex.split(facts["command"])
    assert given[given.index("--surrogates") :][:2] == ["--surrogates", "identifying"]
    assert given[given.index("--own-terms") + 1] == str(tmp_path / "terms.txt")
    assert run(folder, tmp_path, *options)[0].count("measured before") == 3


def test_ctrl_c_ends_with_its_code_and_says_how_to_go_on(folder, tmp_path):
    command = [sys.executable, "-m", "privtune.device.cli", *arguments(folder, tmp_path, "--max-recovery", "0.5")]
    alone = {**os.environ, "OMP_NUM_THREADS": "1"}  # threads of a tiny model wait for one another on a busy machine
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=alone)
    while process.poll() is None and not (tmp_path / SETTINGS).exists():
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGINT)
    _, told = process.communicate(timeout=120)
    assert process.returncode == 130, told
    assert told.splitlines()[-1] == (
        f"privtune: Stopped. What was measured is kept in {tmp_path}; the same command resumes from there."
    )


def test_dev_records_that_are_training_records_do_not_count(folder, tmp_path):
    lines = (folder / "train.csv").read_text().splitlines()[1:]
    rng = np.random.default_rng(5)
    mixed = write_rows(tmp_path / "mixed.csv", [*lines[:20], *(topic_row(rng) for _ in range(60))])
    tuned = tune(
        request(folder, dev=DataSource(path=str(mixed)), values=(200.0,)), tmp_path / "home", tmp_path, Watcher()
    )
    assert tuned.records["dev"] == 60
    assert tuned.records["dev_left_out"] == 20
    for file, words in (
        (folder / "train.csv", "150 of 150 dev records are training records too"),
        (write_rows(tmp_path / "most.csv", [*lines[:70], *(topic_row(rng) for _ in range(60))]), "70 of 130"),
        (write_rows(tmp_path / "few.csv", [topic_row(rng) for _ in range(29)]), "at least 30 dev records"),
    ):
        with pytest.raises(DataInvalid, match=words):
            tune(request(folder, dev=DataSource(path=str(file))), tmp_path / "home", tmp_path, Watcher())
    odd = write_rows(tmp_path / "odd.csv", [*(topic_row(rng) for _ in range(60)), "w1 w2,7"])
    with pytest.raises(DataInvalid, match="does not occur in the training data"):
        tune(request(folder, dev=DataSource(path=str(odd))), tmp_path / "home", tmp_path, Watcher())


def test_a_folder_that_can_not_be_written_is_told_before_anything_is_measured(folder, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageFull, match="--out"):
        tune(request(folder), tmp_path / "home", tmp_path / "file", Watcher(stop_at=1))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ([], "Set a goal"),
        (["--max-drop", "3", "--dev", "d.csv", "--holdout", "0.2"], "--dev or --holdout, not both"),
        (["--max-drop", "3", "--task", "causal-lm"], "for classification"),
        (["--max-drop", "3", "--mechanism", "none"], "no strength to tune; name another one with --mechanism"),
        (["--max-drop", "3", "--own-terms", __file__], "this job replaces nothing: add --surrogates identifying"),
        (["--max-drop", "3", "--mechanism", "fog"], "there is no mechanism 'fog'"),
        (["--max-drop", "3", "--vary", "noise_ratio"], "PARAM=V1,V2"),
        (["--max-drop", "3", "--vary", "noise_ratio=1,,3"], "PARAM=V1,V2"),
        (["--max-drop", "3", "--vary", "noise_ratio=1,-3"], "noise_ratio"),
        (["--max-drop", "3", "--vary", "fog=1,3"], "no parameter 'fog'"),
        (["--max-drop", "3", "--param", "noise_ratio=3"], "contradict each other"),
        (["--max-drop", "3", "--param", "eta=3"], "not both"),
        (["--max-drop", "3", "--holdout", "1"], "--holdout"),
        (["--max-drop", "3", "--skip", "tuned"], "give --tail as well"),
        (["--max-drop", "3", "--tail", "1", "--skip", "tuned", "--cut", "0"], "at cut 0 there are none"),
    ],
)
def test_mistakes_end_in_one_line_before_a_model_is_read(options, words, capsys):
    with pytest.raises(SystemExit) as caught:
        main(["tune-noise", "--model", "no-such-model", "--data", "no.csv", *NOISE, *options])
    err = capsys.readouterr().err
    assert caught.value.code == InvalidInput.exit_code
    assert words in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("options", [["--test", "test.tsv"], ["--max-recovery", "10"], ["--of", "rare"]])
def test_usage_errors_name_the_option_and_there_is_none_for_a_test_split(options, capsys):
    with pytest.raises(SystemExit) as caught:
        main(["tune-noise", "--model", "m", "--data", "d.csv", *options])
    assert caught.value.code == InvalidInput.exit_code
    assert options[0] in capsys.readouterr().err
