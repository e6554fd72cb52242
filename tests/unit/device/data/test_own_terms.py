"""The owner's terms: read from files beside the data sets, and never left out in silence."""

from __future__ import annotations

from dataclasses import replace

import pytest

from privtune.device.data.source import DataSource, own_terms
from privtune.shared.errors import DataInvalid, InvalidInput
from privtune.shared.job_spec import SurrogateSpec

ON = SurrogateSpec(replace="identifying")


@pytest.fixture
def source(tmp_path):
    (tmp_path / "terms.txt").write_text("  green window \n\nFalke\nFalke\n")
    return DataSource(path="a.csv", own_terms=str(tmp_path / "terms.txt"))


def test_terms_of_training_and_held_out_records_count_once(source, tmp_path):
    (tmp_path / "more.txt").write_text("Adler\nFalke")
    more = replace(source, own_terms=str(tmp_path / "more.txt"))
    assert own_terms(ON, source) == ("green window", "Falke")
    assert own_terms(ON, *source.with_holdout(0.5)) == ("green window", "Falke")
    assert own_terms(ON, source, more) == ("green window", "Falke", "Adler")
    assert own_terms(ON, replace(source, own_terms=None), None) == ()


def test_a_job_that_replaces_nothing_is_refused_and_the_cloud_learns_no_reason(source):
    with pytest.raises(InvalidInput, match="this job replaces nothing: add --surrogates identifying") as refused:
        own_terms(SurrogateSpec(replace="nothing"), source)
    assert refused.value.private


def test_a_file_that_is_missing_is_named(source, tmp_path):
    with pytest.raises(DataInvalid, match=r"nowhere\.txt can't be read"):
        own_terms(ON, replace(source, own_terms=str(tmp_path / "nowhere.txt")))
