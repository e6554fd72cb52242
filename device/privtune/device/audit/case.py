"""What is attacked, and with what: from records, model and mechanism to a `Case`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from torch import nn

from privtune.device.audit.attacker_text import PublicText, without_overlap
from privtune.device.audit.attacks.reader import Pretrained
from privtune.device.audit.identifying import Hidden
from privtune.device.audit.sizes import Size
from privtune.device.audit.victim import Victim
from privtune.device.data.encode import EncodedDataset, IntArray
from privtune.device.noise.public_texts import PublicTexts, read_texts
from privtune.device.release.noising import Noise
from privtune.device.surrogates.own_words import Words
from privtune.shared.errors import DataInvalid
from privtune.shared.job_spec import Task
from privtune.shared.modeling.bottom_package import BottomPackage
from privtune.shared.modeling.load import load_task_model
from privtune.shared.modeling.partition import Head, Partition, is_language_model

LEAST_RECORDS = 60


@dataclass(frozen=True, kw_only=True)
class Case:
    """What is attacked, and with what.

    public: the attacker's text.
    labelled: those of its records that have the attribute; None if there is no attribute.
    top: the blocks above the cut; None if this device has none.
    encoder: the same, if the learned attacks may build on it. Not for decoders, whose blocks see only what precedes.
    reader: the whole language model; None for other tasks.
    pretrained: the whole encoder, for EIA-2c; None for decoders.
    head: for gradients.
    gradients: whether any leave the device; with a tail none does.
    skip: whether a skip connection feeds clean vectors into a tail. They help the task; no attacker sees them.
    hidden: the words of the attacked records that an attack must not name; None if there are none.
    """

    victim: Victim
    attacked: EncodedDataset
    public: PublicText
    labelled: PublicText | None
    top: nn.Module | None
    encoder: nn.Module | None
    reader: nn.Module | None
    head: Head
    readout: Literal["first", "last"]
    gradients: bool = True
    skip: bool = False
    hidden: Hidden | None = None
    pretrained: Pretrained | None = None


def choose_attacked(
    data: EncodedDataset, size: Size, seed: int, among: NDArray[np.int64] | None = None
) -> NDArray[np.int64]:
    """Indices of the records to attack: at random, at most a third of all; among: those that may be taken.

    Raises DataInvalid when there are too few records to attack and to build attacks on.
    """
    if len(data) < LEAST_RECORDS:
        raise DataInvalid(f"an audit needs at least {LEAST_RECORDS} records, and has been given {len(data)}")
    order = np.random.default_rng(seed).permutation(len(data))
    taken = order if among is None else order[np.isin(order, among)]
    return taken[: min(size.attacked, len(data) // 3)]


def build_case(
    parts: BottomPackage,
    noise: Noise,
    data: EncodedDataset,
    attacked: NDArray[np.int64],
    *,
    size: Size,
    seed: int,
    public: Sequence[str],
    max_length: int,
    whole: Partition | None,
    hidden: Sequence[Words] = (),
) -> tuple[Case, dict[str, int]]:
    """The case, and how many records of each kind are in it.

    attacked: indices into `data`. The other records stand for text of the same kind that the attacker has.
    public: texts that anyone may know.
    whole: the whole model; None if this device has only the bottom.
    hidden: of each record of `data`, the words that an attack must not name; empty without surrogates.
    """
    victims = data.pick(attacked)
    words = [hidden[place] for place in attacked.tolist()] if hidden else []
    order = np.random.default_rng(seed).permutation(len(data))
    rest = data.pick(order[~np.isin(order, attacked)][: size.public])
    rest = rest.pick(np.array(without_overlap(rest.ids, victims.ids), dtype=np.int64))
    texts = _public_ids(public[: size.public], parts, max_length, victims)
    context = noise.mechanism.context
    special, usable = context.special_ids, context.usable_ids
    top = None if whole is None else whole.top(parts.cut)
    case = Case(
        victim=Victim(parts.bottom, noise.mechanism, special, noise.importance),
        attacked=victims,
        public=PublicText([*texts, *rest.ids], special, candidates=usable),
        labelled=PublicText(rest.ids, special, labels=rest.labels) if rest.labels is not None else None,
        top=top,
        encoder=top if parts.readout == "first" else None,
        reader=whole.model if whole is not None and is_language_model(whole.model) else None,
        head=parts.head,
        readout=parts.readout,
        hidden=Hidden(words=words, tokenizer=parts.tokenizer) if any(words) else None,
        pretrained=Pretrained.of_model(whole.model) if whole is not None and parts.readout == "first" else None,
    )
    return case, {"attacked": len(victims), "own_as_public": len(rest), "public": len(texts)}


def whole_model(ref: str, task: Task, classes: int) -> Partition:
    """The owner's own copy of the model: the attacker has all of it."""
    return Partition(load_task_model(ref, task, num_labels=max(classes, 2)))


def public_texts(file: Path | None, home: Path) -> Sequence[str]:
    """The lines of the file if there is one, else the texts that `privtune tables public` declared."""
    return read_texts(file) if file else PublicTexts.load(home).texts


def _public_ids(
    texts: Sequence[str], parts: BottomPackage, max_length: int, attacked: EncodedDataset
) -> Sequence[IntArray]:
    if not texts:
        return []
    encoded = parts.tokenizer(list(texts), truncation=True, max_length=max_length)["input_ids"]
    rows = [np.array(ids_T, dtype=np.int32) for ids_T in encoded if len(ids_T)]
    return [rows[index] for index in without_overlap(rows, attacked.ids)]
