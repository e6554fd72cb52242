"""Corpora: named by the operator, read with the project's own reader, refused with one clear line."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from privtune.cloud.corpora import Corpora
from privtune.shared.errors import CorpusNotFound, DataInvalid, InvalidInput


@pytest.fixture
def table(tmp_path):
    file = tmp_path / "reviews.csv"
    file.write_text("id,sentence,label\n1,a fine film,good\n2,,bad\n3,a dull one,bad\n")
    return file


def test_a_table_is_read_with_its_labels(table):
    corpus = Corpora([f"films={table}"]).read("films", None, "label")
    assert corpus.texts == ("a fine film", "a dull one"), "a row without a text is left out"
    assert corpus.label_names == ("bad", "good")
    assert corpus.labels is not None
    assert corpus.labels.tolist() == [1, 0]
    assert len(corpus.sha256) == 64


def test_labels_are_used_only_where_they_are_named(table):
    assert Corpora([str(table)]).read("reviews", None, None).labels is None


def test_a_text_file_has_a_text_a_line(tmp_path):
    (tmp_path / "lines.txt").write_text("one\n\ntwo\n")
    assert Corpora([str(tmp_path / "lines.txt")]).read("lines", None, None).texts == ("one", "two")


def test_a_file_in_a_package_is_found(tmp_path, monkeypatch):
    (tmp_path / "some_texts").mkdir()
    (tmp_path / "some_texts" / "__init__.py").write_text("raise RuntimeError('run')")
    (tmp_path / "some_texts" / "a.jsonl").write_text('{"text": "hello"}\n')
    monkeypatch.syspath_prepend(tmp_path)
    assert Corpora(["t=pypi:some_texts/a.jsonl"]).read("t", None, None).texts == ("hello",)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (("body", None), 'no column "body" for text'),
        ((None, "stars"), 'no column "stars" for label'),
        ((None, "id"), None),
    ],
)
def test_wrong_columns_are_named_and_the_path_is_not(table, columns, message):
    corpora = Corpora([f"films={table}"])
    if message is None:
        assert corpora.read("films", *columns).label_names == ("1", "3")
        return
    with pytest.raises(DataInvalid, match=message) as refused:
        corpora.read("films", *columns)
    assert "corpus films" in refused.value.message
    assert str(table) not in refused.value.message


def test_one_label_is_no_label(tmp_path):
    (tmp_path / "a.tsv").write_text("text\tlabel\none\tx\ntwo\tx\n")
    with pytest.raises(DataInvalid, match="has 1 labels"):
        Corpora([str(tmp_path / "a.tsv")]).read("a", None, "label")


def test_a_client_names_no_path_and_the_hub_only_where_it_is_allowed(table):
    for name in (str(table), "../reviews.csv", "owner/set::train.csv"):
        with pytest.raises(CorpusNotFound, match="/v1/privtune/corpora"):
            Corpora([str(table)]).check(name)
    Corpora(allow_hub=True).check("owner/set::data/train.csv")
    for name in ("owner/set::../train.csv", "owner/set::/train.csv", "owner/set::a//b.csv", "set::train.csv"):
        with pytest.raises(CorpusNotFound):
            Corpora(allow_hub=True).check(name)
    with pytest.raises(CorpusNotFound):
        Corpora(allow_hub=True).check(str(table))


def test_a_large_file_is_refused(table):
    with pytest.raises(InvalidInput, match="reads at most"):
        Corpora([str(table)], max_bytes=10).read("reviews", None, None)


@pytest.mark.parametrize("entry", ["", "=x", "a b=/tmp", "a=/no/such.csv", "a=pypi:no_such_package/x.csv"])
def test_an_unusable_entry_is_refused_at_the_start(entry):
    with pytest.raises(Exception, match="--corpus") as refused:
        Corpora([entry])
    assert refused.value.exit_code in (2, 4)


def test_an_unknown_format_and_a_name_twice_are_refused(table, tmp_path):
    (tmp_path / "a.pdf").write_text("x")
    with pytest.raises(InvalidInput, match="unknown format"):
        Corpora([str(tmp_path / "a.pdf")])
    with pytest.raises(InvalidInput, match="twice"):
        Corpora([str(table), str(table)])


def test_a_hub_file_that_is_too_large_is_not_fetched(monkeypatch):
    fetched = []
    monkeypatch.setattr("huggingface_hub.get_hf_file_metadata", lambda _: SimpleNamespace(size=2 << 30))
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda *names, **_: fetched.append(names))
    with pytest.raises(InvalidInput, match="reads at most"):
        Corpora(allow_hub=True).read("owner/set::train.csv", None, None)
    assert not fetched
    with pytest.raises(InvalidInput, match="unknown format"):
        Corpora(allow_hub=True).read("owner/set::train.bin", None, None)


def test_a_hub_file_is_not_kept(monkeypatch, tmp_path):
    """What clients name one after another must not fill the operator's disk."""

    def download(name, file, *, local_dir, **_):
        fetched.append(local_dir / file)
        fetched[-1].write_text("text\nhello\n")
        return str(fetched[-1])

    fetched: list = []
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_, **__: None)
    monkeypatch.setattr("huggingface_hub.get_hf_file_metadata", lambda _: SimpleNamespace(size=9))
    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    assert Corpora(allow_hub=True).read("owner/set::train.csv", None, None).texts == ("hello",)
    assert len(fetched) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_hub_file_that_is_in_the_cache_is_bounded_too(monkeypatch, table):
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_, **__: str(table))
    with pytest.raises(InvalidInput, match="reads at most"):
        Corpora(allow_hub=True, max_bytes=10).read("owner/set::train.csv", None, None)
