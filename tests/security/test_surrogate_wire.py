"""With surrogates, the people in a text are in no frame that leaves, not even for whoever reads every vector.

The cut is at the embedding and there is no noise, so the nearest prototypes spell exactly what was sent.
"""

from __future__ import annotations

import json
import re
import threading
from dataclasses import replace

import pytest
from typer.testing import CliRunner

from privtune.device.agent.agent import Agent
from privtune.device.agent.agent_config import load_agent_config
from privtune.device.cli import app
from privtune.device.data.messages import ChatMessage
from privtune.device.endpoint.endpoint_app import create_app
from privtune.device.endpoint.worker import Worker
from privtune.device.home.run_request import RunRequest
from privtune.device.inference.evaluate import evaluate
from privtune.device.inference.generate import generate_texts
from privtune.device.inference.generation.sampling import Sampling
from privtune.device.inference.predict import predict
from privtune.device.link.rest import ControlPlane
from privtune.device.training.submit import Consent, check_request, submit, train
from privtune.shared.errors import InvalidInput
from privtune.shared.modeling.bottom_package import bottom_from_model
from tests.support.planted import (
    MAX_LENGTH,
    OWN_TERM,
    PEOPLE,
    WORDS,
    Speller,
    conversations,
    messages,
    planted,
    planted_world,
    texts,
)
from tests.support.proxy import Proxy
from tests.support.running import ledger_entries
from tests.support.world import ProcessCloud, Watcher

CHANGES = {"cut": 0, "surrogates": {"replace": "identifying"}}
TRAIN = {"max_steps": 3, "batch_size": 4, "accumulation": 1, "max_length": MAX_LENGTH}
NAME, PHONE, MAIL = PEOPLE[0]
TALK = [
    ChatMessage("user", f"I am {NAME}, and the soup was cold."),
    ChatMessage("assistant", f"Sorry, {NAME}."),
    ChatMessage("user", f"Call {PHONE} about {OWN_TERM}."),
]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A cloud behind recording proxies, for REST and for frames."""
    built = planted_world(tmp_path_factory.mktemp("planted"), ProcessCloud)
    with Proxy(built.cloud.http_url.removeprefix("http://")) as rest, Proxy(built.settings.grpc_address) as frames:
        built.settings = built.device(grpc_address=frames.address)
        built.rest, built.frames = rest, frames
        yield built
    built.cloud.stop()


def finetune(world, spec, data, validation=None):
    """A job as `privtune finetune` runs it, through the proxies."""
    request = RunRequest(cloud="", spec=spec, train=data, validation=validation)
    checked = check_request(request, world.settings.home, Consent(), lambda _: None)
    watcher = Watcher()
    with ControlPlane(f"http://{world.rest.address}", world.settings.api_key) as control:
        job_id, asked = submit(checked, world.settings.home, control, lambda _: None, new=True)
        result = train(job_id, asked, world.settings, watcher, threading.Event())
    return job_id, result, watcher


@pytest.fixture(scope="module")
def classifier(world):
    """Training, evaluation of held-out records, predictions and an evaluation afterwards."""
    job_id, result, watcher = finetune(world, world.spec(train=TRAIN, **CHANGES), world.data, world.validation)
    predictions = predict(job_id, texts(), world.settings)
    evaluate(job_id, world.validation, world.settings)
    return job_id, result, watcher, predictions


@pytest.fixture(scope="module")
def writer(world):
    """A language model whose gradients leave, answers to prompts and conversations, and an evaluation of answers."""
    spec = world.spec(model="chatty", task="causal-lm", train=TRAIN, **CHANGES)
    data = conversations(world)
    job_id, result, watcher = finetune(world, spec, data)
    sampling = Sampling(max_new_tokens=8, ignore_end=True)
    answers = generate_texts(job_id, [*texts()[:2], TALK], world.settings, sampling=sampling)
    written = evaluate(job_id, data, world.settings, generate=2, max_new_tokens=4).written
    return job_id, result, watcher, (answers, written)


def all_spelled(world, job_id, model, task):
    speller = Speller(bottom_from_model(str(world.models[model]), task, 0, num_labels=2, seed=0))
    return "\n".join(speller.spell(message) for message in messages(world, job_id))


def leaked(text):
    return [word for word in planted() if word.lower() in text.lower()]


def test_the_search_can_find_what_it_looks_for():
    assert set(leaked("\n".join(texts()))) == set(planted())


def test_no_frame_of_a_classifier_spells_the_people_of_its_records(world, classifier):
    job_id, _, _, predictions = classifier
    assert len(predictions) == len(texts())
    found = all_spelled(world, job_id, "enc", "classification")
    assert leaked(found) == []
    assert all(words in found for words in WORDS), "the vectors are readable, or the search shows nothing"


def test_an_agent_replaces_what_a_job_and_the_owners_file_ask_for(world):
    file = world.folder / "agent.yaml"
    file.write_text("datasets:\n  people: {path: train.tsv, own_terms: terms.txt}\n")

    class Screen(Watcher):
        def finished(self, result):
            self.result = result

    screen = Screen()
    with ControlPlane(f"http://{world.rest.address}", world.settings.api_key) as control:
        job_id = control.create_job(world.spec(training_file="device://people", train=TRAIN, **CHANGES))["id"]
        Agent(
            control=control,
            config=load_agent_config(file),
            settings=world.settings,
            screen=screen,
            stop=threading.Event(),
            once=True,
            poll_s=0.1,
        ).run()
    assert screen.result.replacement.coverage.kinds["the owner's term"] == len(PEOPLE)
    found = all_spelled(world, job_id, "enc", "classification")
    assert leaked(found) == []
    assert all(words in found for words in WORDS)


def test_no_frame_of_a_language_model_spells_the_people_of_its_records(world, writer):
    job_id, _, _, (answers, written) = writer
    assert len(answers) == 3
    assert [one.references[0].startswith("Dear ") for one in written.questions] == [True, True]
    assert any(name.split()[0] in one.references[0] for one in written.questions for name, _, _ in PEOPLE)
    found = all_spelled(world, job_id, "chatty", "causal-lm")
    assert leaked(found) == []
    assert all(words in found for words in WORDS)


def test_no_byte_of_a_frame_or_of_a_rest_body_has_them(world, classifier, writer):
    for proxy in (world.rest, world.frames):
        for device in (True, False):
            raw = proxy.bytes_from(device=device)
            assert len(raw) > 500
            assert [word for word in planted() if word.encode().lower() in raw.lower()] == []
    secrets = [
        json.loads((world.settings.home / "jobs" / job[0] / "job.json").read_text())["surrogate_secret"]
        for job in (classifier, writer)
    ]
    raw = world.rest.bytes_from(device=True) + world.frames.bytes_from(device=True)
    assert not any(secret.encode() in raw or bytes.fromhex(secret) in raw for secret in secrets)


def test_an_endpoint_sends_no_names_and_gives_them_back(world, writer):
    """Streamed and whole, chat and plain prompts; ids are refused, because nothing can be found in them."""
    from fastapi.testclient import TestClient

    job_id = writer[0]
    worker = Worker(job_id, world.settings, lambda _: None)
    worker.start()
    try:
        client = TestClient(create_app({job_id: worker}, None, loopback_only=False))
        ask = {"model": job_id, "max_tokens": 4, "temperature": 0}
        talk = [{"role": one.role, "content": one.content} for one in TALK]
        whole = client.post("/v1/chat/completions", json={**ask, "messages": talk})
        assert whole.status_code == 200
        streamed = client.post("/v1/chat/completions", json={**ask, "messages": talk, "stream": True})
        pieces = [json.loads(line) for line in re.findall(r"data: (\{.*\})", streamed.text)]
        text = "".join(piece["choices"][0]["delta"].get("content") or "" for piece in pieces)
        assert text == whole.json()["choices"][0]["message"]["content"]
        assert client.post("/v1/completions", json={**ask, "prompt": texts()[0]}).status_code == 200
        refused = client.post("/v1/completions", json={**ask, "prompt": [5, 6, 7]})
        assert refused.status_code == 400
        assert "can't find it in token ids; send the text instead" in refused.json()["error"]["message"]
    finally:
        worker.stop()
    assert leaked(all_spelled(world, job_id, "chatty", "causal-lm")) == []


def test_report_ledger_and_screen_say_what_was_replaced(world, classifier):
    job_id, result, watcher, _ = classifier
    assert result.replacement == watcher.starts[0].replacement
    counts = result.replacement.coverage
    assert counts.words > counts.replaced > 0
    assert any(name.startswith("spacy ") for name in result.replacement.recognisers)
    statement = result.statement
    assert (statement.row, statement.guarantee) == ("surrogate", "none")
    assert "loss 0 between words of one type for what was replaced; words that were not replaced are in clear" in (
        statement.text
    )
    report = json.loads((world.settings.home / "jobs" / job_id / "report.json").read_text())
    assert report["replacement"]["coverage"]["words"] == counts.words
    entries = [one for one in ledger_entries(world) if one["kind"] == "admitted" and one["job"] == job_id]
    assert {one["statement"]["row"] for one in entries} == {"surrogate"}
    assert {one["part"] for one in entries} == {"train", "validation", "predict"}
    shown = CliRunner().invoke(app, ["ledger", "--home", str(world.settings.home), "--job", job_id]).output
    assert shown.count("none + surrogates") == len(entries)
    again = [one for one in entries if one["part"] == "validation"][1]
    assert again["records"] == 0, "held-out records keep their surrogates: evaluating them again draws nothing"


def test_a_job_that_replaces_nothing_refuses_the_owners_terms(world):
    request = RunRequest(
        cloud="", spec=world.spec(cut=0), train=world.data, validation=replace(world.validation, own_terms=None)
    )
    with pytest.raises(InvalidInput, match="this job replaces nothing: add --surrogates identifying"):
        check_request(request, world.settings.home, Consent(protection="none"), lambda _: None)
