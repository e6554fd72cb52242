"""Members of a small sum without noise are known; noise at the budget of a record hides them."""

import pytest
import torch

from privtune.device.audit.membership import membership, membership_area
from privtune.device.data.encode import EncodedDataset
from privtune.device.noise.randomness import noise_source
from privtune.device.noise.registry import build
from privtune.device.noise.tables.class_directions import PrivateMeans
from privtune.device.noise.tables.private_counts import LabelledRows, PrivateCounts
from privtune.shared.job_spec import MechanismSpec
from tests.support.noise_contexts import model_context
from tests.support.texts import half_labels, token_rows

ROWS = token_rows(120, seed=5)
DATA = EncodedDataset(ids=tuple(ROWS), labels=half_labels(ROWS), label_names=("a", "b"))


@pytest.mark.parametrize("width", [400, 1500])
def test_members_of_a_sum_without_noise_are_known_and_noise_hides_them(width):
    each_BF = torch.randn(60, width, generator=torch.Generator().manual_seed(0))
    clean = membership_area(each_BF, lambda sum_F: sum_F, 0.0)
    assert clean.value >= 0.95
    hidden = membership_area(each_BF, lambda sum_F: sum_F + 1000 * torch.randn(width), 1000.0**2)
    assert abs(hidden.value - hidden.floor) < 0.1


@pytest.mark.parametrize(
    ("name", "params", "what"),
    [
        ("codes", {"codes": 4, "dims": 2, "task": "private", "epsilon_task": 1.0}, "class means"),
        ("shared", {"groups": "private", "grades": 2, "epsilon_counts": 1.0}, "word counts"),
    ],
)
def test_each_private_aggregate_of_a_mechanism_is_tested(partition, tmp_path, name, params, what):
    context = model_context(partition.bottom(1), cut=1)
    records = LabelledRows(rows=DATA.ids, labels=DATA.labels, classes=2)
    once = {"folder": tmp_path, "fingerprint": "f", "source": noise_source(), "records": records}
    context.private_means, context.private_counts = PrivateMeans(**once), PrivateCounts(**once)
    (found,) = membership(build(MechanismSpec(name=name, params=params), context), DATA)
    assert what in found.name
    assert found.figure.floor == 0.5
    assert found.figure.value < 0.75
    assert "of 40 records (epsilon 1)" in found.text


def test_nothing_is_released_in_aggregate_of_public_tables_or_unlabelled_records(make_lab):
    mechanism = make_lab("shared", {"cluster_size": 8}).victim.mechanism
    assert membership(mechanism, DATA) == []
    assert membership(mechanism, EncodedDataset(ids=tuple(ROWS))) == []
