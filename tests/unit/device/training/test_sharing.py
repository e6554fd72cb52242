"""What a run shares with the cloud: only what its owner lets it, not at every step, and never at the run's expense."""

from types import SimpleNamespace

import pytest

from privtune.device.home.policy import Policy
from privtune.device.training.progress import EvalInfo
from privtune.device.training.sharing import EVERY_S, Sharing, check_sharing
from privtune.shared.errors import CloudUnreachable, InvalidInput, PolicyRefused
from tests.support.builders import least_spec
from tests.support.world import Watcher


class Cloud:
    def __init__(self, broken=False):
        self.taken, self.broken = [], broken

    def share(self, request):
        self.taken.append(request)
        if self.broken:
            raise CloudUnreachable("gone")


def started(sharing):
    statement = SimpleNamespace(text="a claim")
    facts = {"job_id": "ftjob-1", "session_epoch": 7, "start_step": 0, "verdict": "found nothing"}
    sharing.started(SimpleNamespace(statement=statement, label_statement=None, **facts))


def step(number, total=100):
    return SimpleNamespace(step=number, total_steps=total, loss=1 / number)


def test_losses_come_now_and_then_and_at_the_end():
    now = [0.0]
    cloud, watcher = Cloud(), Watcher()
    sharing = Sharing(watcher, cloud, clock=lambda: now[0])
    started(sharing)
    for number in range(1, 101):
        now[0] += EVERY_S / 8
        sharing.step(step(number))
    sharing.evaluated(EvalInfo(step=100, metrics={"loss": 0.5, "accuracy": 0.75, "macro_f1": 0.7}))
    first, *losses, evaluated = cloud.taken
    assert (first.statement, first.verdict, first.session_epoch) == ("a claim", "found nothing", 7)
    assert [request.step for request in losses] == [*range(1, 101, 8), 100]
    assert not losses[0].HasField("accuracy")
    assert (evaluated.held_out_loss, evaluated.accuracy, evaluated.HasField("loss")) == (0.5, 0.75, False)
    assert (len(watcher.steps), len(watcher.evaluations)) == (100, 1)  # the owner sees all of them


def test_a_cloud_that_takes_nothing_is_asked_once():
    cloud, watcher = Cloud(broken=True), Watcher()
    sharing = Sharing(watcher, cloud)
    started(sharing)
    sharing.step(step(1))
    assert len(cloud.taken) == len(watcher.messages) == len(watcher.steps) == 1


def test_who_may_share():
    check_sharing(least_spec(), None)
    check_sharing(least_spec(), Policy(share_figures=True))
    with pytest.raises(PolicyRefused, match="share_figures: true"):
        check_sharing(least_spec(), Policy())
    with pytest.raises(InvalidInput, match="zeroth-order"):
        check_sharing(least_spec(zeroth_order={"epsilon": 8.0}), None)
