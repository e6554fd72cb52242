"""What clients send: what asks for nothing special is answered, the rest is refused in one line."""

import json

import pytest
import torch
from fastapi import FastAPI
from fastapi.testclient import TestClient

from privtune.device.endpoint.endpoint_app import job_of
from privtune.device.endpoint.openai_errors import install_error_handlers
from privtune.device.endpoint.openai_requests import ChatRequest, CompletionRequest, EmbeddingRequest
from privtune.device.inference.generation.sampling import Sampler, Sampling


@pytest.fixture(scope="module")
def client():
    app = FastAPI()
    install_error_handlers(app)

    @app.post("/chat")
    def chat(asked: ChatRequest):
        return {"said": [(one.role, one.content) for one in asked.conversation()], "sampling": asked.sampling()}

    @app.post("/text")
    def text(asked: CompletionRequest):
        return {"said": asked.prompts, "sampling": asked.sampling()}

    @app.post("/embed")
    def embed(asked: EmbeddingRequest):
        return {"said": asked.texts}

    return TestClient(app, raise_server_exceptions=False)


@pytest.mark.parametrize(
    ("route", "fields"),
    [
        ("chat", {"messages": [{"role": "user", "content": "a\ud83d"}]}),
        ("chat", {"messages": [{"role": "user", "content": "a"}], "stop": "\udc00"}),
        ("chat", {"messages": [{"role": "user", "content": "a"}], "\ud83d": 1}),
        ("text", {"prompt": "a\ud83d"}),
        ("text", {"prompt": ["a", "\udfff"]}),
        ("text", {"prompt": "a", "model": "\ud83d"}),
        ("embed", {"input": ["\ud83d"]}),
    ],
)
def test_half_of_a_character_is_the_clients_mistake(client, route, fields):
    body, kind = json.dumps({"model": "m"} | fields), {"content-type": "application/json"}
    found = client.post(f"/{route}", content=body, headers=kind)
    assert found.status_code == 400
    assert "half of a character (U+D" in found.json()["error"]["message"]


USER = {"role": "user", "content": "hello"}
CHAT = {"messages": [USER]}
# What each client sends beside the model when its user sets nothing, or leaves a setting at its neutral value.
SENT = [
    ("openai-python", "chat", CHAT),
    ("openai-python", "chat", CHAT | {"n": 1, "stream": False, "store": None, "metadata": {}, "seed": None}),
    ("openai-python", "text", {"prompt": "a", "best_of": 1, "echo": False, "logprobs": None, "suffix": None}),
    ("openai-python", "text", {"prompt": [[1, 2], [3]]}),
    ("openai-python", "embed", {"input": ["a"], "encoding_format": "base64"}),
    ("openai-node", "chat", CHAT | {"stream": True, "stream_options": {"include_usage": True}}),
    ("openai-node", "chat", CHAT | {"stream": None, "stop": None, "max_tokens": None, "tool_choice": "none"}),
    ("openai-node", "embed", {"input": "a", "encoding_format": "base64"}),
    ("langchain", "chat", CHAT | {"n": 1, "temperature": 0.7, "stream": False, "top_p": 1, "logprobs": False}),
    ("langchain", "chat", {"messages": [USER, {"role": "assistant", "content": None, "tool_calls": []}, USER]}),
    ("langchain", "embed", {"input": [[1, 2, 3], [4]], "encoding_format": "base64"}),
    ("litellm", "chat", CHAT | {"extra_body": None, "user": "", "top_k": -1, "min_p": 0, "repetition_penalty": 1.0}),
    ("litellm", "chat", {"messages": [{"role": "system", "content": ""}, USER], "response_format": {"type": "text"}}),
    # As langchain-openai 1.7 and litellm 1.110 sent it to a server that wrote it down.
    (
        "langchain",
        "chat",
        CHAT
        | {"stream": True, "frequency_penalty": 0.0, "logprobs": False, "max_completion_tokens": 5, "n": 1, "seed": 1}
        | {"stream_options": {"include_usage": True}, "temperature": 0.0, "top_p": 1.0},
    ),
    (
        "langchain",
        "chat",
        {
            "messages": [
                USER,
                {"content": "", "role": "assistant"},
                {"content": [{"type": "text", "text": "z"}], "role": "assistant"},
                {"content": [{"type": "text", "text": "q"}], "name": "bob", "role": "user"},
            ]
        },
    ),
    (
        "langchain",
        "text",
        {"prompt": ["a"], "frequency_penalty": 0, "logprobs": None, "max_tokens": 256, "n": 1, "presence_penalty": 0}
        | {"seed": None, "temperature": 0.7, "top_p": 1},
    ),
    ("litellm", "chat", CHAT | {"top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0}),
    ("litellm", "embed", {"input": [1, 2, 3], "encoding_format": None, "dimensions": None}),
    ("llm", "chat", CHAT | {"stream": True, "stream_options": {"include_usage": True}, "tools": []}),
    ("llm", "text", {"prompt": "a", "stream": True, "stop": "", "top_p": 0}),
    ("open-webui", "chat", CHAT | {"stream": True, "stop": [], "top_p": 0, "presence_penalty": 0.0, "logit_bias": {}}),
    ("open-webui", "chat", CHAT | {"stop": [""], "top_k": 0, "min_p": 0.0, "max_tokens": None, "frequency_penalty": 0}),
    ("open-webui", "chat", {"messages": [{"role": "developer", "content": " "}, {**USER, "name": "a"}]}),
    (
        "open-webui",
        "chat",
        {"messages": [USER, {"role": "assistant", "content": "", "reasoning_content": "hm", "annotations": []}, USER]},
    ),
    (
        "openai-python",  # an answer of this endpoint, as `message.model_dump()` gives it back
        "chat",
        {
            "messages": [
                USER,
                {"role": "assistant", "content": "b", "refusal": None, "annotations": None, "audio": None}
                | {"function_call": None, "tool_calls": None},
                {"role": "user", "content": [{"type": "text", "text": "c"}]},
            ]
        },
    ),
]


@pytest.mark.parametrize(("name", "route", "fields"), SENT, ids=[f"{name}-{at}" for at, (name, *_) in enumerate(SENT)])
def test_what_real_clients_send_is_taken(client, name, route, fields):
    found = client.post(f"/{route}", json={"model": "m"} | fields)
    assert found.status_code == 200, found.json()
    said = found.json()["said"]
    assert all(role in ("user", "assistant") for role, _ in said) if route == "chat" else len(said) > 0
    if "sampling" in found.json():
        sampling = found.json()["sampling"]
        assert (sampling["top_p"], sampling["top_k"], sampling["stop"]) == (1, 0, [])
        assert sampling["temperature"] == (0 if fields.get("top_p") == 0 else fields.get("temperature", 1))


@pytest.mark.parametrize(
    ("route", "fields", "words"),
    [
        ("text", {"prompt": "a", "best_of": 2}, "best_of is not supported"),
        ("chat", CHAT | {"min_p": 0.1}, "min_p is not supported"),
        ("chat", CHAT | {"repetition_penalty": 1.2}, "repetition_penalty is not supported"),
        ("chat", CHAT | {"reasoning_effort": "high"}, "reasoning_effort is not supported"),
        ("chat", CHAT | {"top_k": -2}, "top_k"),
        ("chat", CHAT | {"top_p": -0.1}, "top_p"),
        ("chat", {"messages": [USER, {"role": "assistant", "tool_calls": [{"id": "1"}]}]}, "tool_calls"),
        ("chat", {"messages": [{"role": "system", "content": ""}]}, "messages"),
        ("chat", {"messages": [{"role": "user", "content": ""}]}, "content is empty"),
        ("text", {"prompt": []}, "prompt"),
        ("text", {"prompt": [[]]}, "prompt"),
        ("text", {"prompt": [-1]}, "prompt"),
        ("text", {"prompt": ["a"] * 65}, "64 prompts"),
        ("embed", {"input": []}, "input"),
        ("embed", {"input": "a", "dimensions": 8}, "dimensions is not supported"),
    ],
)
def test_what_would_change_an_answer_is_refused_by_name(client, route, fields, words):
    found = client.post(f"/{route}", json={"model": "m"} | fields)
    assert found.status_code == 400
    assert words in found.json()["error"]["message"]


@pytest.mark.parametrize("temperature", [1e-39, 1e-30, 5e-324, 1e-6])
def test_a_tiny_temperature_takes_the_likeliest_token(temperature):
    logits_V = torch.tensor([1.0, 50.0, 49.9, -1e30])
    for top_p, top_k in ((1.0, 0), (1e-39, 0), (0.5, 2**40)):
        sampler = Sampler(Sampling(temperature=temperature, top_p=top_p, top_k=top_k))
        assert [sampler.choose(logits_V) for _ in range(20)] == [1] * 20


def test_the_job_apis_name_of_a_tuned_model_means_its_job():
    assert job_of("ft:org/model:alice:my-suffix:abc123") == "ftjob-abc123"
    assert job_of("ftjob-abc123") == "ftjob-abc123"
