"""What the cloud sees beside the vectors (handles, order, counts) says nothing of a record's place in its file.

The files are sorted by label and all records have one length, so a place in the file is a label.
"""

import numpy as np
import pytest

from privtune.device.account.verify import kept_frame, read_run, runs_of
from privtune.device.data.encode import encode_classification
from privtune.device.data.source import DataSource
from privtune.device.inference.evaluate import evaluate
from privtune.device.inference.generate import generate_texts
from privtune.device.inference.generation.sampling import Sampling
from privtune.device.inference.predict import predict
from privtune.device.release.record_keys import record_keys
from privtune.shared.modeling.load import load_tokenizer
from tests.support.running import run, transcript_folder
from tests.support.transcripts import recorded_frames
from tests.support.world import InProcessCloud, build_world
from tests.support.writing import tune

RECORDS = 120  # a random order predicts labels as well as the bound below once in 10^13


def sorted_rows(seed, words):
    rng = np.random.default_rng(seed)
    return [" ".join(f"w{word}" for word in rng.choice(words, 6, replace=False)) for _ in range(RECORDS // 2)]


def sorted_file(folder, name, seed):
    high, low = sorted_rows(seed, np.arange(30, 60)), sorted_rows(seed + 1, np.arange(30))
    rows = [f"{text}\thigh" for text in high] + [f"{text}\tlow" for text in low]
    (folder / name).write_text("\n".join(["sentence\tlabel", *rows]) + "\n")
    return DataSource(path=str(folder / name))


@pytest.fixture(scope="module", params=[0, 1], ids=["cloud-trains", "tail-trains"])
def sent(request, tmp_path_factory):
    """For each file: its labels and, in the order of sending, the handle and place of every record that was sent."""
    folder = tmp_path_factory.mktemp("places")
    world = build_world(folder, InProcessCloud)
    train, held_out, scored, asked = (sorted_file(folder, f"{seed}.tsv", seed) for seed in (10, 20, 30, 40))
    settings = world.device(record_frames=True, local_model=str(world.models["enc"]))
    spec = world.spec(tail=request.param, train={"max_steps": 16})
    job_id, _ = run(world, spec, train, validation=held_out, settings=settings)
    evaluate(job_id, scored, settings)
    texts = [record.text for record in asked.load("classification")]
    answers = predict(job_id, texts, settings)
    tokenizer = load_tokenizer(str(world.models["enc"]))
    files = {"training": train, "held out": held_out, "evaluated": scored, "predicted": asked}
    encoded = {name: encode_classification(file.load("classification"), tokenizer, 16) for name, file in files.items()}
    yield {name: seen(transcript_folder(world, job_id), job_id, data) for name, data in encoded.items()}
    for text, answer in zip(texts[::40], answers[::40], strict=True):  # in the order given, whatever the order sent
        (alone,) = predict(job_id, [text], settings)
        assert alone.probabilities == pytest.approx(answer.probabilities, abs=1e-5)
    world.cloud.stop()


def seen(folder, job_id, data):
    places = {key.packed(): place for place, key in enumerate(record_keys(data.ids))}
    assert len(places) == RECORDS
    found, keys = [], []
    for path in runs_of(folder):
        for line in read_run(path, job_id)[0]:
            if line["type"] == "records":
                packed = (folder / f"{line['keys']}.keys").read_bytes()
                keys = [packed[start : start + 24] for start in range(0, len(packed), 24)]
            elif line.get("kind") == "FORWARD" and line["direction"] == "up":
                frame = kept_frame(path, line)
                if frame.chunk_index == 0:
                    found += [
                        (handle, places[keys[handle]]) for handle in frame.forward.record_ids if keys[handle] in places
                    ]
    return data.labels, np.array(found)


def predicted_by(score_N, labels_N):
    """How well an order predicts two classes: the area under its ROC curve; 0.5: not at all."""
    rank_N = np.argsort(np.argsort(score_N)) + 1
    ones = labels_N == 1
    return (rank_N[ones].sum() - ones.sum() * (ones.sum() + 1) / 2) / (ones.sum() * (~ones).sum())


@pytest.mark.parametrize("name", ["training", "held out", "evaluated", "predicted"])
def test_neither_handle_nor_order_nor_count_names_a_place(sent, name):
    labels_R, found_N2 = sent[name]
    handles, first, counts = np.unique(found_N2[:, 0], return_index=True, return_counts=True)
    places = found_N2[first, 1]
    assert predicted_by(np.arange(RECORDS), labels_R) in (0, 1), "the file is sorted"
    assert sorted(places) == list(range(RECORDS))
    assert (np.diff(handles) == 1).all()
    for told in (handles, first):
        assert 0.2 < predicted_by(told, labels_R[places]) < 0.8
        assert abs(np.corrcoef(told, places)[0, 1]) < 0.6
    assert name == "training" or len(set(counts)) == 1, "each record as often as any other"


def test_prompts_are_not_sent_in_their_order(tmp_path):
    world = build_world(tmp_path, InProcessCloud)
    job_id = tune(world)
    settings = world.device(record_frames=True)
    prompts = [" ".join(["w5"] * (length + 1)) for length in range(12)]
    found = generate_texts(job_id, prompts, settings, sampling=Sampling(max_new_tokens=1), in_flight=1)
    assert [answer.prompt_tokens for answer in found] == sorted(answer.prompt_tokens for answer in found)
    world.cloud.stop()
    frames = recorded_frames(transcript_folder(world, job_id), job_id)
    began = {}
    for line, frame in frames:
        if line["kind"] == "FORWARD" and frame.forward.forward_only and frame.chunk_index == 0:
            began.setdefault(frame.forward.record_ids[0], frame.forward.lengths[0])
    lengths = [began[handle] for handle in sorted(began)]
    assert len(set(lengths)) == 12
    assert lengths != sorted(lengths)
    assert lengths != sorted(lengths, reverse=True)
