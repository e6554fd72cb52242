"""Where a tail begins: a language model as it was pre-trained, a classifier at the mean of both ways."""

import pytest
import torch

from privtune.device.model.tail import States, Tail
from privtune.shared.errors import ArtifactCorrupt
from privtune.shared.job_spec import JobSpec
from privtune.shared.modeling.partition import Partition
from tests.support.tiny_models import WIDTH, tiny_classifier, tiny_lm


def tail(task, skip="frozen"):
    spec = JobSpec.model_validate(
        {
            "model": "m",
            "task": task,
            "cut": 1,
            "tail": 1,
            "skip": skip,
            "mechanism": {"name": "none"},
            "training_file": "device://x",
            "tuning": {"method": "full"},
        }
    )
    whole = Partition(tiny_classifier("bert") if task == "classification" else tiny_lm("llama"))
    found = Tail(whole.tail(1), spec, whole.below(1))
    found.train(False)
    return found


@pytest.fixture
def states():
    draw = torch.Generator().manual_seed(0)
    z_BTD, h_BTD = (torch.randn(2, 5, WIDTH, generator=draw) for _ in range(2))
    return States(z_BTD=z_BTD, clean_BTD=h_BTD, mask_BT=torch.ones(2, 5, dtype=torch.int64))


def out(of, states):
    with torch.no_grad():
        return of.forward(states, torch.arange(10))


def test_a_language_model_begins_as_it_was_pre_trained(states):
    alone = States(z_BTD=states.z_BTD, clean_BTD=None, mask_BT=states.mask_BT)
    assert torch.equal(out(tail("causal-lm"), states), out(tail("causal-lm", "none"), alone))


def test_a_classifier_begins_at_the_mean(states):
    mean = States(z_BTD=(states.z_BTD + states.clean_BTD) / 2, clean_BTD=None, mask_BT=states.mask_BT)
    assert torch.allclose(out(tail("classification"), states), out(tail("classification", "none"), mean), atol=1e-5)


def test_without_a_skip_the_states_go_in_as_they_are(states):
    assert torch.equal(tail("classification", "none").fused(states.z_BTD, None), states.z_BTD)


def test_a_saved_tail_continues_alike_and_one_without_its_share_is_refused(states):
    trained = tail("classification")
    with torch.no_grad():
        trained.skip.add_(torch.randn(WIDTH, WIDTH, generator=torch.Generator().manual_seed(1)))
    saved = {name: value.clone() for name, value in trained.state().items()}
    again = tail("classification")
    again.load(saved)
    assert torch.equal(out(again, states), out(trained, states))
    assert again.sha256() == trained.sha256()
    del saved["skip.share"]
    with pytest.raises(ArtifactCorrupt, match="skip connection"):
        again.load(saved)
