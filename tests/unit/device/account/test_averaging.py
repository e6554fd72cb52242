"""Fresh noise in every epoch could be averaged away; a release drawn once can't. Real bottom, noise and store."""

import numpy as np
import pytest
import torch

from privtune.device.noise.mechanisms.dchi import DChi
from privtune.device.noise.params import DChiParams
from privtune.device.noise.randomness import noise_source
from privtune.device.release.perturber import Perturber, Uploader
from privtune.device.release.release_store import ReleaseStore
from privtune.shared.codec import decode
from tests.support.builders import dataset

EPOCHS, RECORDS = 20, 12


@pytest.fixture
def data():
    rng = np.random.default_rng(3)
    return dataset([rng.integers(5, 120, rng.integers(4, 9)) for _ in range(RECORDS)])


def perturber(bottom, context, path):
    mechanism = DChi(DChiParams(noise_ratio=3.0), context)
    store = ReleaseStore(path, "law", 10**8)
    return Perturber(bottom, mechanism, noise_source(), store, "fp32"), store


def seen_by_the_cloud(one, data, order):
    """One epoch, every record uploaded in full: what the cloud holds of each record."""
    released = one.release(data, order)
    message = Uploader(32, "fp32").forward(released, np.zeros(0, np.int64), step=0, micro_batch=0, inline_all=True)
    rows = decode(message.payload, message.rows, message.width, "fp32")
    parts = np.split(rows, np.cumsum(message.forward.lengths)[:-1])
    return dict(zip(message.forward.record_ids, parts, strict=True))


def clean(bottom, data):
    with torch.no_grad():
        return {
            index: bottom(torch.from_numpy(ids_T.astype(np.int64))[None], torch.ones(1, len(ids_T), dtype=torch.int64))[
                0
            ].numpy()
            for index, ids_T in enumerate(data.ids)
        }


def error_of(average, truth):
    return np.mean([np.linalg.norm(average[index] - truth[index], axis=1).mean() for index in truth])


def attack(epochs, truth):
    average = {index: np.mean([epoch[index] for epoch in epochs], axis=0) for index in truth}
    return error_of(average, truth)


def test_averaging_over_20_epochs_gains_nothing(tmp_path, bottom, context, data):
    truth, rng = clean(bottom, data), np.random.default_rng(0)
    epochs = []
    for number in range(EPOCHS):
        one, store = perturber(bottom, context, tmp_path / "r")  # a new process each time, in another order
        epochs.append(seen_by_the_cloud(one, data, rng.permutation(RECORDS)))
        store.close()
        assert store_size(tmp_path / "r") == RECORDS, f"epoch {number} drew something again"
    for epoch in epochs[1:]:
        assert all(np.array_equal(epoch[index], epochs[0][index]) for index in truth)
    once, averaged = error_of(epochs[0], truth), attack(epochs, truth)
    assert averaged == pytest.approx(once, rel=1e-5)
    # The same attack works where each epoch is drawn afresh: it is the store that stops it.
    fresh = []
    for number in range(EPOCHS):
        one, store = perturber(bottom, context, tmp_path / f"fresh-{number}")
        fresh.append(seen_by_the_cloud(one, data, np.arange(RECORDS)))
        store.close()
    assert attack(fresh, truth) < 0.3 * once


def store_size(path):
    store = ReleaseStore(path, "law", 10**8)
    try:
        return store.size
    finally:
        store.close()


def test_a_later_data_set_never_gets_the_keys_of_an_earlier_one(tmp_path, bottom, context):
    """An object may get the address of a deleted one; its records must not get the releases of that one."""
    one, store = perturber(bottom, context, tmp_path / "r")
    for token in range(5, 60):
        data = dataset([[token] * (1 + token % 7)])
        assert one.release(data, np.array([0])).rows() == 1 + token % 7
        assert store.size == token - 4
        del data
    store.close()
