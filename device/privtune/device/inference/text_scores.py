"""How near generated texts are to their references, by the libraries that papers use: rouge-score and sacrebleu."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest

from privtune.shared.errors import InvalidInput
from privtune.shared.packages import require

ROUGE = ("rouge1", "rouge2", "rougeL")


@dataclass(frozen=True, kw_only=True)
class TextScores:
    """How near generated texts are to their references.

    rouge1, rouge2, rougeL: mean F1, 0 to 1; with several references the nearest counts (Lin 2004).
    bleu: of the corpus, 0 to 100 (Papineni et al. 2002, Post 2018).
    signature: how BLEU was computed.
    """

    rouge1: float
    rouge2: float
    rougeL: float  # the metric's own name
    bleu: float
    signature: str


def require_packages() -> None:
    """Raise PackageMissing, before hours of generating, when the packages of the `eval` extra are not installed."""
    require("Written answers are judged by ROUGE and BLEU, which need", ("rouge-score", "sacrebleu"), "eval")


def score_texts(texts: Sequence[str], references: Sequence[Sequence[str]]) -> TextScores:
    """Compare each text with its references, of which there is at least one.

    Raises:
        InvalidInput: no text at all.
        PackageMissing: of the `eval` extra.
    """
    require_packages()
    if not texts:
        raise InvalidInput("There is no generated text to score.")
    import sacrebleu
    from rouge_score.rouge_scorer import RougeScorer

    logging.getLogger("absl").setLevel(logging.WARNING)  # it announces its tokenizer
    rouge = RougeScorer(ROUGE, use_stemmer=True)
    each = [rouge.score_multi(list(known), text) for text, known in zip(texts, references, strict=True)]
    mean = {name: sum(scores[name].fmeasure for scores in each) / len(each) for name in ROUGE}
    bleu = sacrebleu.BLEU()
    # sacrebleu takes the first references of all texts, then the second ones, ...; None where a text has no more
    corpus = bleu.corpus_score(list(texts), [list(row) for row in zip_longest(*references)])
    return TextScores(**mean, bleu=corpus.score, signature=str(bleu.get_signature()))
