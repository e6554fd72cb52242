"""Jobs whose records are padded: what the cloud sees of their lengths, and that the device trains on its own rows."""

import numpy as np
import pytest
from pydantic import ValidationError

from privtune.device.account.ledger import drawings
from privtune.device.account.verify import check
from privtune.device.audit.attacks.attack import silent
from privtune.device.audit.jobs.transcript_audit import JobAudit, audit_job
from privtune.device.audit.sizes import QUICK
from privtune.device.data.encode import encode_classification
from privtune.device.inference.predict import predict
from privtune.device.release.filler import Padding
from privtune.shared.modeling.load import load_tokenizer
from tests.support.running import Died, die_after, ledger_entries, run, transcript_folder
from tests.support.transcripts import recorded_frames
from tests.support.world import Watcher

PADDED = {"pad_to": (8,), "max_length": 16, "batch_size": 32, "accumulation": 1, "max_steps": 6}
FORMS = {
    "a tail": {"tail": 1, "skip": "tuned"},
    "ids of a table": {"mechanism": {"name": "shared", "params": {"cluster_size": 4}}},
    "sums": {"mechanism": {"name": "pool", "params": {"size": 2}}},
}


def lengths_sent(world, job_id):
    return {
        length
        for _, frame in recorded_frames(transcript_folder(world, job_id), job_id)
        if frame.HasField("forward")
        for length in frame.forward.lengths
    }


def ids_of(world):
    tokenizer = load_tokenizer(str(world.models["enc"]))
    return encode_classification(world.data.load("classification"), tokenizer, 16).ids


@pytest.mark.parametrize("form", FORMS)
def test_every_length_on_the_wire_is_one_of_the_list(local_world, form):
    world = local_world
    settings = world.device(record_frames=True)
    job_id, result = run(world, world.spec(train=PADDED, **FORMS[form]), settings=settings)
    predict(job_id, ["w1 w2", "w3 w4 w5 w6 w7 w8 w9 w10"], settings)
    assert lengths_sent(world, job_id) == ({8, 16} if form != "sums" else {5, 9})  # [CLS] is no part of a sum
    assert any("padded to 8 or 16 tokens" in caveat for caveat in result.statement.caveats)
    train_drawn, *_ = drawings(ledger_entries(world))
    rows = sum(8 if len(ids) <= 8 else 16 for ids in ids_of(world))
    assert train_drawn["records"] == 160
    assert form == "sums" or train_drawn["rows"] == rows  # filler is counted as any row


def test_batches_are_of_the_padded_lengths(local_world):
    """Records are sorted by length inside a pool of steps: by their own, the order would give them away."""
    world = local_world
    spec = world.spec(train=PADDED | {"pad_to": (16,), "epochs": 1, "max_steps": None, "batch_size": 8})
    lengths = []
    original = Padding.fill

    def fill(self, ids_T, source):
        lengths.append(len(ids_T))
        return original(self, ids_T, source)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Padding, "fill", fill)
        run(world, spec, validation=False)
    assert len(lengths) == 160
    spread = [np.std(batch) for batch in np.array(lengths).reshape(20, 8)]
    assert np.mean(spread) > 0.6 * np.std(lengths)  # sorted, it is below 0.2; at random about 0.93


def test_a_killed_job_sends_the_same_bytes_again(local_world):
    world = local_world
    settings, spec = world.device(record_frames=True), world.spec(train=PADDED | {"checkpoint_every": 2})
    job_id = world.cloud.create_job(spec)
    with pytest.raises(Died):
        run(world, spec, settings=settings, watcher=Watcher(at_step=die_after(3)), job_id=job_id)
    run(world, spec, settings=settings, job_id=job_id)
    verified = check(job_id, transcript_folder(world, job_id), [], world.settings.home / "releases.sqlite")
    assert verified.problems == []
    assert [row["records"] for row in drawings(ledger_entries(world)) if row["job"] == job_id] == [160, 40]
    other, _ = run(world, spec, settings=settings)  # a later job sends what was drawn
    assert not [row for row in drawings(ledger_entries(world)) if row["job"] == other]


@pytest.mark.slow
def test_a_recorded_job_is_audited(local_world):
    world = local_world
    job_id, _ = run(world, world.spec(train=PADDED), settings=world.device(record_frames=True))
    request = JobAudit(
        job_id=job_id, model=str(world.models["enc"]), sources=(world.data, world.validation), size=QUICK
    )
    audited = audit_job(request, world.settings.home, silent)
    attacks = [row["figures"]["top1"]["value"] for row in audited.document["attacks"] if "top1" in row["figures"]]
    assert max(attacks) > 0.95  # clean vectors: the rows of the text were found among the filler
    assert any("which rows are filler" in line for line in audited.document["not_tested"])


def test_a_language_model_that_trains_in_the_cloud_is_refused(local_world):
    with pytest.raises(ValidationError, match="it needs a tail"):
        local_world.spec(model="dec", task="causal-lm", train=PADDED)
