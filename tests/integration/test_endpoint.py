"""`privtune serve` as a real process before a real cloud process, asked by the real `openai` client."""

import json
import os
import re
import signal
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import openai
import pytest

from privtune.device.account.ledger import outcomes
from privtune.device.inference.generate import generate_texts
from privtune.device.inference.generation.sampling import Sampling
from tests.support.chats import CHATML, byte_tokenizer
from tests.support.forked import Forked
from tests.support.running import ledger_entries, wait_until
from tests.support.world import ProcessCloud
from tests.support.writing import chat_world, tune_chat

pytestmark = pytest.mark.timeout(600)
MESSAGES = [{"role": "user", "content": "say it"}]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    built = chat_world(tmp_path_factory.mktemp("endpoint"), ProcessCloud)
    yield built
    built.cloud.stop()


@pytest.fixture(scope="module")
def job(world):
    return tune_chat(world)


class Served:
    """The process; its client asks greedily by default."""

    def __init__(self, world, job, *arguments, **environment):
        arguments = ["serve", job, "--port", "0", *arguments]
        variables = os.environ | world.environment | environment
        log = world.folder / f"serve-{time.monotonic_ns()}.log"
        self.process = Forked("privtune.device.cli", arguments, environment=variables, output=log)
        self.url = ""

        def said():
            if found := re.search(r"http://\S+(?=\s)", log.read_text() if log.exists() else ""):
                self.url = found[0]
            return self.url or self.process.poll() is not None

        wait_until(said, seconds=120)
        self.client = openai.OpenAI(base_url=self.url, api_key="unused", max_retries=0, timeout=120)

    def stop(self, number=signal.SIGINT):
        self.process.send_signal(number)
        return self.process.wait(60)


@pytest.fixture(scope="module")
def served(world, job):
    found = Served(world, job)
    yield found
    found.process.kill()
    found.process.wait(10)


def generations(world):
    return [row for row in outcomes(ledger_entries(world)) if row["source"] == "generations"]


def open_entries(world):
    return [row for row in generations(world) if row["open"]]


def test_models(served, job):
    assert [model.id for model in served.client.models.list()] == [job]
    card = served.client.models.retrieve(job)
    assert card.owned_by == "you"
    assert 0 <= time.time() - card.created < 3600
    name = f"ft:chatty:alice::{job.removeprefix('ftjob-')}"  # what the job API calls it
    assert served.client.models.retrieve(name).id == name
    assert served.client.completions.create(model=name, prompt="a", max_tokens=1).model == name
    with pytest.raises(openai.NotFoundError, match=job):
        served.client.models.retrieve("gpt-4o")


def test_a_chat_whole_and_streamed_is_what_the_api_writes(served, world, job):
    asked = {"model": job, "messages": MESSAGES, "temperature": 0, "max_tokens": 12}
    whole = served.client.chat.completions.create(**asked)
    choice = whole.choices[0]
    assert choice.message.role == "assistant"
    pieces = list(served.client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    streamed = "".join(piece.choices[0].delta.content or "" for piece in pieces if piece.choices)
    assert pieces[0].choices[0].delta.role == "assistant"
    assert [piece.choices[0].finish_reason for piece in pieces if piece.choices][-1] == choice.finish_reason
    expected = generate_texts(job, ["say it"], world.settings, sampling=Sampling(max_new_tokens=12))[0]
    assert choice.message.content == streamed == expected.text
    assert choice.finish_reason == expected.finish
    usage = pieces[-1].usage
    assert usage == whole.usage
    assert (usage.prompt_tokens, usage.completion_tokens) == (expected.prompt_tokens, len(expected.tokens))


def test_texts_whole_streamed_and_several_at_once(served, job):
    asked = {"model": job, "temperature": 0, "max_tokens": 8}
    alone = [served.client.completions.create(**asked, prompt=text).choices[0].text for text in ("one", "two")]
    both = served.client.completions.create(**asked, prompt=["one", "two"])
    assert [choice.text for choice in both.choices] == alone
    assert [choice.index for choice in both.choices] == [0, 1]
    streamed = ["", ""]
    for piece in served.client.completions.create(**asked, prompt=["one", "two"], stream=True):
        streamed[piece.choices[0].index] += piece.choices[0].text
    assert streamed == alone


def test_stop_and_seed(served, job):
    asked = {"model": job, "prompt": "one", "max_tokens": 24}
    drawn = [served.client.completions.create(**asked, temperature=1, seed=seed).choices[0].text for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]
    stop = next(char for char in drawn[0] if char.isprintable())
    ended = served.client.completions.create(**asked, temperature=1, seed=1, stop=stop).choices[0]
    assert ended.text == drawn[0].partition(stop)[0]
    assert ended.finish_reason == "stop"


def test_log_probabilities_whole_and_streamed(served, world, job):
    asked = {"model": job, "messages": MESSAGES, "temperature": 0, "max_tokens": 6, "logprobs": True, "top_logprobs": 3}
    choice = served.client.chat.completions.create(**asked).choices[0]
    sampling = Sampling(max_new_tokens=6, alternatives=3)
    expected = generate_texts(job, ["say it"], world.settings, sampling=sampling)[0].odds
    said = choice.logprobs.content
    assert [one.logprob for one in said] == pytest.approx([odds.logprob for odds in expected], abs=1e-5)
    assert [len(one.top_logprobs) for one in said] == [3] * len(expected)
    assert b"".join(bytes(one.bytes or one.token.encode()) for one in said)
    whole = [one for one in said if one.bytes is not None]
    assert all(bytes(one.bytes).decode() == one.token for one in whole)
    pieces = [piece.choices[0] for piece in served.client.chat.completions.create(**asked, stream=True)]
    streamed = [one for piece in pieces if piece.logprobs for one in piece.logprobs.content]
    assert [one.token for one in streamed] == [one.token for one in said]
    older = {"model": job, "prompt": "one", "temperature": 0, "max_tokens": 6}
    assert served.client.completions.create(**older).choices[0].logprobs is None
    found = served.client.completions.create(**older, logprobs=2).choices[0].logprobs
    assert len(found.tokens) == len(found.token_logprobs) == len(found.text_offset) == len(found.top_logprobs)
    assert found.text_offset[0] == 0
    assert [max(top.values()) for top in found.top_logprobs] == found.token_logprobs  # written greedily


def test_several_answers_to_one_prompt(served, world, job):
    asked = {"model": job, "messages": MESSAGES, "max_tokens": 12, "n": 3, "seed": 5}
    before = len(generations(world))
    whole = served.client.chat.completions.create(**asked)
    assert [choice.index for choice in whole.choices] == [0, 1, 2]
    assert len({choice.message.content for choice in whole.choices}) == 3  # one seed makes no answer twice
    alone = served.client.chat.completions.create(**asked | {"n": 1})
    assert alone.choices[0].message.content == whole.choices[0].message.content
    assert alone.usage.prompt_tokens == whole.usage.prompt_tokens  # of one prompt
    made = generations(world)[before:]
    assert len(made) == 4  # each answer is entered: each tells something of the prompt
    assert sum(row["rows"] for row in made[1:3]) < 3 * made[0]["rows"]  # whose rows are drawn once
    both = served.client.completions.create(model=job, prompt=["one", "two"], n=2, max_tokens=4, temperature=0)
    assert [choice.index for choice in both.choices] == [0, 1, 2, 3]
    texts = [choice.text for choice in both.choices]
    assert (texts[0], texts[2]) == (texts[1], texts[3])
    with pytest.raises(openai.BadRequestError, match="at most 64"):
        served.client.completions.create(model=job, prompt=["a"] * 8, n=9)


def test_responses_whole_and_streamed(served, world, job):
    asked = {"model": job, "input": "say it", "temperature": 0, "max_output_tokens": 12}
    expected = generate_texts(job, ["say it"], world.settings, sampling=Sampling(max_new_tokens=12))[0]
    whole = served.client.responses.create(**asked)
    assert whole.output_text == expected.text
    assert whole.status == ("incomplete" if expected.finish == "length" else "completed")
    assert whole.store is False
    assert (whole.usage.input_tokens, whole.usage.output_tokens) == (expected.prompt_tokens, len(expected.tokens))
    parts = [{"role": "user", "content": [{"type": "input_text", "text": "say it"}]}]
    assert served.client.responses.create(**asked | {"input": parts}).output_text == expected.text
    more = {"include": ["message.output_text.logprobs"], "top_logprobs": 2}
    events = list(served.client.responses.create(**asked, **more, stream=True))
    final = events[-1].response
    assert events[-1].type == f"response.{whole.status}"
    assert final.output_text == expected.text
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == expected.text
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert [event.type for event in events][:4] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
    ]
    assert len(final.output[0].content[0].logprobs[0].top_logprobs) == 2
    instructed = served.client.responses.create(**asked | {"instructions": "be brief"})
    chat = [{"role": "system", "content": "be brief"}, *MESSAGES]
    same = served.client.chat.completions.create(model=job, messages=chat, temperature=0, max_tokens=12)
    assert instructed.output_text == same.choices[0].message.content


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id is not supported"),
        ({"input": [{"type": "function_call_output", "call_id": "c", "output": "x"}]}, "function_call_output"),
        ({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]}, "reads text alone"),
        ({"tools": [{"type": "web_search"}]}, "tools is not supported"),
        ({"input": []}, "at least 1"),
    ],
)
def test_a_response_that_can_not_be_made_is_refused(served, job, changes, words):
    with pytest.raises(openai.BadRequestError) as refused:
        served.client.responses.create(**{"model": job, "input": "say it"} | changes)
    assert words in refused.value.body["message"]


def test_embeddings_are_made_here(served, world, job):
    before = len(generations(world))
    found = served.client.embeddings.create(model=job, input=["say it", "say it", "something else"])
    vectors = np.array([item.embedding for item in found.data])
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(vectors[0], vectors[1], atol=1e-6)
    assert vectors[0] @ vectors[2] < 0.999
    plain = served.client.embeddings.create(model=job, input="say it", encoding_format="float").data[0].embedding
    np.testing.assert_allclose(plain, vectors[0], atol=1e-6)
    assert len(generations(world)) == before


def test_several_clients_at_once_get_their_own_answers(served, job):
    def ask(text):
        asked = {"model": job, "prompt": text, "temperature": 0, "max_tokens": 10}
        return served.client.completions.create(**asked).choices[0].text

    texts = [f"text {number}" for number in range(6)]
    with ThreadPoolExecutor(6) as pool:
        together = list(pool.map(ask, texts))
    assert together == [ask(text) for text in texts]
    assert len(set(together)) > 1


def test_a_strange_temperature_of_one_client_ends_no_answer(served, job):
    asked = {"model": job, "prompt": "one", "max_tokens": 60}
    with ThreadPoolExecutor(2) as pool:
        other = pool.submit(served.client.completions.create, **asked, temperature=0)
        strange = served.client.completions.create(**asked, temperature=1e-39)
        assert strange.choices[0].text == other.result().choices[0].text


def test_token_ids_of_the_models_own_tokenizer(served, job):
    ids = byte_tokenizer(CHATML)("AB")["input_ids"]
    asked = {"model": job, "max_tokens": 4, "temperature": 0}
    texts = [served.client.completions.create(**asked, prompt=p).choices[0].text for p in ("AB", ids, [ids])]
    vectors = [served.client.embeddings.create(model=job, input=i).data[0].embedding for i in ("AB", ids)]
    assert texts[0] == texts[1] == texts[2]
    assert vectors[0] == vectors[1]
    with pytest.raises(openai.BadRequestError, match="vocabulary"):
        served.client.embeddings.create(model=job, input=[[100_000]])


def test_a_client_that_hangs_up_ends_the_writing(served, world, job):
    before = len(generations(world))
    stream = served.client.completions.create(model=job, prompt="hang up", max_tokens=450, stream=True)
    for _, _ in zip(range(3), stream, strict=False):
        pass
    stream.close()
    patient = served.client.with_options(timeout=0.3)
    with pytest.raises(openai.APITimeoutError):
        patient.completions.create(model=job, prompt="too slow", max_tokens=450, temperature=0)
    wait_until(lambda: not open_entries(world))
    ended = generations(world)[before:]
    assert len(ended) == 2
    assert all(not row["open"] and row["rows"] < 400 for row in ended)


@pytest.mark.parametrize(
    ("changes", "param", "words"),
    [
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, None, "tools is not supported"),
        ({"n": 17}, "n", "less than or equal to 16"),
        ({"top_logprobs": 2}, None, "top_logprobs needs logprobs: true"),
        ({"messages": [{"role": "user", "content": "x" * 600}]}, "prompt", "at most 512; shorten"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages", "role"),
        ({"messages": []}, "messages", "at least 1"),
        ({"temperature": 9}, "temperature", "less than or equal to 2"),
        ({"max_tokens": 0}, "max_tokens", "greater than or equal to 1"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
            "messages",
            "",
        ),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_what_can_not_be_answered_is_refused_in_openais_shape(served, job, changes, param, words, stream):
    with pytest.raises(openai.BadRequestError) as refused:
        served.client.chat.completions.create(**{"model": job, "messages": MESSAGES, "stream": stream} | changes)
    assert words in refused.value.body["message"]
    assert refused.value.body["param"] == param
    assert refused.value.body["type"] == "invalid_request_error"


def test_an_unknown_model_route_and_body_are_refused(served):
    with pytest.raises(openai.NotFoundError, match="there are: ftjob"):
        served.client.chat.completions.create(model="gpt-4o", messages=MESSAGES)
    missing = httpx.get(f"{served.url}/files")
    assert (missing.status_code, missing.json()["error"]["type"]) == (404, "not_found_error")
    broken = httpx.post(f"{served.url}/completions", content="{", headers={"content-type": "application/json"})
    assert (broken.status_code, broken.json()["error"]["code"]) == (400, "INVALID_INPUT")


@pytest.mark.parametrize(
    ("headers", "words"),
    [
        ({"host": "evil.example"}, "Host header"),
        ({"host": "127.0.0.1.evil.example:8000"}, "Host header"),
        ({"origin": "https://evil.example"}, "other origins"),
        ({"origin": "null"}, "other origins"),
    ],
)
def test_web_pages_are_refused(served, job, headers, words):
    body = json.dumps({"model": job, "prompt": "x", "max_tokens": 1})
    for method, path in (("GET", "/models"), ("POST", "/completions"), ("OPTIONS", "/completions")):
        found = httpx.request(method, served.url + path, headers=headers, content=body)
        assert found.status_code == 403
        assert words in found.json()["error"]["message"]
        assert not any(name.startswith("access-control") for name in found.headers)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_ends_cleanly_while_it_writes(world, job, number):
    served = Served(world, job, PRIVTUNE_ENDPOINT_KEY="a-key-of-16-chars")
    with pytest.raises(openai.AuthenticationError, match="PRIVTUNE_ENDPOINT_KEY"):
        served.client.models.list()
    client = served.client.with_options(api_key="a-key-of-16-chars")
    stream = client.completions.create(model=job, prompt=f"end {number}", max_tokens=450, stream=True)
    next(iter(stream))
    assert served.stop(number) == 0
    assert open_entries(world) == []


def test_addresses_of_other_machines_need_a_flag_and_a_key(world, job):
    for arguments in (["--host", "0.0.0.0"], ["--host", "0.0.0.0", "--allow-remote"]):
        served = Served(world, job, *arguments)
        assert served.process.wait(60) == 2
        assert served.url == ""


def test_a_port_that_is_taken_is_told(world, job, served):
    port = served.url.rpartition(":")[2].partition("/")[0]
    assert Served(world, job, "--port", port).process.wait(60) == 12
