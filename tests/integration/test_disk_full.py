"""A disk that fills up: one clear line, exit code 13, earlier files stay, and the run resumes when there is room."""

import pytest
import torch
from safetensors.torch import save_file

from privtune.shared.errors import StorageFull
from privtune.shared.files import native_os_errors
from privtune.shared.modeling.checkpoint import checkpoint_steps, save_checkpoint
from tests.support.disk import room_for
from tests.support.owner import job_id_of
from tests.support.running import adapter_file, run
from tests.support.tiny_models import tiny_tokenizer
from tests.support.world import ProcessCloud, build_world

pytestmark = pytest.mark.timeout(120)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    built = build_world(tmp_path_factory.mktemp("full"), ProcessCloud)
    yield built
    built.cloud.stop()


@pytest.fixture
def trained(owner):
    done = owner.finetune("--new")
    assert done.code == 0, done.err
    return job_id_of(done)


@pytest.mark.parametrize("stage", ["fetch", "head"])
def test_export_leaves_nothing_half_written(owner, trained, stage, tmp_path):
    weights = adapter_file(owner.world, trained)
    limit = 2000 if stage == "fetch" else weights.stat().st_size + 100  # the head makes the file larger than that
    target = tmp_path / "adapter"
    with room_for(limit):
        done = owner("export", trained, str(target))
    assert done.code == 13, done.err
    assert "can't be written: File too large; free room and" in done.line
    assert list(tmp_path.iterdir()) == []
    again = owner("export", trained, str(target))
    assert again.code == 0, again.err
    assert (target / "adapter_model.safetensors").stat().st_size > weights.stat().st_size


def test_a_device_without_room_sends_nothing_and_goes_on_later(owner):
    with room_for(6000):
        done = owner.finetune("--new", "--seed", "5")
    assert done.code == 13, done.err
    assert "nothing was sent that is not stored" in done.line
    again = owner("finetune", "--job", job_id_of(done))
    assert again.code == 0, again.err


def test_predictions_that_can_not_be_written(owner, trained):
    done = owner("predict", trained, "--text", "w1", "--out", "/dev/full")
    assert done.code == 13
    assert done.line == "/dev/full can't be written: No space left on device."


@pytest.mark.parametrize("blocked", ["checkpoints", ".adapter.part"])
def test_a_cloud_that_can_not_write_keeps_the_job_and_says_why(local_world, blocked):
    world = local_world
    spec = world.spec(train={"max_steps": 4, "checkpoint_every": 2})
    job_id = world.cloud.create_job(spec)
    in_the_way = world.folder / "cloud" / "jobs" / job_id / blocked
    in_the_way.parent.mkdir(parents=True)
    in_the_way.write_text("a file where a folder must be")
    with pytest.raises(StorageFull, match="can't be written"):
        run(world, spec, job_id=job_id)
    messages = [event.message for event in world.cloud.jobs.events(job_id, limit=50).items]
    assert any("can't be written" in message for message in messages), messages
    assert world.cloud.status(job_id)[0] in ("running", "paused")
    in_the_way.unlink()
    run(world, spec, job_id=job_id)
    assert world.cloud.status(job_id)[0] == "succeeded"


def test_a_checkpoint_that_does_not_fit_leaves_the_one_before(tmp_path):
    weight = torch.nn.Parameter(torch.zeros(5000))
    optimizer = torch.optim.AdamW([weight])
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1.0)
    save_checkpoint(tmp_path, 1, {"weight": weight}, optimizer, schedule)
    with room_for(6000), pytest.raises(StorageFull, match="File too large"):
        save_checkpoint(tmp_path, 2, {"weight": weight}, optimizer, schedule)
    assert checkpoint_steps(tmp_path) == [1]
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]


@pytest.mark.parametrize(
    "write",
    [lambda folder: save_file({"a": torch.zeros(5000)}, folder / "a"), lambda f: tiny_tokenizer().save_pretrained(f)],
    ids=["safetensors", "tokenizers"],
)
def test_errors_of_rust_libraries_become_os_errors(tmp_path, write):
    with room_for(1000), pytest.raises(OSError, match="File too large") as caught, native_os_errors():
        write(tmp_path)
    assert caught.value.errno == 27
    with pytest.raises(ValueError, match="not about files"), native_os_errors():
        raise ValueError("not about files")
