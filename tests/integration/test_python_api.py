"""A job from Python: begun, followed, paused, resumed and used, with the same refusals as the command's."""

import asyncio
import json

import datasets
import pandas as pd
import pytest

from privtune.device import AsyncClient, Client, FineTuneConfig
from privtune.device.client import notebook
from privtune.device.client.sources import sources_of
from privtune.device.data.source import DataSource
from privtune.shared.errors import DataInvalid, InvalidInput, JobConflict, JobPaused, PolicyRefused, Unauthenticated
from tests.support.world import ProcessCloud, build_world

TINY = FineTuneConfig(batch_size=8, max_length=16, max_steps=4, lora_rank=4, codec="fp32")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    built = build_world(tmp_path_factory.mktemp("python"), ProcessCloud)
    yield built
    built.cloud.stop()


@pytest.fixture
def said():
    return []


@pytest.fixture
def client(world, said):
    with Client(world.cloud.http_url, api_key=world.cloud.api_key, home=world.settings.home, say=said.append) as opened:
        yield opened


@pytest.fixture(scope="module")
def rows(world):
    return [{"text": one.text, "label": one.label} for one in DataSource(path=world.data.path).load("classification")]


def finetune(client, data, **more):
    return client.finetune(data, model="enc", protect="none", config=TINY, **more)


@pytest.fixture(scope="module")
def trained(world, rows):
    """A job of a list of dicts, as it was when it had ended."""
    with Client(
        world.cloud.http_url, api_key=world.cloud.api_key, home=world.settings.home, say=lambda _: None
    ) as opened:
        job = opened.finetune(rows, model="enc", protect="none", config=TINY, holdout=0.1)
        job.wait(progress=False)
        yield job


def test_a_job_is_followed_to_its_end_and_its_model_used(trained, client, said):
    kinds = [event.kind for event in trained.events()]
    assert kinds.count("step") == 4
    assert kinds[-1] == "finished"
    result = trained.wait(progress=False)
    assert result.steps == 4
    assert result.metrics["accuracy"] >= 0
    assert trained.status == "succeeded"
    model = client.job(trained.id).model
    one, (first, second) = model.predict("w1 w2 w3"), model.predict(["w1 w2 w3", "w4 w5"])
    assert one.probabilities == pytest.approx(first.probabilities, abs=1e-5)
    assert sum(second.probabilities.values()) == pytest.approx(1)
    assert trained.id in [job.id for job in client.jobs()]
    assert {"enc", "dec"} <= {one["id"] for one in client.models()}


def test_every_kind_of_data_is_the_same_records(rows, tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    numbers = {name: number for number, name in enumerate(sorted({row["label"] for row in rows}))}
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=sorted(numbers))}
    )
    coded = [row | {"label": numbers[row["label"]]} for row in rows]
    kinds = [
        rows,
        {name: [row[name] for row in rows] for name in ("text", "label")},
        pd.DataFrame(rows),
        pd.DataFrame(rows).set_index("label", drop=False),
        datasets.Dataset.from_list(coded, features=features),
        datasets.Dataset.from_list(rows).with_format("arrow")[:],
        str(file),
    ]
    loaded = [sources_of(kind)[0].load("classification") for kind in kinds]
    assert all(
        [(one.text, one.label) for one in found] == [(row["text"], row["label"]) for row in rows] for found in loaded
    )


def test_what_is_in_memory_is_never_written(world, trained, rows):
    """Not as it is, nor its cells, nor what identifies it in a word."""
    secret = rows[0]["text"]
    for path in world.settings.home.rglob("*"):
        assert not path.is_file() or secret.encode() not in path.read_bytes(), path


def test_a_paused_job_is_resumed_by_the_same_call(client, rows):
    job = finetune(client, rows[:120], learning_rate=1e-3, max_steps=12)
    for event in job.events():
        if event.kind == "step":
            job.pause()
            break
    with pytest.raises(JobPaused):
        job.wait(progress=False)
    with pytest.raises(DataInvalid, match="give the same ones again"):
        client.resume(job.id)
    assert client.resume(job.id, rows[:120]).id == job.id
    again = finetune(client, rows[:120], learning_rate=1e-3, max_steps=12)
    assert again.id == job.id
    assert again.wait(progress=False).steps == 12
    started = next(event.info for event in again.events() if event.kind == "started")
    assert started.start_step > 0


def test_a_job_begun_twice_trains_once(client, rows):
    one = finetune(client, rows[:100], max_steps=8)
    two = finetune(client, rows[:100], max_steps=8)
    assert one.id == two.id
    assert one.wait(progress=False) is two.wait(progress=False)


def test_progress_on_a_stream_is_that_of_the_command(client, rows, capsys):
    job = finetune(client, rows[:64])
    job.wait()
    shown = capsys.readouterr().out
    assert "step 4/4  loss" in shown
    assert f"Predict: privtune predict {job.id}" in shown


def test_a_job_in_a_notebook_is_html(client, trained, rows, monkeypatch):
    html = trained._repr_html_()
    assert 'value="4" max="4"' in html
    assert "finished" in html
    assert "Privacy" in html
    drawn = []

    class Handle:
        def update(self, job):
            drawn.append(job._repr_html_())

    class Shell:
        kernel = None

    class IPython:
        get_ipython = staticmethod(Shell)

        class display:
            @staticmethod
            def display(job, *, display_id):
                drawn.append(job._repr_html_())
                return Handle()

    monkeypatch.setitem(notebook.sys.modules, "IPython", IPython)
    monkeypatch.setitem(notebook.sys.modules, "IPython.display", IPython.display)
    job = finetune(client, rows[:72])
    job.wait()
    assert len(drawn) >= 2
    assert "finished" in drawn[-1]
    assert job.id in client._repr_html_()


def test_refusals_are_those_of_the_command(client, world, rows, said, owner):
    """The same class and the same line, and nothing was begun."""
    before = [job.id for job in client.jobs()]
    calls = [
        (InvalidInput, {"max_length": 1}, ("--max-length", "1")),
        (InvalidInput, {"tail": 1, "labels": "shared"}, ("--tail", "1", "--labels", "shared")),
        (InvalidInput, {"protect": "everything"}, ("--protect", "everything")),
    ]
    for kind, more, options in calls:
        with pytest.raises(kind) as caught:
            client.finetune(world.data.path, model="enc", **more)
        done = owner("finetune", "--model", "enc", "--data", world.data.path, *options)
        assert (done.line, done.code) == (caught.value.message, caught.value.exit_code)
    with pytest.raises(InvalidInput, match="did you mean learning_rate"):
        finetune(client, rows, learningrate=1.0)
    with pytest.raises(DataInvalid, match='data, row 2, column "label": the label is missing'):
        finetune(client, [rows[0], {"text": "w1"}, *rows])
    with pytest.raises(InvalidInput, match="a list of dicts or a dict of columns is expected, not int"):
        finetune(client, 7)
    with pytest.raises(Unauthenticated):
        finetune(
            Client(world.cloud.http_url, api_key="pt-" + "x" * 40, home=world.settings.home, say=said.append), rows
        )
    assert [job.id for job in client.jobs()] == before


def test_the_policy_refuses_by_an_exception(world, rows, tmp_path):
    home = tmp_path / "home"
    home.mkdir(mode=0o700)
    (home / "policy.yaml").write_text("protections: [names]\n")
    with Client(world.cloud.http_url, api_key=world.cloud.api_key, home=home, say=lambda _: None) as client:
        before = len(client.jobs())
        with pytest.raises(PolicyRefused):
            finetune(client, rows)
        assert len(client.jobs()) == before


def test_a_job_elsewhere_says_so(client, trained):
    with pytest.raises(JobConflict, match="does not train in this process"):
        client.job(trained.id).wait()


def test_it_takes_settings_from_environment_and_file(world, tmp_path, monkeypatch):
    file = tmp_path / "mine.yaml"
    file.write_text(f"cloud: http://127.0.0.1:1\napi_key: {world.cloud.api_key}\nfinetune: {{epochs: 2}}\n")
    monkeypatch.setenv("PRIVTUNE_CLOUD", world.cloud.http_url)
    monkeypatch.delenv("PRIVTUNE_API_KEY", raising=False)
    with Client(home=world.settings.home, config=file) as client:
        assert {"enc", "dec"} <= {one["id"] for one in client.models()}


def test_the_twins_for_asyncio(world, rows):
    async def whole():
        async with AsyncClient(
            world.cloud.http_url, api_key=world.cloud.api_key, home=world.settings.home, say=lambda _: None
        ) as client:
            job = await client.finetune(rows[:80], model="enc", protect="none", config=TINY)
            kinds = [event.kind async for event in job.events()]
            result = await job.wait(progress=False)
            assert kinds[-1] == "finished"
            assert await job.status() == "succeeded"
            return result, await job.model.predict("w1 w2")

    result, prediction = asyncio.run(whole())
    assert result.steps == 4
    assert prediction.label in result.label_names
