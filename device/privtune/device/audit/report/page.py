"""The audit as one HTML file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from operator import eq
from typing import Any

from markupsafe import Markup

from privtune.device.audit.identifying import FIGURE, NAME
from privtune.device.audit.report.document import Audit
from privtune.device.audit.report.frame import depth, inline, render_page
from privtune.device.audit.report.picture import Point, frontier
from privtune.shared.wording import counted

_BEGINS = ("\u0120", "\u2581")  # marks of a word's beginning: byte-level BPE, SentencePiece
_COLOURS = {"most": "bad", "some": "warn", "little": "good"}
_SMALL = "Per cent; small: the 95% interval, if there is one, and the floor after the bar."
_INVERSION = (
    ("top1", "all words"),
    ("top5", "in 5 guesses"),
    ("top10", "in 10"),
    ("content_top1", "content words"),
    ("rouge_l", "ROUGE-L"),
    ("exact", "whole records"),
)
_ATTRIBUTE = (("accuracy", "accuracy"), ("macro_f1", "macro F1"), ("auc", "AUC"))


def render(audit: Audit) -> str:
    """The whole page."""
    facts = audit.document
    by_kind = {kind: [row for row in facts["attacks"] if row["kind"] == kind] for kind in ("inversion", "attribute")}
    frames = facts.get("transcript", {}).get("frames", {})
    own = next((one["figure"] for one in facts["side_channels"] if one["name"] == NAME), None)
    return render_page(
        "audit.html",
        name="PrivTune audit",
        headline=facts["verdict"]["headline"],
        facts=facts,
        tone=_COLOURS[facts["verdict"]["level"]],
        tiles=_tiles(facts, by_kind["inversion"], own),
        frames=sorted(frames.items(), key=lambda one: (not one[0].startswith("up"), one[0])),
        **by_kind,
        inversion_columns=_INVERSION if own is None else (*_INVERSION, (FIGURE, "replaced words")),
        attribute_columns=_ATTRIBUTE,
        small=_SMALL,
        examples=[_example(truth, guess) for truth, guess in audit.examples],
        picture=_frontier(facts["frontier"]) if facts["frontier"] else None,
        settings=_settings(facts),
    )


def _tiles(
    facts: dict[str, Any], inversion: Sequence[dict[str, Any]], own: dict[str, Any] | None
) -> list[tuple[str, str]]:
    """The figures at the top, each with what it is. own: of replaced words."""
    oblivious = [row for row in inversion if row["knowledge"] == "oblivious"]
    tiles = [
        (_best(inversion, "top1"), "of all words, attacker who knows the mechanism"),
        (_best(inversion, "content_top1"), "of content words, the same attacker"),
        (_best(oblivious, "top1"), "of all words, attacker who does not know it"),
    ]
    if own is not None:
        about = f"of your replaced words, any attacker ({100 * own['floor']:.1f}% by chance)"
        tiles.append((f"{100 * own['value']:.1f}%", about))
    if facts["utility"]:
        lost = facts["utility"]["clean"]["value"] - facts["utility"]["released"]["value"]
        tiles.append((f"{100 * lost:+.1f}", "points of accuracy lost (estimate)"))
    return tiles


def _best(rows: Sequence[dict[str, Any]], figure: str) -> str:
    return f"{100 * max((row['figures'][figure]['value'] for row in rows), default=0.0):.1f}%"


def _example(truth: Sequence[str], guess: Sequence[str]) -> tuple[list[tuple[str, str]], list[tuple[str, str, bool]]]:
    """The record and the guess; of each token the gap before it, its text and whether the guess is right."""
    right = map(eq, truth, guess)
    return list(_spaced(truth)), [(*token, hit) for token, hit in zip(_spaced(guess), right, strict=True)]


def _spaced(tokens: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Each token as people write it, after the blank before it, if any: pieces of a word stand together.

    WordPiece marks what continues a word (##), byte-level BPE and SentencePiece what begins one.
    """
    begins = any(token.startswith(_BEGINS) for token in tokens)
    for token in tokens:
        if token.startswith("##") and len(token) > 2:
            yield "", token[2:]
        elif begins:
            yield (" ", token[1:]) if token.startswith(_BEGINS) else ("", token)
        else:
            yield " ", token


def _frontier(points: Sequence[dict[str, Any]]) -> Markup:
    drawn = [
        Point(series=one["series"], name=one["name"], x=tuple(one["recovered"]), y=tuple(one["accuracy"]))
        for one in points
    ]
    picture = frontier(
        drawn,
        title="Recovery against utility",
        x_label="content words recovered",
        y_label="accuracy (estimate)",
        join=False,
    )
    return inline(picture)


def _settings(facts: dict[str, Any]) -> dict[str, str]:
    mechanism, records = facts["mechanism"], facts["records"]
    params = ", ".join(f"{key}={value}" for key, value in mechanism["params"].items()) or "default settings"
    sent = "as they were sent" if facts.get("transcript") else "each with a fresh release"
    where = depth(facts["cut"], facts["tail"], facts["skip"])
    return {
        "model": f"{facts['model']}, {where}, noise at the {facts['injection']}",
        "mechanism": f"{mechanism['name']} ({params})",
        "attacked": f"{records['attacked']:,} of your records, {sent}",
        "attacker's text": f"{counted(records['public'], 'public text')}, and "
        f"{counted(records['own_as_public'], 'other record')} of "
        "yours, which stand for text of the same kind",
        "size": f"{facts['size']}, {facts['seconds']:,.0f} s, PrivTune {facts['privtune']}",
    }
