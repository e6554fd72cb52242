"""Nothing but declared frames leaves the device (invariant 2): a proxy records every byte of a run."""

import contextlib
import re
from dataclasses import replace

import numpy as np
import pytest
import torch

from privtune.device.data.encode import encode_classification
from privtune.device.inference.predict import predict
from privtune.shared.modeling.bottom_package import bottom_from_model
from tests.support.proxy import Proxy
from tests.support.running import run
from tests.support.world import InProcessCloud, Watcher, build_world

RUNS = {
    "cloud-trains": {"tail": 0},
    "tail-trains": {"tail": 1},
    "skip-trains": {"tail": 1, "skip": "tuned"},
    "ids": {"tail": 1, "skip": "tuned", "mechanism": {"name": "codes", "params": {"codes": 8, "dims": 2}}},
}


@contextlib.contextmanager
def recording(folder, changes):
    """A whole private job (training, evaluation, prediction) through a recording proxy."""
    world = build_world(folder, InProcessCloud)
    world.settings = replace(world.settings, local_model=str(world.models["enc"]))
    spec = world.spec(**{"mechanism": {"name": "dchi"}, "train": {"max_steps": 30}} | changes)
    with Proxy(world.settings.grpc_address) as proxy:
        settings = world.device(grpc_address=proxy.address)
        watcher = Watcher()
        job_id, result = run(world, spec, settings=settings, watcher=watcher)
        predictions = predict(job_id, ["w5 w6 w7 w8 w9 w10", "w50 w51 w52"], settings)
        yield world, spec, proxy, result, predictions, watcher
    world.cloud.stop()


@pytest.fixture(scope="module", params=RUNS.values(), ids=RUNS.keys())
def recorded(request, tmp_path_factory):
    """Such a job without a tail, with one, with a tuned skip, and one that sends ids."""
    with recording(tmp_path_factory.mktemp("wire"), request.param) as run:
        yield run


def sentences(world):
    return [record.text for source in (world.data, world.validation) for record in source.load("classification")]


def test_the_recording_is_of_a_real_run(recorded):
    _, spec, proxy, result, predictions, _ = recorded
    up = proxy.bytes_from(device=True)
    assert len(up) >= result.bytes_up > (4_000 if spec.mechanism.name == "codes" else 30_000)
    assert len(predictions) == 2


def test_no_text(recorded):
    world, _, proxy, _, _, _ = recorded
    for device in (True, False):
        raw = proxy.bytes_from(device=device)
        for text in sentences(world):
            assert text.encode() not in raw
        # Not even two neighbouring words of any sentence, in any usual separation.
        assert not re.search(rb"w\d+[ \x00]w\d+", raw)


@pytest.mark.parametrize("dtype", ["<i4", "<i8", "<i2", "<u4"])
def test_no_token_id_sequence(recorded, dtype):
    world, _, proxy, _, _, _ = recorded
    raw = proxy.bytes_from(device=True)
    for ids_T in encoded(world).ids:
        window = ids_T[: min(len(ids_T), 6)]
        assert window.astype(dtype).tobytes() not in raw
    # As a protobuf varint list, too: all ids of the tiny model are below 128, so a list is their bytes.
    for ids_T in encoded(world).ids:
        if len(ids_T) >= 6:
            assert ids_T.astype(np.uint8).tobytes() not in raw


def test_no_label(recorded):
    world, _, proxy, _, _, _ = recorded
    raw = proxy.bytes_from(device=True) + proxy.bytes_from(device=False)
    assert b"high" not in raw
    assert b"low\x00" not in raw
    labels = encoded(world).labels
    for dtype in (np.uint8, "<i4", "<i8", "<u4"):
        for start in range(0, len(labels) - 16, 16):
            window = labels[start : start + 16]
            if 0 < window.sum() < 16:
                assert window.astype(dtype).tobytes() not in raw


@pytest.mark.parametrize("injection", ["embed", "cut"])
def test_no_clean_representation(recorded, injection):
    world, spec, proxy, _, _, _ = recorded
    raw = proxy.bytes_from(device=True)
    parts = bottom_from_model(str(world.models["enc"]), spec.task, spec.cut, num_labels=2, seed=0)
    for ids_T in encoded(world).ids[:60]:
        ids_BT = torch.from_numpy(ids_T.astype(np.int64))[None]
        run = parts.bottom.embed if injection == "embed" else parts.bottom
        h_TD = run(ids_BT, torch.ones_like(ids_BT))[0]
        for row_D in h_TD:
            assert row_D.numpy().tobytes() not in raw
            # A quarter of a vector, exact or in bf16, would be a leak as well.
            assert row_D[:8].numpy().tobytes() not in raw
            assert row_D[:8].bfloat16().view(torch.int16).numpy().tobytes() not in raw


def test_the_check_can_fail(recorded):
    """The same search finds what did leave: a release from the device's own store."""
    import sqlite3

    world, _, proxy, _, _, _ = recorded
    raw = proxy.bytes_from(device=True)
    with sqlite3.connect(world.settings.home / "releases.sqlite") as db:
        releases = [row[0] for row in db.execute("SELECT data FROM releases LIMIT 50")]
    found = sum(data[:32] in raw for data in releases)
    assert found == len(releases) == 50


def losses_in(raw, losses):
    return [loss for loss in losses for dtype in (np.float32, np.float64) if np.array(loss, dtype).tobytes() in raw]


def test_losses_and_metrics_stay_home(recorded, tmp_path):
    _, spec, proxy, _, _, watcher = recorded
    raw = proxy.bytes_from(device=True)
    assert len(watcher.losses) >= 30
    assert losses_in(raw + np.float32(watcher.losses[0]).tobytes(), watcher.losses), "or the check could not fail"
    found = losses_in(raw, watcher.losses)
    if found:  # four bytes of noise are a loss once in some fifty runs; what is really sent is in every run
        again = {"tail": spec.tail, "skip": spec.skip, "mechanism": spec.mechanism.model_dump()}
        with recording(tmp_path, again) as (_, _, proxy, _, _, watcher):
            found = losses_in(proxy.bytes_from(device=True), watcher.losses)
    assert not found


def encoded(world):
    from privtune.shared.modeling.load import load_tokenizer

    return encode_classification(world.data.load("classification"), load_tokenizer(str(world.models["enc"])), 16)
