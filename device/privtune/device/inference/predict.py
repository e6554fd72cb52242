"""Private prediction: texts go through bottom, the same noise, the tuned top in the cloud, and the head at home."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from privtune.device.account.run_account import PREDICTIONS
from privtune.device.data.batches import IndexArray, evaluation_batches
from privtune.device.data.encode import EncodedDataset, encode_texts
from privtune.device.data.records import Columns, Record, Records
from privtune.device.home.job_folder import JobFolder, JobState
from privtune.device.inference.tuned import TunedModel, open_tuned
from privtune.device.model.objectives import pooled_positions
from privtune.device.release.perturber import Released, Uploader
from privtune.device.session.run_settings import RunSettings
from privtune.shared.errors import InvalidInput
from privtune.shared.modeling.package import BottomPackage
from privtune.shared.wire import OUTPUT

Text = str | tuple[str, str]
IN_FLIGHT = 4


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """The class of one text. `probabilities`: by label name, from the head's softmax."""

    label: str
    probabilities: dict[str, float]


def predict(
    job_id: str,
    texts: Sequence[Text],
    settings: RunSettings,
    *,
    batch_size: int = 32,
    say: Callable[[str], None] = lambda _: None,
) -> list[Prediction]:
    """Classify texts (or pairs) with the newest state of a job that this device trained, in the order given.

    `say` is told when texts were longer than the job's limit and lost their end.

    A text is released once: asking again sends the identical bytes. Raises JobNotFound when this device does not hold
    the job, JobConflict when the job has no checkpoint, InvalidInput for a job that is not a classifier.
    """
    if not texts:
        return []
    if JobFolder(settings.home, job_id).load().spec.task != "classification":
        raise InvalidInput("predict is for classification jobs; this one is a language model")
    with open_tuned(job_id, settings) as tuned:
        data = _encode(texts, tuned.parts, tuned.state)
        if data.truncated:
            limit = tuned.state.spec.train.max_length
            say(f"{data.truncated:,} of {len(data):,} texts were longer than the job's {limit} tokens and were cut")
        warning = tuned.admit(data, source=PREDICTIONS, name=PREDICTIONS, part="predict")
        if warning is not None:
            say(warning)
        return _classify(data, tuned, batch_size)


def _encode(texts: Sequence[Text], parts: BottomPackage, state: JobState) -> EncodedDataset:
    pairs = [text if isinstance(text, tuple) else (text, None) for text in texts]
    paired = {second is not None for _, second in pairs}
    if len(paired) > 1:
        raise InvalidInput("give either texts or pairs of texts, not both at once")
    items = tuple(Record(number=i + 1, text=first, text2=second) for i, (first, second) in enumerate(pairs))
    columns = Columns(text="text", text2="text2" if paired == {True} else None)
    records = Records(source="the texts", unit="text", columns=columns, items=items)
    ids, truncated = encode_texts(records, parts.tokenizer, state.spec.train.max_length)
    parts.check_ids(ids)
    return EncodedDataset(ids=ids, label_names=state.label_names, truncated=truncated)


def _classify(data: EncodedDataset, tuned: TunedModel, batch_size: int) -> list[Prediction]:
    state, stream = tuned.state, tuned.stream()
    uploader = Uploader(tuned.parts.hidden_size, state.spec.codec)
    found: dict[int, Prediction] = {}
    waiting: deque[tuple[int, IndexArray, Released]] = deque()
    batches = enumerate(evaluation_batches(data.lengths, batch_size))

    def send() -> Iterator[None]:
        for number, indices in batches:
            released: Released = tuned.perturber.release(data, indices)
            readout_N = pooled_positions(released.lengths_B, tuned.parts.readout)
            asked_N = tuned.outputs.asked(released, readout_N)
            # Every batch is inlined once, so the cloud never has to ask for it again.
            stream.send(
                uploader.forward(released, asked_N, step=0, micro_batch=number, forward_only=True, inline_all=True)
            )
            waiting.append((number, indices, released))
            yield

    sender = send()
    for _ in range(IN_FLIGHT):
        next(sender, None)
    while waiting:
        number, indices, released = waiting.popleft()
        readout_N = pooled_positions(released.lengths_B, tuned.parts.readout)
        out_ND = tuned.outputs.out(data, indices, released, readout_N, stream.expect(0, number, OUTPUT))
        for index, row_C in zip(indices.tolist(), tuned.logits(out_ND).softmax(-1).tolist(), strict=True):
            probabilities = dict(zip(state.label_names, row_C, strict=True))
            found[index] = Prediction(
                label=max(probabilities, key=probabilities.__getitem__), probabilities=probabilities
            )
        next(sender, None)
    return [found[index] for index in range(len(data))]
