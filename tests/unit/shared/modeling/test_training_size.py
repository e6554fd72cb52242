"""What is counted before is what trains then."""

import pytest

from privtune.shared.job_spec import TuningSpec
from privtune.shared.modeling.load import build_task_model, load_task_model
from privtune.shared.modeling.lora import attach_lora, train_fully, trainable_parameters
from privtune.shared.modeling.partition import Partition
from privtune.shared.modeling.training_size import trained_weights
from tests.support.tiny_models import save_model

ONE = ("query",)


@pytest.mark.parametrize(
    "tuning", [TuningSpec(), TuningSpec(rank=3, targets=ONE), TuningSpec(method="full")], ids=["lora", "one", "full"]
)
def test_weights_that_train(tmp_path, tuning):
    model = load_task_model(
        str(save_model(tmp_path / "tiny", "bert", "classification", num_labels=2)), "classification"
    )
    shapes = Partition(build_task_model(model.config, "classification")).top(1)
    top = Partition(model).top(1)
    attach_lora(top, tuning, 0) if tuning.method == "lora" else train_fully(top)
    assert trained_weights(shapes, tuning) == sum(weight.numel() for weight in trainable_parameters(top))
