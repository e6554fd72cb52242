"""Private generation: prompts go through bottom, noise and the tuned top in the cloud; words are chosen at home."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from privtune.device.data.encode import EncodedDataset
from privtune.device.home.job_folder import JobFolder
from privtune.device.inference.generation.prompt_builder import Asked, Prompt
from privtune.device.inference.generation.sampling import Odds, Sampling
from privtune.device.inference.generation.writer import Finish, Reply, Writer
from privtune.device.inference.tuned import open_tuned
from privtune.device.session.run_settings import RunSettings
from privtune.device.surrogates.replacement import Replacement
from privtune.shared.errors import InvalidInput

IN_FLIGHT = 8


@dataclass(frozen=True, kw_only=True)
class Generated:
    """An answer.

    text: without special tokens and stop texts, with the true words for surrogates.
    tokens: its ids as the model wrote them, with the one that ended it.
    odds: of each of these tokens, where the sampling asked for them.
    prompt_tokens: length of the prompt.
    finish: why it ended.
    """

    text: str
    tokens: tuple[int, ...]
    prompt_tokens: int
    finish: Finish
    odds: tuple[Odds, ...] = ()


@contextlib.contextmanager
def open_writer(job_id: str, settings: RunSettings, say: Callable[[str], None] = lambda _: None) -> Iterator[Writer]:
    """A writer with the newest state of a language model that this device trained; closing it ends its answers.

    Raises:
        JobNotFound: this device does not hold the job.
        JobConflict: it has no checkpoint.
        InvalidInput: a classifier, or a mechanism that can't release a text row by row.
    """
    state = JobFolder(settings.home, job_id).load()
    if state.spec.task != "causal-lm":
        raise InvalidInput("this job trained a classifier, which can't write; use `privtune predict`")
    surrogates = state.surrogates()
    with open_tuned(job_id, settings, say, Replacement.of(surrogates)) as tuned:
        writer = Writer(tuned, tuned.texts(), surrogates, say)
        with contextlib.closing(writer):
            yield writer


def generate_texts(
    job_id: str,
    prompts: Sequence[Prompt],
    settings: RunSettings,
    *,
    sampling: Sampling | None = None,
    in_flight: int = IN_FLIGHT,
    say: Callable[[str], None] = lambda _: None,
) -> list[Generated]:
    """Answers to prompts (texts, or conversations as sequences of `ChatMessage`), in the order given.

    Args:
        sampling: of each answer; None: greedy, at most 256 tokens.
        in_flight: answers written at once.
        say: gets warnings and lost connections.

    Raises as `open_writer`, `Prompts.asked` and `Writer.begin`.
    """
    if not prompts:
        return []
    done: dict[int, Reply] = {}
    with open_writer(job_id, settings, say) as writer:
        asked = [writer.prompts.asked(prompt) for prompt in prompts]
        data = EncodedDataset(ids=tuple(np.array(one.ids, dtype=np.int32) for one in asked))
        # The order of sending is a secret, like that of records: prompts may come from a sorted file.
        waiting = iter(JobFolder(settings.home, job_id).load().order_of(data).tolist())
        while len(done) < len(prompts) or writer.active:
            while writer.active < in_flight and (place := next(waiting, None)) is not None:
                done[place] = writer.begin(asked[place], sampling or Sampling())
            writer.advance()
    return [generated(done[place]) for place in range(len(prompts))]


def stream_text(writer: Writer, asked: Asked, sampling: Sampling, show: Callable[[str], None]) -> Generated:
    """Write one answer and show its text piece by piece."""
    reply, shown = writer.begin(asked, sampling), 0
    while reply.finish is None:
        writer.advance()
        if len(reply.text) > shown:
            show(reply.text[shown:])
            shown = len(reply.text)
    return generated(reply)


def generated(reply: Reply) -> Generated:
    """A finished reply."""
    return Generated(
        text=reply.text,
        tokens=tuple(reply.new_ids),
        prompt_tokens=len(reply.prompt),
        finish=reply.finish or "cancelled",
        odds=tuple(reply.odds),
    )
