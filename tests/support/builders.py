"""The least that makes a job's description or an encoded data set, for tests that care about one field of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from privtune.device.data.encode import EncodedDataset
from privtune.shared.job_spec import JobSpec

LEAST = {"model": "tiny", "training_file": "device://reviews"}


def least_spec(**changes: Any) -> JobSpec:
    """A job with every default, but for `changes`."""
    return JobSpec.model_validate(LEAST | changes)


def dataset(rows: Sequence[Any], labels: Any = None, names: Sequence[str] = ()) -> EncodedDataset:
    """Encoded records of these token ids; `labels` are numbers into `names`."""
    return EncodedDataset(
        ids=tuple(np.asarray(row, dtype=np.int32) for row in rows),
        labels=None if labels is None else np.asarray(labels, dtype=np.int64),
        label_names=tuple(names),
    )
