"""Whether an answer that uses the surrogates comes back with the true words, at once and piece by piece.

Three kinds of answer, of which the truth is known: the replaced text itself, its sentences in another order, and a new
sentence about some of the units ("I told Rose that 12 Elm Road is wrong."). A fourth names none of them: the words of
another carrier sentence, which must come back as they are.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

from privtune.device.surrogates.surrogate_map import Piece, SurrogateMap
from privtune.device.surrogates.surrogates import Surrogates
from research.surrogates.planting import Planted

TEMPLATES = (
    "Thank you, {0}. I will get back to you soon.",
    "I told {0} about {1}, and {1} was happy.",
    "{0}'s message mentions {1}.",
    "Summary: {0}; {1}; {2}.",
    "(see {0}, {1})",
    '{{"a": "{0}", "b": "{1}"}}',
    "Is it {0}? No, it is {1}!",
    "{1}-{0}",
    "**{0}**\n- {1}\n- {2}",
    "{0}",
)


def check_answers(records: Sequence[Planted], tools: dict[str, Surrogates], count: int) -> dict[str, Any]:
    """Of each kind: answers, restored wrongly, streamed to something else than at once; and examples."""
    draw = random.Random(0)
    found: dict[str, Counter[str]] = {}
    wrong: list[dict[str, str]] = []
    before = records[-1]
    for number in range(count):
        record = records[number % len(records)]
        own = tools[record.language].conversation([record.text])
        pieces = own.pieces(record.text)
        for name, answer, truth in (
            ("the text itself", own.replace(record.text), record.text),
            ("its sentences in another order", *_shuffled(pieces, draw)),
            ("a new sentence about its units", *_about(pieces, draw)),
            ("a sentence that names no unit", *[_bare(before)] * 2),
        ):
            row = found.setdefault(name, Counter())
            restored = own.restore(answer)
            row["answers"] += 1
            row["wrong"] += restored != truth
            row["streamed"] += _streamed(own, answer, draw) != restored
            if restored != truth and len(wrong) < 60:
                wrong.append({"kind": name, "answer": answer, "restored": restored, "truth": truth})
        before = record
    return {name: dict(row) for name, row in found.items()} | {"wrong": wrong}


def _streamed(own: SurrogateMap, answer: str, draw: random.Random) -> str:
    restorer, out, at = own.restorer(), "", 0
    while at < len(answer):
        size = draw.choice((1, 1, 2, 3, 5, 9))
        out += restorer.push(answer[at : at + size])
        at += size
    return out + restorer.finish()


def _shuffled(pieces: Sequence[Piece], draw: random.Random) -> tuple[str, str]:
    """Sentences end in a piece that was not replaced."""
    sentences: list[tuple[str, str]] = []
    sent, truth = "", ""
    for piece in pieces:
        for part in [piece.text] if piece.kind else re.split(r"(?<=[.!?]\s)", piece.text):
            sent, truth = sent + (piece.surrogate or part), truth + part
            if piece.kind is None and re.search(r"[.!?]\s$", part):
                sentences.append((sent.strip(), truth.strip()))
                sent, truth = "", ""
    sentences.append((sent.strip(), truth.strip()))
    draw.shuffle(sentences)
    return " ".join(sent for sent, _ in sentences), " ".join(truth for _, truth in sentences)


def _about(pieces: Sequence[Piece], draw: random.Random) -> tuple[str, str]:
    units = [(piece.surrogate or "", piece.text) for piece in pieces if piece.kind] or [("that", "that")]
    chosen = [draw.choice(units) for _ in range(3)]
    template = draw.choice(TEMPLATES)
    return template.format(*(sent for sent, _ in chosen)), template.format(*(truth for _, truth in chosen))


def _bare(record: Planted) -> str:
    """The record with "it" in the place of its units."""
    out, at = "", 0
    for unit in record.units:
        out, at = f"{out}{record.text[at : unit.start]}it", unit.end
    return out + record.text[at:]
