"""Answers of a tuned language model: prompts and answers are released row by row, as in a job.

N answers in progress, T rows of a prompt, D width.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from privtune.device.audit.attacks.attack import Say, silent
from privtune.device.data.encode import BoolArray, IntArray
from privtune.device.inference.generation.growing_rows import GrowingText, RowSource
from privtune.device.release.beginnings import Beginnings
from privtune.device.release.noising import Noise
from privtune.device.release.release_store import ReleaseStore
from privtune.shared.codec import decode
from privtune.shared.modeling.bottom_package import BottomPackage
from privtune.shared.modeling.kv_cache import TopCache
from research.paper.perplexity import TunedLanguageModel

_CODEC = "fp32"
_STORE_BYTES = 8 << 30


@torch.no_grad()
def write_answers(
    parts: BottomPackage,
    noise: Noise,
    tuned: TunedLanguageModel,
    prompts: Sequence[IntArray],
    *,
    longest: int,
    say: Say = silent,
) -> list[str]:
    """Greedy answers to the prompts, of at most `longest` tokens each.

    Every row is drawn once, and equal beginnings share their rows, as on a device. Raises InvalidInput for a mechanism
    that can't release a text row by row.
    """
    tuned.eval()
    with tempfile.TemporaryDirectory() as folder:
        store = ReleaseStore(Path(folder) / "rows.sqlite", noise.fingerprint, _STORE_BYTES)
        beginnings = Beginnings(store, _CODEC, at_embedding=noise.mechanism.injection == "embedding")
        with contextlib.closing(store), contextlib.closing(beginnings):
            rows = RowSource(bottom=parts.bottom, noise=noise, beginnings=beginnings, codec=_CODEC)
            answers = [_Answer(rows, tuned, prompt, _room(parts, prompt, longest)) for prompt in prompts]
            _write(answers, tuned, parts.end_ids, longest, say)
    return [parts.tokenizer.decode(answer.ids, skip_special_tokens=True).strip() for answer in answers]


class _Answer:
    """One answer: its rows on the device, its state in the top, and the tokens chosen so far."""

    def __init__(self, rows: RowSource, tuned: TunedLanguageModel, prompt: IntArray, room: int) -> None:
        self.text, self.state, self.room = GrowingText(rows), TopCache(tuned.top), room
        self.ids: list[int] = []
        self._mechanism = rows.noise.mechanism
        self.text.extend([int(token) for token in prompt])

    def sent(self, start: int) -> Tensor:
        """The rows from `start` on, as the cloud receives them, (T, D)."""
        width, codec = self._mechanism.sent_as(_CODEC)
        places_T = np.arange(len(self.text.ids))[start:]
        rows_TW = decode(self.text.encoded(start), len(places_T), width, codec)
        table = self._mechanism.table
        return torch.from_numpy(rows_TW if table is None else table.vectors(rows_TW[:, 0].astype(np.int64), places_T))


def _write(
    answers: Sequence[_Answer], tuned: TunedLanguageModel, end_ids: frozenset[int], longest: int, say: Say
) -> None:
    """Choose tokens until every answer has ended."""
    prompts = [answer.sent(0) for answer in answers]
    lengths = [len(rows_TD) for rows_TD in prompts]
    with tuned.precision():
        padded_NTD = pad_sequence(prompts, batch_first=True)
        out_NTD = TopCache.begin_together([answer.state for answer in answers], padded_NTD, lengths)
    out_ND = out_NTD[torch.arange(len(answers)), torch.tensor(lengths) - 1]
    live = list(answers)
    for place in range(longest):
        for answer, token in zip(live, tuned.head(out_ND.float()).argmax(1).tolist(), strict=True):
            answer.ids.append(token)
        live = [answer for answer in live if answer.ids[-1] not in end_ids and len(answer.ids) < answer.room]
        if not live:
            break
        GrowingText.extend_together([answer.text for answer in live], [answer.ids[-1] for answer in live])
        newest_ND = torch.cat([answer.sent(-1) for answer in live])
        with tuned.precision():
            out_ND = TopCache.extend_together([answer.state for answer in live], newest_ND)
        say("writing answers", (place + 1) / longest)


def _room(parts: BottomPackage, prompt: IntArray, longest: int) -> int:
    return longest if parts.max_positions is None else min(longest, parts.max_positions - len(prompt))


def prompt_of(ids_T: IntArray, loss_mask_T: BoolArray) -> IntArray:
    """The tokens before the first predicted one."""
    return ids_T[: int(np.argmax(loss_mask_T))]
