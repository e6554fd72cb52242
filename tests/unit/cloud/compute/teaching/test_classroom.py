"""One result for each description, found again, and nothing left of a teaching that nobody continues."""

from __future__ import annotations

import pytest
from safetensors.torch import load_file

from privtune.cloud.catalog import Catalog
from privtune.cloud.compute.teaching.classroom import Classroom
from privtune.cloud.corpora import Corpora
from privtune.cloud.storage import ArtifactStore
from privtune.shared.errors import CloudOutOfMemory, JobConflict, JobPaused
from privtune.shared.files import held
from privtune.shared.teaching_spec import TeachingSpec
from tests.support.texts import write_sentences
from tests.support.tiny_models import save_model

SPEC = TeachingSpec(
    model="enc", corpus="sentences", label_column="label", max_length=12, max_pieces=80, tuned_pieces=64
)


@pytest.fixture
def classroom(tmp_path):
    model = save_model(tmp_path / "enc", "bert", "classification", num_labels=2)
    text = write_sentences(tmp_path / "sentences.tsv", 80)
    return Classroom(ArtifactStore(tmp_path / "data"), Catalog([str(model)]), Corpora([str(text)]), max_bytes=1 << 24)


def teach(classroom, spec=SPEC, stopped=lambda: False, **options):
    steps = []
    result = classroom.teach(spec, lambda *step: steps.append(step), stopped, **options)
    return result, steps


def test_a_result_is_found_by_what_makes_it(classroom):
    first, steps = teach(classroom)
    assert steps
    again, none = teach(classroom, SPEC.model_copy(update={"checkpoint_every": 3}))
    assert (again.name, again.card, none) == (first.name, first.card, [])
    for change in ({"cut": 0}, {"seed": 1}, {"soft_labels": 0.5}, {"max_pieces": 70}):
        assert teach(classroom, SPEC.model_copy(update=change))[0].name != first.name, change
    folder = classroom.package(first.name, first.card["base_sha256"])
    assert {name.split(".")[0] for name in load_file(folder / "taught.safetensors")} == {"bert", "classifier"}
    with pytest.raises(JobConflict, match="no longer here"):
        classroom.package("none", first.card["base_sha256"])
    with pytest.raises(JobConflict, match="other weights"):
        classroom.package(first.name, "0" * 64)


def test_another_text_is_another_result(classroom, tmp_path):
    first, _ = teach(classroom)
    write_sentences(tmp_path / "sentences.tsv", 80, seed=3)
    assert teach(classroom)[0].name != first.name


@pytest.mark.parametrize("cancelled", [True, False])
def test_what_is_cancelled_leaves_nothing_and_what_is_stopped_can_continue(classroom, tmp_path, cancelled):
    with pytest.raises(JobPaused):
        teach(classroom, stopped=lambda: True, cancelled=lambda: cancelled)
    assert bool(list((tmp_path / "data" / "teachings").glob("*.work"))) is not cancelled
    teach(classroom)
    assert not list((tmp_path / "data" / "teachings").glob("*.work"))


def test_what_nobody_needs_is_deleted_unless_it_is_worked_on(classroom, tmp_path):
    names = []
    with pytest.raises(JobPaused):
        teach(classroom, stopped=lambda: True, began=names.append)
    folder = tmp_path / "data" / "teachings"
    with held(folder / f".{names[0]}.lock"):
        classroom.tidy(names[0], package=True)
    assert list(folder.glob("*.work"))
    classroom.tidy(names[0], package=True)
    assert not list(folder.glob("*.work"))
    first, _ = teach(classroom, began=names.append)
    assert names == [first.name] * 2
    classroom.tidy(first.name, package=False)
    assert classroom.has(first.name)
    classroom.tidy(first.name, package=True)
    assert not classroom.has(first.name)


def test_what_has_failed_leaves_nothing(classroom, tmp_path):
    small = Classroom(ArtifactStore(tmp_path / "data"), classroom._catalog, classroom._corpora, max_bytes=1)
    with pytest.raises(CloudOutOfMemory):
        teach(small)
    assert not list((tmp_path / "data" / "teachings").glob("*.work"))
