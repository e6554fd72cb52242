"""A lesson brings the device's blocks nearer to the whole model, and continues where it was stopped."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from privtune.cloud.compute.teaching.lesson import Lesson
from privtune.cloud.compute.teaching.pieces import cut_into_pieces
from privtune.cloud.compute.teaching.relations import Projections, relation_loss
from privtune.shared.errors import CloudOutOfMemory, JobPaused
from privtune.shared.modeling.partition import Partition
from privtune.shared.teaching_spec import TeachingSpec
from tests.support.tiny_models import LAYERS, tiny_batch, tiny_classifier, tiny_lm, tiny_tokenizer

SPEC = TeachingSpec(
    model="enc",
    corpus="words",
    cut=1,
    max_pieces=256,
    max_length=12,
    epochs=3,
    learning_rate=3e-3,
    relations=0.5,
    checkpoint_every=7,
    precision="fp32",
)
LABELLED = SPEC.model_copy(update={"label_column": "label", "tuned_pieces": 128, "tuned_blocks": 1})


def words(count=128):
    rng = np.random.default_rng(5)
    texts = [" ".join(f"w{number}" for number in rng.integers(4, 60, size=rng.integers(3, 20))) for _ in range(count)]
    return texts, np.array([index % 2 for index in range(count)])


def lesson(folder, spec=SPEC, kind="bert", stopped=lambda: False, max_bytes=1 << 24):
    texts, labels = words()
    labels = labels if spec.label_column else None
    pieces = cut_into_pieces(
        tiny_tokenizer(), texts, labels, max_length=spec.max_length, most=spec.max_pieces, seed=spec.seed
    )
    model = tiny_lm(kind) if spec.task == "causal-lm" else tiny_classifier(kind, num_labels=2)
    return Lesson(
        Partition(model),
        pieces,
        spec,
        folder,
        device=torch.device("cpu"),
        max_bytes=max_bytes,
        watch=lambda *_: None,
        stopped=stopped,
    )


def after(asked):
    """Stops at this number of times that it is asked."""
    left = iter(range(asked))
    return lambda: next(left, None) is None


@pytest.mark.parametrize(
    ("kind", "spec"),
    [
        ("bert", SPEC),
        ("mpnet", LABELLED),
        ("deberta-v2", SPEC),
        ("llama", SPEC.model_copy(update={"task": "causal-lm"})),
        ("gpt2", SPEC.model_copy(update={"cut": 0})),
    ],
)
def test_the_taught_blocks_are_nearer_to_the_model(tmp_path, kind, spec):
    taught = lesson(tmp_path, spec, kind).teach()
    assert taught.figures["taught"]["states"] < 0.8 * taught.figures["untaught"]["states"]
    assert taught.figures["taught"]["relations"] < taught.figures["untaught"]["relations"]
    assert set(taught.figures["seconds"]) == {"tuning", "states", "teaching"}


def test_only_blocks_are_taught_and_with_labels_the_head(tmp_path):
    model = tiny_classifier("mpnet", num_labels=2)
    plain, labelled = (lesson(tmp_path / str(spec is SPEC), spec, "mpnet").teach().state for spec in (SPEC, LABELLED))
    blocks = {name for name in plain if ".layer.0." in name or f".layer.{LAYERS - 1}." in name}
    assert plain.keys() == blocks, "neither embedding nor the position table that all blocks share"
    assert labelled.keys() - plain.keys() == {name for name, _ in model.named_parameters() if "classifier" in name}


@pytest.mark.parametrize("asked", [2, 4, 15])
def test_a_stopped_lesson_ends_with_the_undisturbed_weights(tmp_path, asked):
    calm = lesson(tmp_path / "calm", LABELLED, "mpnet").teach()
    with pytest.raises(JobPaused):
        lesson(tmp_path / "cut", LABELLED, "mpnet", stopped=after(asked)).teach()
    again = lesson(tmp_path / "cut", LABELLED, "mpnet").teach()
    assert all(torch.equal(calm.state[name], again.state[name]) for name in calm.state)
    assert again.figures["taught"] == calm.figures["taught"]


def test_a_killed_lesson_repeats_at_most_one_interval(tmp_path):
    """As `kill -9` leaves it: nothing is written after the last checkpoint."""
    calm = lesson(tmp_path / "calm").teach()
    seen = []

    def die(stage, step, steps, loss):
        seen.append((stage, step))
        if (stage, step) == ("teaching", 12):
            raise KeyboardInterrupt

    killed = lesson(tmp_path / "cut")
    killed.watch = die
    with pytest.raises(KeyboardInterrupt):
        killed.teach()
    again = lesson(tmp_path / "cut")
    again.watch = lambda stage, step, *_: seen.append((stage, step))
    taught = again.teach()
    assert seen[seen.index(("teaching", 12)) + 1] == ("teaching", 8), "steps 1 to 7 were kept, and all states"
    assert all(torch.equal(calm.state[name], taught.state[name]) for name in calm.state)


def test_states_that_take_too_much_room_are_refused(tmp_path):
    with pytest.raises(CloudOutOfMemory, match="lower max_pieces"):
        lesson(tmp_path, max_bytes=1000).teach()


@torch.no_grad()
def test_relations_are_those_of_queries_keys_and_values():
    model = tiny_classifier("bert")
    block = model.bert.encoder.layer[0]
    seen = Projections(block)
    ids_BT, mask_BT = tiny_batch()
    model(input_ids=ids_BT, attention_mask=mask_BT)
    h_BTD = model.bert.embeddings(input_ids=ids_BT)
    attention = block.attention.self
    for found, layer in zip(seen.found, (attention.query, attention.key, attention.value), strict=True):
        assert torch.allclose(found, layer(h_BTD), atol=1e-6)
    assert relation_loss(seen.found, seen.found, mask_BT) == pytest.approx(0.0, abs=1e-6)
    other = [torch.randn_like(one) for one in seen.found]
    padded = [torch.where(mask_BT[..., None].bool(), one, 9.0) for one in other]
    assert relation_loss(seen.found, other, mask_BT) > 0
    assert torch.allclose(relation_loss(seen.found, other, mask_BT), relation_loss(seen.found, padded, mask_BT))
