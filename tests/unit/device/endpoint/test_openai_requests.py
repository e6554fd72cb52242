"""What clients send: what asks for nothing special is answered, the rest is refused in one line."""

import json

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from privtune.device.endpoint.openai_errors import install_error_handlers
from privtune.device.endpoint.openai_requests import ChatRequest, CompletionRequest, EmbeddingRequest


@pytest.fixture(scope="module")
def client():
    app = FastAPI()
    install_error_handlers(app)

    @app.post("/chat")
    def chat(asked: ChatRequest):
        return [[message.role, message.content] for message in asked.conversation()] and asked.sampling()

    @app.post("/text")
    def text(asked: CompletionRequest):
        return asked.sampling()

    @app.post("/embed")
    def embed(asked: EmbeddingRequest):
        return len(asked.texts)

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
