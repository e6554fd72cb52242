"""The agent's loop against a real cloud: which jobs it takes, what it waits out, what it leaves to a person."""

import threading
import time

import pytest

from privtune.device.agent.agent import Agent
from privtune.device.agent.agent_config import AgentConfig, DataSetting
from privtune.device.home.policy import Policy
from privtune.device.link.rest import ControlPlane
from privtune.device.link.rpc import Link
from privtune.device.model.bottom import load_bottom
from privtune.device.session.handshake import open_request
from privtune.device.training.submit import check_data
from privtune.shared.errors import DataInvalid, JobNotFound, JobPaused, PolicyRefused
from privtune.shared.wire import STEP, Message
from privtune.split.v1 import split_pb2 as pb
from tests.support.leases import HOLDER
from tests.support.running import cost, wait_until
from tests.support.world import ProcessCloud, Watcher, build_world

pytestmark = pytest.mark.timeout(120)


class Screen(Watcher):
    """A watcher that also keeps results."""

    def __init__(self, at_step=None):
        super().__init__(at_step=at_step)
        self.results = []

    def finished(self, result):
        self.results.append(result)


@pytest.fixture
def world(tmp_path):
    built = build_world(tmp_path, ProcessCloud)
    yield built
    built.cloud.stop()


def spec(world, **changes):
    return world.spec(**{"mechanism": {"name": "dchi"}, "train": {"max_steps": 6, "checkpoint_every": 2}} | changes)


def make_agent(world, screen, *, once=True, path=None, control=None, **policy):
    return Agent(
        control=control or ControlPlane(world.cloud.http_url, world.cloud.api_key),
        config=AgentConfig(
            datasets={"sentences": DataSetting(path=str(path or world.data.path))},
            policy=Policy.model_validate({"mechanisms": ["dchi"]} | policy),
        ),
        settings=world.device(grpc_address=""),
        screen=screen,
        stop=threading.Event(),
        once=once,
        poll_s=0.1,
    )


def in_thread(agent):
    thread = threading.Thread(target=agent.run)
    thread.start()
    return thread


def test_a_data_set_is_trained_under_one_noise_whatever_jobs_ask_for(world):
    """A job's author can't have the noise averaged away by jobs that differ in the last digit."""

    def work(ratio, **policy):
        mechanism = {"name": "dchi", "params": {"noise_ratio": ratio}}
        job_id = world.cloud.create_job(spec(world, mechanism=mechanism, train={"max_steps": 2}))
        make_agent(world, Screen(), **policy).run()
        return world.cloud.status(job_id)[0]

    assert work(6) == "succeeded"
    with pytest.raises(PolicyRefused, match="another noise distribution"):
        work(6.000001)
    assert cost(world).noises == 1
    assert work(6.000001, budget={"noises": 2}) == "succeeded"
    assert cost(world).noises == 2


def test_jobs_are_taken_one_after_another_the_oldest_first(world):
    jobs = [world.cloud.create_job(spec(world, train={"max_steps": 2})) for _ in range(3)]
    screen = Screen()
    agent = make_agent(world, screen, once=False)
    thread = in_thread(agent)
    wait_until(lambda: len(screen.results) == 3)
    agent.stop.set()
    thread.join(10)
    assert not thread.is_alive()
    started = [line.split()[1].rstrip(":") for line in screen.messages if line.startswith("job ")]
    assert sorted(started) == sorted(jobs)
    assert {world.cloud.status(job)[0] for job in jobs} == {"succeeded"}


def test_the_agent_says_of_the_data_what_finetune_says(world):
    """Columns that are not used and a column with more values than labels have are for the owner to see."""
    path = world.folder / "many.csv"
    path.write_text("text,label,doctor\n" + "".join(f"w{n} w5,{n},x\n" for n in range(120)))
    agent = make_agent(world, Screen(), path=path)
    job = spec(world, train={"max_steps": 2}, optim={"learning_rate": 1e-4})
    world.cloud.create_job(job)
    agent.run()
    said = []
    check_data(*agent.config.sources(job), job, said.append)
    assert [line for line in agent.screen.messages if "many.csv" in line] == said
    assert "not used: doctor" in said[0]
    assert "120 different values" in said[1]


def test_a_refused_job_does_not_stop_the_next(world):
    refused = world.cloud.create_job(spec(world, mechanism={"name": "none"}))
    time.sleep(1.1)  # jobs are ordered by whole seconds
    good = world.cloud.create_job(spec(world))
    screen = Screen()
    agent = make_agent(world, screen, once=False)
    thread = in_thread(agent)
    wait_until(lambda: screen.results)
    agent.stop.set()
    thread.join(10)
    assert world.cloud.status(refused)[0] == "failed"
    assert "replaces nothing" in world.cloud.status(refused)[1]
    assert screen.results[0].job_id == good


def test_a_held_job_waits_for_its_person(world):
    job_id = world.cloud.create_job(spec(world))
    world.cloud.pause(job_id)
    screen = Screen()
    agent = make_agent(world, screen)
    thread = in_thread(agent)
    time.sleep(1)
    assert screen.starts == []
    world.cloud.resume(job_id)
    thread.join(30)
    assert world.cloud.status(job_id)[0] == "succeeded"


def test_a_job_that_another_device_began_is_left_alone(world):
    job_id = world.cloud.create_job(spec(world))
    screen = Screen(at_step=lambda info: agent.stop.set() if info.step == 3 else None)
    agent = make_agent(world, screen)
    with pytest.raises(JobPaused):
        agent.run()
    stranger = Screen()
    other = make_agent(world, stranger, once=False)
    other.settings = world.device(grpc_address="", home=world.folder / "other-home")
    thread = in_thread(other)
    time.sleep(1)
    other.stop.set()
    thread.join(10)
    assert stranger.starts == []
    again = Screen()
    make_agent(world, again).run()  # the device that began it resumes it by itself
    assert again.starts[0].start_step == screen.steps[-1].step >= 3
    assert world.cloud.status(job_id)[0] == "succeeded"


def test_a_file_that_went_away_leaves_a_begun_job_waiting_until_it_is_back(world):
    job_id = world.cloud.create_job(spec(world))
    screen = Screen(at_step=lambda info: agent.stop.set() if info.step == 3 else None)
    agent = make_agent(world, screen)
    with pytest.raises(JobPaused):
        agent.run()
    missing = Screen()
    with pytest.raises(DataInvalid, match="no such file"):
        make_agent(world, missing, path=world.folder / "moved.tsv").run()
    assert any("is set aside; start the agent again" in line for line in missing.messages)
    assert world.cloud.status(job_id)[0] == "paused"
    make_agent(world, Screen()).run()
    assert world.cloud.status(job_id)[0] == "succeeded"


def test_a_cloud_that_is_away_is_said_once_and_waited_for(world):
    http_port = int(world.cloud.http_url.rpartition(":")[2])
    job_id = world.cloud.create_job(spec(world))
    control = ControlPlane(world.cloud.http_url, world.cloud.api_key)
    world.cloud.stop()
    screen = Screen()
    thread = in_thread(make_agent(world, screen, control=control))
    wait_until(lambda: any("Still trying" in line for line in screen.messages))
    world.cloud = ProcessCloud(world.folder / "cloud", world.models, http_port=http_port)
    thread.join(60)
    assert sum("Still trying" in line for line in screen.messages) == 1
    assert "the cloud is back" in screen.messages
    assert world.cloud.status(job_id)[0] == "succeeded"


def test_a_session_belongs_to_the_owner_of_its_job(local_world):
    """Another key that knows the job's id and epoch can neither stream into it nor end it."""
    world = local_world
    job = world.spec()
    job_id = world.cloud.create_job(job)
    stranger = world.device(api_key=world.cloud.keys.create("mallory").secret)
    with Link(world.settings.endpoint) as link, Link(stranger.endpoint) as other:
        parts = load_bottom(
            link, job_id, job, home=world.settings.home, local_model=None, label_names=(), say=lambda _: None
        )
        opened = link.open(open_request(parts, job_id, job, HOLDER, total_steps=1))
        for infer in (False, True):
            stream = other.stream(opened, job_id, infer=infer, patience=20)
            stream.send(Message(kind=STEP, step=0))
            with pytest.raises(JobNotFound):
                stream.expect(0, 0, STEP)
            stream.abort()
        with pytest.raises(JobNotFound):
            other.commit(pb.CommitRequest(job_id=job_id, session_epoch=opened.session_epoch, final_step=0))
    assert world.cloud.status(job_id)[0] == "queued"
