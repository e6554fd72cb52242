"""Private prediction: texts go through bottom, the same noise, the tuned top in the cloud, and the head at home."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain

import numpy as np

from privtune.device.account.releasing import Outgoing
from privtune.device.account.run_account import PREDICTIONS, source_of
from privtune.device.data.batches import evaluation_batches
from privtune.device.data.encode import EncodedDataset, encode_texts
from privtune.device.data.record_lines import RecordLines
from privtune.device.data.records import Columns, Record, Records
from privtune.device.home.job_folder import JobFolder, JobState
from privtune.device.inference.tuned import TunedModel, open_tuned
from privtune.device.model.objectives import pooled_positions
from privtune.device.runtime.memory import trim
from privtune.device.session.run_settings import RunSettings
from privtune.device.session.window import PendingBatch, SendAhead, forward_only
from privtune.device.surrogates.coverage import Coverage
from privtune.device.surrogates.replacement import Replacement
from privtune.shared.errors import InvalidInput
from privtune.shared.validation import half_character
from privtune.shared.wording import counted

Text = str | tuple[str, str]
IN_FLIGHT = 4


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """The class of one text. probabilities: of each label name, from the head's softmax."""

    label: str
    probabilities: dict[str, float]


def predict(
    job_id: str,
    texts: Sequence[Text],
    settings: RunSettings,
    *,
    source: str | None = None,
    lines: RecordLines | None = None,
    batch_size: int = 32,
    say: Callable[[str], None] = lambda _: None,
) -> list[Prediction]:
    """Classify texts (or pairs) with the newest state of a job that this device trained, in the order given.

    A text is released once: asking again sends the identical bytes, and so does asking for one that was trained on.

    Args:
        job_id: the job.
        texts: what to classify.
        settings: how to reach the cloud.
        source: the file that the texts are from, which the ledger counts them with; None: they are from no file.
        lines: where they are in that file.
        batch_size: texts in a message.
        say: gets warnings, for example that texts were longer than the job's limit and lost their end.

    Raises:
        JobNotFound: this device does not hold the job.
        JobConflict: the job has no checkpoint.
        InvalidInput: the job is not a classifier, or texts and pairs are mixed.
        PolicyRefused: the budget does not allow it; nothing was sent.
    """
    if not texts:
        return []
    state = JobFolder(settings.home, job_id).load()
    if state.spec.task != "classification":
        raise InvalidInput("predict is for classification jobs; this one is a language model")
    records, replacement = _records(texts, state)
    if replacement is not None:
        trim()  # the recognisers are gone before the model comes
    with open_tuned(job_id, settings, replacement=replacement) as tuned:
        given = _encode(records, tuned)
        order = tuned.state.order_of(given)
        data = given.pick(order)
        if data.truncated:
            limit = tuned.state.spec.train.longest(tuned.package.max_positions)
            texts = f"{data.truncated:,} of {counted(len(data), 'text')}"
            say(f"longer than the job's {counted(limit, 'token')}, and cut there: {texts}")
        charged = PREDICTIONS if source is None else source_of(source)
        outgoing = Outgoing(data=data, source=charged, name=PREDICTIONS, part="predict", lines=lines)
        tuned.releasing.admit([outgoing], say)
        found = _classify(data, tuned, batch_size)
    return [found[place] for place in np.argsort(order)]


def _records(texts: Sequence[Text], state: JobState) -> tuple[Records, Replacement | None]:
    """The texts as records, with surrogates where the job has them. A text always gets the same ones."""
    given: list[tuple[str, ...]] = [text if isinstance(text, tuple) else (text,) for text in texts]
    sizes = {len(one) for one in given}
    if len(sizes) > 1:
        raise InvalidInput("give either texts or pairs of texts, not both at once")
    for text in chain(*given):
        if (problem := half_character(text)) is not None:
            raise InvalidInput(f"a text has {problem}; write it whole", param="text")
    surrogates, coverage = state.surrogates(), Coverage()
    if surrogates is not None:
        for place, one in enumerate(given):
            known = surrogates.conversation(one, opening=len(one))
            coverage += known.coverage(one)
            given[place] = tuple(known.replace(text) for text in one)
    items = tuple(
        Record(number=number, text=one[0], text2=one[1] if len(one) == 2 else None)
        for number, one in enumerate(given, start=1)
    )
    columns = Columns(text="text", text2="text2" if sizes == {2} else None)
    records = Records(source="the texts", unit="text", columns=columns, items=items)
    return records, Replacement.of(surrogates, coverage)


def _encode(records: Records, tuned: TunedModel) -> EncodedDataset:
    limit = tuned.state.spec.train.longest(tuned.package.max_positions)
    ids, truncated = encode_texts(records, tuned.package.tokenizer, limit)
    tuned.package.check_ids(ids)
    places = tuple(range(len(ids)))
    return EncodedDataset(ids=ids, label_names=tuned.state.label_names, truncated=truncated, places=places)


def _classify(data: EncodedDataset, tuned: TunedModel, batch_size: int) -> list[Prediction]:
    names, states = tuned.state.label_names, tuned.states
    request = partial(forward_only, tuned.uploader(), states)
    window = SendAhead(tuned.stream(), _coming(data, tuned, batch_size), request, in_flight=IN_FLIGHT)
    found: dict[int, Prediction] = {}
    for batch in window:
        out_ND = states.out(data, batch.indices, batch.released, batch.readout_N, window.answer(batch))
        for index, row_C in zip(batch.indices.tolist(), states.logits(out_ND).softmax(-1).tolist(), strict=True):
            probabilities = dict(zip(names, row_C, strict=True))
            label = max(probabilities, key=probabilities.__getitem__)
            found[index] = Prediction(label=label, probabilities=probabilities)
    return [found[index] for index in range(len(data))]


def _coming(data: EncodedDataset, tuned: TunedModel, batch_size: int) -> Iterator[PendingBatch]:
    perturber = tuned.states.perturber
    for number, indices in enumerate(evaluation_batches(perturber.lengths(data), batch_size)):
        released = perturber.release(data, indices)
        readout_N = pooled_positions(released.read_B, tuned.package.readout)
        yield PendingBatch(number=number, indices=indices, released=released, readout_N=readout_N, asks=True)
