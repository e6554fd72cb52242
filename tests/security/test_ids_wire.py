"""An id on the wire says no more than its vector did: the frames of a job with word clusters hold nothing else."""

import numpy as np
import pytest
import torch

from privtune.device.account.verify import kept_frame, read_run, runs_of
from privtune.device.data.encode import encode_classification
from privtune.device.inference.predict import predict
from privtune.device.noise.registry import build
from privtune.device.release.noising import noise_context
from privtune.device.release.record_keys import record_keys
from privtune.shared.codec import decode
from privtune.shared.modeling.bottom_package import bottom_from_model
from privtune.shared.public_table import PublicTable
from privtune.shared.wire import FORWARD, TABLE, FrameReader
from tests.support.running import run, transcript_folder
from tests.support.world import InProcessCloud, build_world

TEXTS = ["w5 w6 w7 w8 w9 w10", "w50 w51 w52"]


@pytest.fixture(scope="module")
def sent(tmp_path_factory):
    """The world, its mechanism, the table that was sent, and the ids of each record in each message that had them."""
    world = build_world(tmp_path_factory.mktemp("ids"), InProcessCloud)
    world.settings = world.device(record_frames=True, local_model=str(world.models["enc"]))
    spec = world.spec(mechanism={"name": "shared", "params": {"cluster_size": 8}}, train={"max_steps": 12})
    job_id, _ = run(world, spec)
    predict(job_id, TEXTS, world.settings)
    world.cloud.stop()
    parts = bottom_from_model(str(world.models["enc"]), spec.task, spec.cut, num_labels=2, seed=0)
    mechanism = build(spec.mechanism, noise_context(parts, spec.cut, world.settings.home))
    return world, parts, mechanism, *came(transcript_folder(world, job_id), job_id)


def came(folder, job_id):
    tables, found, keys = [], [], []
    for path in runs_of(folder):
        readers = {}
        for line in read_run(path, job_id)[0]:
            if line["type"] == "records":
                packed = (folder / f"{line['keys']}.keys").read_bytes()
                keys = [packed[start : start + 24] for start in range(0, len(packed), 24)]
            if "at" not in line or line["direction"] == "down":
                continue
            reader = readers.setdefault(line["session"], FrameReader(epoch=line["session"], max_tensor_bytes=1 << 24))
            message = reader.feed(kept_frame(path, line))
            if message is not None and message.kind == TABLE:
                tables.append(PublicTable.from_message(message))
            if message is not None and message.kind == FORWARD:
                found += list(records(message, keys))
    (table,) = tables
    return table, found


def records(message, keys):
    ids_M = decode(message.payload, message.rows, message.width, message.codec)[:, 0].astype(np.int64)
    header, at = message.forward, 0
    for handle, rows, now in zip(header.record_ids, header.lengths, header.inlined, strict=True):
        if now:
            yield keys[handle], ids_M[at : at + rows]
            at += rows
    assert at == len(ids_M), "nothing else is in the payload"


def test_ids_are_a_function_of_the_clusters_alone(sent):
    world, parts, mechanism, table, found = sent
    clusters, special = mechanism.targets.cluster_V.numpy(), mechanism.targets.centres.special_V.numpy()
    expected = {}
    for source in (world.data, world.validation):
        data = encode_classification(source.load("classification"), parts.tokenizer, 16)
        for key, ids_T in zip(record_keys(data.ids), data.ids, strict=True):
            expected[key.packed()] = np.where(clusters[ids_T] >= 0, clusters[ids_T], special[ids_T])
    known = [(key, ids_T) for key, ids_T in found if key in expected]
    assert len({key for key, _ in known}) == len(expected) == 200
    assert len(found) > len(known), "the predicted texts are in their own frames"
    assert all(np.array_equal(ids_T, expected[key]) for key, ids_T in known)
    assert table.sha256 == mechanism.table.sha256


def test_the_vector_names_the_id_and_its_nearest_prototypes_are_no_words(sent):
    """Whoever reads vectors has the ids already, and neither spells a text."""
    world, parts, mechanism, table, found = sent
    prototypes_UD = mechanism.targets.tables.prototypes_UD
    data = encode_classification(world.data.load("classification"), parts.tokenizer, 16)
    truth = {key.packed(): ids_T for key, ids_T in zip(record_keys(data.ids), data.ids, strict=True)}
    named, words = 0, 0
    for key, ids_T in found:
        vectors_TD, places_T = table.of_record(ids_T[:, None].astype(np.float32)), np.arange(len(ids_T))
        every_TKD = np.stack(
            [table.vectors(np.full(len(ids_T), row), places_T) for row in range(len(table.rows_KD))], 1
        )
        away_TK = np.linalg.norm(every_TKD - vectors_TD[:, None], axis=2)
        assert np.array_equal(away_TK.argmin(1), ids_T)
        assert (np.sort(away_TK, axis=1)[:, 1] > 1e-3).all()
        if key in truth:
            near_T = torch.cdist(torch.from_numpy(vectors_TD), prototypes_UD).argmin(1)
            inside_T = mechanism.targets.cluster_V.numpy()[truth[key]] >= 0
            guess_T = mechanism.context.usable_ids[near_T].numpy()
            named, words = named + (guess_T == truth[key])[inside_T].sum(), words + inside_T.sum()
    assert words > 500
    assert named / words < 0.3


def test_the_table_is_targets_and_special_ids_and_no_clean_vector(sent):
    world, parts, mechanism, table, _ = sent
    assert len(table.rows_KD) == mechanism.targets.count + len(mechanism.context.special_ids)
    data = encode_classification(world.data.load("classification"), parts.tokenizer, 16)
    with torch.no_grad():
        for ids_T in data.ids[:40]:
            ids_1T = torch.from_numpy(ids_T.astype(np.int64))[None]
            h_TD = parts.bottom(ids_1T, torch.ones_like(ids_1T))[0].numpy()
            assert np.abs(table.rows_KD[:, None] - h_TD).max(2).min() > 1e-3
