"""The records of a tuning: as their owner has them, and as the job would send them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from privtune.device.audit.attacker_text import without_overlap
from privtune.device.audit.engine import Labelled
from privtune.device.audit.tuning.request import TuneRequest
from privtune.device.data.encode import EncodedDataset, encode_classification
from privtune.device.data.records import Records
from privtune.device.data.source import own_terms
from privtune.device.surrogates.replacement import HELD_OUT, TRAINED, Replacement
from privtune.device.surrogates.surrogates import SECRET_BYTES, Surrogates
from privtune.shared.errors import DataInvalid
from privtune.shared.modeling.bottom_package import BottomPackage

LEAST_DEV = 30


@dataclass(frozen=True, kw_only=True)
class Texts:
    """Training and dev records.

    own: as their owner has them.
    sent: with surrogates, where the job has them; else the same.
    replacement: what surrogates did; None without surrogates.
    """

    own: tuple[Records, Records]
    sent: tuple[Records, Records]
    replacement: Replacement | None

    def encoded(self, parts: BottomPackage, max_length: int) -> tuple[Labelled, Labelled, int]:
        """Both as token ids, without dev records that are training records in either; and how many those are.

        Raises DataInvalid if they are few, or fewer than half.
        """
        own, sent = (_encoded(*pair, parts, max_length) for pair in (self.own, self.sent))
        free = _apart((own, sent), self.own[1].source)
        left_out = len(own.held_out) - len(free)
        own, sent = (replace(one, held_out=one.held_out.pick(free)) for one in (own, sent))
        return own, sent, left_out


def read_texts(request: TuneRequest) -> Texts:
    """Read the records, and replace in them what the job would replace."""
    terms = own_terms(request.surrogates, request.train, request.dev)
    train, dev = (source.load("classification") for source in (request.train, request.dev))
    if not request.surrogates.on:
        return Texts(own=(train, dev), sent=(train, dev), replacement=None)
    # None of them leaves, and a secret of its own would draw others in every call, so that nothing kept could be used.
    surrogates = Surrogates(request.surrogates, bytes(SECRET_BYTES), terms)
    (sent_train, covered), (sent_dev, more) = surrogates.records(train, TRAINED), surrogates.records(dev, HELD_OUT)
    return Texts(own=(train, dev), sent=(sent_train, sent_dev), replacement=Replacement.of(surrogates, covered + more))


def joined(records: Labelled) -> EncodedDataset:
    """Training records, then dev records. The attacker has those that are not attacked."""
    train, dev = records.train, records.held_out
    labels = np.concatenate([labels_of(train), labels_of(dev)])
    return EncodedDataset(ids=train.ids + dev.ids, labels=labels, label_names=train.label_names)


def labels_of(data: EncodedDataset) -> NDArray[np.int64]:
    """Class numbers. Raises DataInvalid for unlabelled records."""
    if data.labels is None:
        raise DataInvalid("tuning needs labelled records")
    return data.labels


def _encoded(train: Records, dev: Records, parts: BottomPackage, max_length: int) -> Labelled:
    trained = encode_classification(train, parts.tokenizer, max_length)
    held_out = encode_classification(dev, parts.tokenizer, max_length, trained.label_names)
    parts.check_ids((*trained.ids, *held_out.ids))
    return Labelled(train=trained, held_out=held_out)


def _apart(forms: Sequence[Labelled], source: str) -> NDArray[np.int64]:
    """Indices of the dev records that training does not have in any form."""
    free = set.intersection(*(set(without_overlap(one.held_out.ids, one.train.ids)) for one in forms))
    count = len(forms[0].held_out)
    if count - len(free) > len(free):
        raise DataInvalid(
            f"{source}: {count - len(free):,} of {count:,} dev records are training records too, so nothing can be "
            "learned from them. Give --dev other records than --data, or leave it out to hold part of --data out."
        )
    if len(free) < LEAST_DEV:
        raise DataInvalid(
            f"{source}: tuning needs at least {LEAST_DEV} dev records that training lacks, and there are {len(free)}."
        )
    return np.array(sorted(free), dtype=np.int64)
