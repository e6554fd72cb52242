"""How good a tuned model is on held-out records: its loss, through the same noise, and what it writes itself.

The records take the private path of training: the cloud sees noised vectors of them, and their ledger line counts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from privtune.device.account.releasing import Outgoing
from privtune.device.account.run_account import source_of
from privtune.device.data.messages import ChatMessage
from privtune.device.data.record_lines import RecordLines, lines_of
from privtune.device.data.records import Records
from privtune.device.data.source import DataSource
from privtune.device.home.job_folder import JobFolder, JobState
from privtune.device.inference.generate import generate_texts
from privtune.device.inference.generation.prompt_builder import Prompt as AnyPrompt
from privtune.device.inference.generation.prompt_builder import Prompts, leaving
from privtune.device.inference.generation.sampling import Sampling
from privtune.device.inference.text_scores import TextScores, require_packages, score_texts
from privtune.device.inference.tuned import open_tuned
from privtune.device.model.bottom import encode_records
from privtune.device.privacy.statements import Statement
from privtune.device.runtime.memory import trim
from privtune.device.session.run_settings import RunSettings
from privtune.device.session.scoring import Scorer
from privtune.device.surrogates.replacement import HELD_OUT, Replacement
from privtune.shared.errors import DataInvalid, InvalidInput

NAME = "evaluation"  # of the records in the ledger
IN_FLIGHT = 4
BATCH, TAIL_BATCH = 16, 4  # records in a message; with a tail all their states come back

Prompt = str | tuple[ChatMessage, ...]


@dataclass(frozen=True, kw_only=True)
class Question:
    """One prompt and all answers that the data has for it."""

    prompt: Prompt
    references: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Written:
    """What the model wrote, greedily.

    questions: the prompts with their references.
    texts: an answer per question.
    too_long: prompts that were left out because the model can't read them whole.
    scores: how near the answers are to the references.
    """

    questions: tuple[Question, ...]
    texts: tuple[str, ...]
    too_long: int
    scores: TextScores


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What was found.

    job_id: the job.
    source: where the records come from.
    records: how many were scored.
    truncated: records that were cut at the job's max_length.
    dropped: records that were left out because nothing to predict was left.
    metrics: loss, accuracy and macro_f1 of a classifier; loss, perplexity and token_accuracy of a language model.
    written: answers of the model; None where none were asked for.
    statement: what may be claimed for the releases.
    """

    job_id: str
    source: str
    records: int
    truncated: int
    dropped: int
    metrics: dict[str, float]
    written: Written | None
    statement: Statement


def evaluate(
    job_id: str,
    source: DataSource,
    settings: RunSettings,
    *,
    generate: int = 0,
    max_new_tokens: int = 64,
    batch_size: int | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> Evaluation:
    """Score the newest state of a job that this device trained.

    Args:
        job_id: the job.
        source: held-out records with labels or completions.
        settings: how to reach the cloud.
        generate: number of different prompts that the model answers, to compare with the completions.
        max_new_tokens: longest answer, in tokens.
        batch_size: records in one message; None: as many as fit the device's memory well.
        say: gets warnings.

    Raises:
        JobNotFound: this device does not hold the job.
        JobConflict: it has no checkpoint.
        InvalidInput: generation from a classifier or without prompts; the packages of the `eval` extra are missing.
        DataInvalid: the records can't be used.
    """
    state = JobFolder(settings.home, job_id).load()
    records = source.load(state.spec.task)
    questions = _questions(source, state, generate) if generate else ()
    material = _material(records, questions, state)
    if material.replacement is not None:
        trim()  # the recognisers are gone before the model comes
    found, readable = _scored(job_id, material, settings, batch_size, say)
    if questions and not any(readable):
        raise DataInvalid(f"{records.source}: every prompt is longer than this model's context; shorten them.")
    if not questions:
        return found
    trim()  # the model that scored is gone: only one is in memory at a time
    kept = [question for question, fits in zip(questions, readable, strict=True) if fits]
    written = _write(job_id, kept, settings, max_new_tokens, say)
    return replace(found, written=replace(written, too_long=len(questions) - len(kept)))


@dataclass(frozen=True, kw_only=True)
class _Material:
    """What the model is to read, with the job's surrogates.

    lines: where the records are in their file.
    prompts: of the questions, to see whether they fit.
    """

    records: Records
    lines: RecordLines
    prompts: list[AnyPrompt]
    replacement: Replacement | None


def _material(records: Records, questions: Sequence[Question], state: JobState) -> _Material:
    surrogates, coverage, lines = state.surrogates(), None, lines_of(records)
    if surrogates is not None:
        records, coverage = surrogates.records(records, HELD_OUT)
    return _Material(
        records=records,
        lines=lines,
        prompts=[leaving(question.prompt, surrogates)[0] for question in questions],
        replacement=Replacement.of(surrogates, coverage),
    )


def _scored(
    job_id: str,
    material: _Material,
    settings: RunSettings,
    batch_size: int | None,
    say: Callable[[str], None],
) -> tuple[Evaluation, list[bool]]:
    """The metrics, and which prompts the model can read whole."""
    records = material.records
    with open_tuned(job_id, settings, say, material.replacement) as tuned:
        state, package = tuned.state, tuned.package
        data = state.shuffled(encode_records(package, records, state.spec, state.label_names, state.prompt))
        source = source_of(records.source)
        outgoing = Outgoing(data=data, source=source, name=NAME, part="validation", lines=material.lines)
        tuned.releasing.admit([outgoing], say)
        scorer = Scorer(
            stream=tuned.stream(),
            uploader=tuned.uploader(),
            states=tuned.states,
            readout=package.readout,
            batch_size=batch_size or (TAIL_BATCH if state.spec.tail else BATCH),
            in_flight=IN_FLIGHT,
        )
        found = Evaluation(
            job_id=job_id,
            source=records.source,
            records=len(data),
            truncated=data.truncated,
            dropped=data.dropped,
            metrics=scorer.score(data),
            written=None,
            statement=tuned.releasing.statement,
        )
        prompts = Prompts(package, state.prompt)
        return found, [prompts.fits(prompt) for prompt in material.prompts]


def questions_of(records: Records) -> list[Question]:
    """The different prompts, in file order, each with all its completions. Raises InvalidInput for plain texts."""
    if records.columns.prompt is None and records.columns.messages is None:
        raise InvalidInput(
            f"{records.source}: --generate needs prompts: data with prompt and completion, or messages.",
            param="generate",
        )
    answers: dict[Prompt, list[str]] = {}
    for record in records:
        prompt: Prompt = record.messages[:-1] if record.prompt is None else record.prompt
        if prompt:
            answers.setdefault(prompt, []).append(record.text)
    return [Question(prompt=prompt, references=tuple(texts)) for prompt, texts in answers.items()]


def _questions(source: DataSource, state: JobState, count: int) -> tuple[Question, ...]:
    """At most `count` of them, drawn at random, with all answers of the file: a limit is for the scored records."""
    if state.spec.task != "causal-lm":
        raise InvalidInput("--generate is for language models; this job trained a classifier.", param="generate")
    require_packages()
    whole = replace(source, limit=None) if source.part == "all" else source
    found = questions_of(whole.load(state.spec.task))
    picked = np.random.default_rng([source.seed, 2]).permutation(len(found))[:count]
    return tuple(found[index] for index in sorted(picked.tolist()))


def _write(
    job_id: str, questions: Sequence[Question], settings: RunSettings, longest: int, say: Callable[[str], None]
) -> Written:
    prompts = [question.prompt for question in questions]
    answers = generate_texts(job_id, prompts, settings, sampling=Sampling(max_new_tokens=longest), say=say)
    texts = tuple(answer.text.strip() for answer in answers)
    scores = score_texts(texts, [[text.strip() for text in question.references] for question in questions])
    return Written(questions=tuple(questions), texts=texts, too_long=0, scores=scores)
