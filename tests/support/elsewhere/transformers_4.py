"""Loads an export by the code on its card, runs texts, and prints what it gives as JSON.

python transformers_4.py '{"folder": DIR, "base": DIR, "texts": [...], "chat": [messages] or null, "count": N}'
"""

import json
import re
import sys
from pathlib import Path

import torch
import transformers

ask = json.loads(sys.argv[1])
card = (Path(ask["folder"]) / "README.md").read_text()
code = re.search(r"```python\n(.*?)```", card, re.S)[1].replace("FOLDER", ask["folder"])
scope: dict = {}
exec(code.replace('"BASE"', repr(ask["base"])), scope)
model, tokenizer = scope["model"].eval(), scope["tokenizer"]
found = {"transformers": transformers.__version__, "id2label": model.config.id2label, "label2id": model.config.label2id}
with torch.no_grad():
    batch = [tokenizer(text, return_tensors="pt")["input_ids"] for text in ask["texts"]]
    found["logits"] = [model(input_ids=ids_1T).logits[0].tolist() for ids_1T in batch]
    if ask["chat"]:
        prompt = tokenizer.apply_chat_template(ask["chat"], add_generation_prompt=True, tokenize=False)
        ids_1T = tokenizer(prompt, add_special_tokens=False, return_tensors="pt")["input_ids"]
        settings = {}
        if (Path(ask["folder"]) / "generation_config.json").exists():
            settings["generation_config"] = transformers.GenerationConfig.from_pretrained(ask["folder"])
        out = model.generate(input_ids=ids_1T, max_new_tokens=ask["count"], do_sample=False, **settings)
        found["written"] = out[0, ids_1T.shape[1] :].tolist()
print(json.dumps(found))
