"""Both sides run parts of one base: packages are named by their contents, and other weights are refused."""

import shutil

import pytest
import torch
from safetensors.torch import load_file

from privtune.device.inference.predict import predict
from privtune.shared.errors import JobConflict, JobPaused, VersionMismatch
from tests.support.running import adapter_hash, run, stop_at, train
from tests.support.tiny_models import save_model
from tests.support.world import Watcher, build_world


@pytest.fixture
def twins(tmp_path):
    """A cloud that offers `enc` and `instruct`: one shape, other weights and another tokenizer."""
    world = build_world(tmp_path)
    instruct = save_model(tmp_path / "models" / "instruct", "bert", "classification", num_labels=2, seed=5)
    tokenizer = (instruct / "tokenizer.json").read_text()
    (instruct / "tokenizer.json").write_text(tokenizer.replace('"w10"', '"elsewhere"'))
    world.models["instruct"] = instruct
    world.restart()
    yield world
    world.cloud.stop()


def packages(world):
    """The device's packages by their embedding and the words of their tokenizer."""
    found = []
    for folder in sorted((world.settings.home / "bottoms").iterdir()):
        weights = load_file(folder / "bottom.safetensors")["bert.embeddings.word_embeddings.weight"]
        found.append((weights, "elsewhere" in (folder / "tokenizer.json").read_text()))
    return found


def embedding(folder):
    return load_file(folder / "model.safetensors")["bert.embeddings.word_embeddings.weight"]


def test_models_of_one_shape_have_packages_of_their_own(twins):
    train(twins, twins.spec(train={"max_steps": 1}))
    train(twins, twins.spec(model="instruct", train={"max_steps": 1}))
    (first, first_words), (second, second_words) = sorted(packages(twins), key=lambda one: one[1])
    assert torch.equal(first, embedding(twins.models["enc"]))
    assert torch.equal(second, embedding(twins.models["instruct"]))
    assert (first_words, second_words) == (False, True)


@pytest.mark.parametrize("part", ["model.safetensors", "tokenizer.json"])
def test_replaced_files_get_a_new_package(twins, part):
    spec = twins.spec(train={"max_steps": 1})
    train(twins, spec)
    shutil.copy(twins.models["instruct"] / part, twins.models["enc"] / part)
    twins.restart()
    train(twins, spec, settings=twins.device(home=twins.folder / "another"))  # the first device keeps to its package
    assert len(list((twins.folder / "cloud" / "bottoms").iterdir())) == 2


def test_files_replaced_under_a_running_cloud_do_not_mix_with_what_it_loaded(twins):
    spec = twins.spec(train={"max_steps": 1})
    first = twins.cloud.create_job(spec)
    run(twins, spec, validation=False, job_id=first)
    for part in ("model.safetensors", "tokenizer.json"):
        shutil.copy(twins.models["instruct"] / part, twins.models["enc"] / part)
    train(twins, twins.spec(cut=0, train={"max_steps": 1}))
    assert [words for _, words in packages(twins)] == [False, False]
    with pytest.raises(VersionMismatch, match="restart"):
        train(twins, twins.spec(labels="shared", num_labels=2, train={"max_steps": 1}))


@pytest.mark.parametrize("changes", [{}, {"tail": 1}, {"cut": 0}])
def test_a_device_with_another_base_is_refused(twins, changes):
    settings = twins.device(local_model=str(twins.models["instruct"]))
    with pytest.raises(VersionMismatch, match="other weights than this cloud serves as 'enc'"):
        train(twins, twins.spec(**changes), settings=settings)
    settings = twins.device(local_model=str(twins.models["enc"]))
    same = train(twins, twins.spec(train={"max_steps": 2}, **changes), settings=settings)
    assert twins.cloud.status(same)[0] == "succeeded"


def test_a_decoder_is_the_same_as_a_copy_and_as_a_package(local_world):
    spec = local_world.spec(model="dec", train={"max_steps": 1})
    assert train(local_world, spec, settings=local_world.device(local_model=str(local_world.models["dec"])))
    assert train(local_world, spec)


def test_a_job_never_continues_on_another_base(twins):
    world, spec = twins, twins.spec(train={"checkpoint_every": 2})
    job_id = world.cloud.create_job(spec)
    watcher, stop = stop_at(4)
    with pytest.raises(JobPaused):
        run(world, spec, watcher=watcher, stop=stop, job_id=job_id)
    old = (world.models["enc"] / "model.safetensors").read_bytes()
    shutil.copy(world.models["instruct"] / "model.safetensors", world.models["enc"] / "model.safetensors")
    world.restart()
    for use in (lambda: run(world, spec, job_id=job_id), lambda: predict(job_id, ["w1 w2"], world.settings)):
        with pytest.raises((JobConflict, VersionMismatch), match="restore"):
            use()
    (world.models["enc"] / "model.safetensors").write_bytes(old)
    world.restart()
    run(world, spec, job_id=job_id, watcher=Watcher())
    assert adapter_hash(world, job_id)


def test_packages_are_shared_by_jobs_and_survive_a_restart(local_world):
    world, spec = local_world, local_world.spec(train={"max_steps": 1})
    train(world, spec)
    train(world, spec)
    world.restart()
    train(world, spec)
    assert len(list((world.folder / "cloud" / "bottoms").iterdir())) == 1
