"""Private prediction: texts go through bottom, the same noise, the tuned top in the cloud, and the head at home."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

from device.account import PREDICTIONS, Releasing
from device.batches import evaluation_batches
from device.data.encode import EncodedDataset, encode_texts
from device.data.records import Columns, Record, Records
from device.fitted import OwnRecords
from device.head import HeadTrainer
from device.jobfolder import JobFolder, JobState
from device.link import Link, Stream
from device.objectives import pooled_positions
from device.parts import build_perturber, load_parts, open_request
from device.perturb import Perturber, Released, Uploader
from device.run import RunSettings
from shared.errors import InvalidInput, JobConflict
from shared.modeling.checkpoint import checkpoint_steps
from shared.modeling.package import BottomPackage
from shared.wire import OUTPUT

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
    folder = JobFolder(settings.home, job_id)
    state = folder.load()
    if state.spec.task != "classification":
        raise InvalidInput("predict is for classification jobs; this one is a language model")
    steps = checkpoint_steps(folder.checkpoints)
    if not steps:
        raise JobConflict("this job has no checkpoint on this device yet; train it first")
    with settings.account(job_id) as account, Link(settings.endpoint, account.transcript) as link:
        parts = load_parts(
            link,
            job_id,
            state.spec,
            home=settings.home,
            local_model=settings.local_model or state.local_model,
            num_labels=len(state.label_names),
            say=lambda _: None,
        )
        head = HeadTrainer(parts.head, state.spec.optim, seed=0, total_steps=1)
        if state.spec.labels == "private":
            head.load(folder.checkpoints, steps[-1])
        data = _encode(texts, parts, state)
        if data.truncated:
            limit = state.spec.train.max_length
            say(f"{data.truncated:,} of {len(data):,} texts were longer than the job's {limit} tokens and were cut")
        own = OwnRecords(home=settings.home, fingerprint=state.data_fingerprint, job=folder.path)
        perturber, mechanism, store = build_perturber(parts, state.spec, settings.home, own)
        how = Releasing(
            spec=state.spec,
            store=store,
            perturber=perturber,
            statement=mechanism.statement(perturber.source),
            width=parts.hidden_size,
        )
        with contextlib.closing(store), contextlib.ExitStack() as ending:
            ending.callback(account.settle)
            warning = account.admit(how, data, source=PREDICTIONS, name=PREDICTIONS, part="predict")
            if warning is not None:
                say(warning)
            account.transcript.records(store.fingerprint, [key.packed() for key in perturber.keys(data)])
            stream = link.stream(
                link.open(open_request(parts, job_id, state.spec, infer=True)),
                job_id,
                infer=True,
                patience=settings.no_progress_timeout,
            )
            ending.callback(stream.close)
            return _classify(data, parts, state, head, perturber, stream, batch_size)


def _encode(texts: Sequence[Text], parts: BottomPackage, state: JobState) -> EncodedDataset:
    pairs = [text if isinstance(text, tuple) else (text, None) for text in texts]
    paired = {second is not None for _, second in pairs}
    if len(paired) > 1:
        raise InvalidInput("give either texts or pairs of texts, not both at once")
    items = tuple(Record(number=i + 1, text=first, text2=second) for i, (first, second) in enumerate(pairs))
    columns = Columns(text="text", text2="text2" if paired == {True} else None)
    records = Records(source="the texts", unit="text", columns=columns, items=items)
    ids, truncated = encode_texts(records, parts.tokenizer, state.spec.train.max_length)
    return EncodedDataset(ids=ids, label_names=state.label_names, truncated=truncated)


def _classify(
    data: EncodedDataset,
    parts: BottomPackage,
    state: JobState,
    head: HeadTrainer,
    perturber: Perturber,
    stream: Stream,
    batch_size: int,
) -> list[Prediction]:
    uploader = Uploader(parts.hidden_size, state.spec.codec)
    found: dict[int, Prediction] = {}
    waiting: deque[tuple[int, list[int]]] = deque()
    batches = enumerate(evaluation_batches(data.lengths, batch_size))

    def send() -> Iterator[None]:
        for number, indices in batches:
            released: Released = perturber.release(data, indices)
            readout_N = pooled_positions(released.lengths_B, parts.readout)
            # Every batch is inlined once, so the cloud never has to ask for it again.
            stream.send(
                uploader.forward(released, readout_N, step=0, micro_batch=number, forward_only=True, inline_all=True)
            )
            waiting.append((number, indices.tolist()))
            yield

    sender = send()
    for _ in range(IN_FLIGHT):
        next(sender, None)
    while waiting:
        number, indices = waiting.popleft()
        out_ND = torch.from_numpy(stream.expect(0, number, OUTPUT).tensor())
        logits_NC = out_ND if state.spec.labels == "shared" else head.logits(out_ND)
        for index, row_C in zip(indices, logits_NC.softmax(-1).tolist(), strict=True):
            probabilities = dict(zip(state.label_names, row_C, strict=True))
            found[index] = Prediction(
                label=max(probabilities, key=probabilities.__getitem__), probabilities=probabilities
            )
        next(sender, None)
    return [found[index] for index in range(len(data))]
