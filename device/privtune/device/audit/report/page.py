"""The audit as one HTML file: what stands on the page, every text escaped."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape
from operator import eq
from typing import Any

from privtune.device.audit.report.document import Audit
from privtune.device.audit.report.frame import bullets, claim, depth, document, prose, section
from privtune.device.audit.report.picture import Point, frontier

_NAMESPACE = ' xmlns="http://www.w3.org/2000/svg"'
_BEGINS = ("\u0120", "\u2581")  # marks of a word's beginning: byte-level BPE, SentencePiece
_COLOURS = {"most": "bad", "some": "warn", "little": "good"}


def render(audit: Audit) -> str:
    """The whole page."""
    facts = audit.document
    inversion = [row for row in facts["attacks"] if row["kind"] == "inversion"]
    attribute = [row for row in facts["attacks"] if row["kind"] == "attribute"]
    sent = facts.get("transcript")
    parts = [
        _verdict(facts, inversion),
        section("What was really sent", _sent_note(sent), _sent(sent)) if sent else "",
        section("Words read back", _CHART_NOTE, _chart(inversion), _inversion_table(inversion)),
        section("What the attacker makes of your sentences", _EXAMPLE_NOTE, _examples(audit.examples)),
        section("A private attribute", _ATTRIBUTE_NOTE, _attribute_table(attribute)) if attribute else "",
        section("What training itself gives away", _SMALL, _channels(facts["side_channels"])),
        section("Use for training", _use_note(facts), _utility(facts["utility"])) if facts["utility"] else "",
        section("Between reading and use", _FRONTIER_NOTE, _frontier(facts["frontier"])) if facts["frontier"] else "",
        section("Privacy statement", "", claim(facts["statement"])),
        section("Not tested", "The audit says nothing about these.", bullets(facts["not_tested"])),
        section("This audit", "", _facts(facts)),
    ]
    return document("PrivTune audit", facts["verdict"]["headline"], parts)


_SMALL = "Per cent; small: the 95% interval where there is one and, after the bar, the floor."
_FRONTIER_NOTE = (
    "Up and to the left is better: little read, much kept. Across: content words that the worst attack names. Up: the "
    "accuracy estimate of the section above. The bars are 95% intervals. Other strengths, where they were asked for "
    "(--frontier), were attacked by the codebook only, so that they may lie a little too far left."
)
_CHART_NOTE = (
    "Share of words that the first guess names, with the 95% interval. Adaptive attackers know the mechanism and "
    "simulate it; oblivious ones do not. The tick is what guessing the commonest word everywhere would score. "
    "Content words are those outside the 100 commonest of the public text; the attack called `content` is after these "
    "alone and never names another word."
)
_EXAMPLE_NOTE = (
    "Records of yours and the best guess of an attacker who knows the mechanism; words that it got right are marked. "
    "This is your text: the page stays on this device."
)
_ATTRIBUTE_NOTE = (
    "Can the label (or the attribute that you named) be told from what is sent, by someone who has labelled text of "
    "the same kind? The floor is the commonest class. If it is the label of the task, training needs some of this."
)
_UTILITY_NOTE = (
    "Accuracy of a small classifier on the frozen model's final states: an estimate of what the noise costs before any "
    "fine-tuning. Fine-tuning usually does better on both."
)
_SKIP_NOTE = (
    " On what is sent, the classifier also has the mean of the clean vectors, which go past the cloud into the tail."
)


def _scroll(inner: str) -> str:
    """What is wider than a narrow window scrolls by itself."""
    return f'<div class="scroll">{inner}</div>'


def _verdict(facts: dict[str, Any], inversion: Sequence[dict[str, Any]]) -> str:
    verdict = facts["verdict"]
    oblivious = [row for row in inversion if row["knowledge"] == "oblivious"]
    tiles = [
        _tile(_best(inversion, "top1"), "of all words, attacker who knows the mechanism"),
        _tile(_best(inversion, "content_top1"), "of content words, the same"),
        _tile(_best(oblivious, "top1"), "of all words, who does not know it"),
    ]
    if facts["utility"]:
        lost = facts["utility"]["clean"]["value"] - facts["utility"]["released"]["value"]
        tiles.append(f'<div class="tile"><b>{100 * lost:+.1f}</b><span>points of accuracy lost (estimate)</span></div>')
    return (
        f'<section class="verdict {_COLOURS[verdict["level"]]}"><h2>{escape(verdict["headline"])}</h2>'
        f'<p>{escape(verdict["text"])}</p><div class="tiles">{"".join(tiles)}</div></section>'
    )


def _best(rows: Sequence[dict[str, Any]], figure: str) -> float:
    return float(max((row["figures"][figure]["value"] for row in rows), default=0.0))


def _tile(share: float, about: str) -> str:
    return f'<div class="tile"><b>{100 * share:.1f}%</b><span>{escape(about)}</span></div>'


def _chart(rows: Sequence[dict[str, Any]]) -> str:
    """Horizontal bars, one an attack; in a narrow window each name stands above its bar."""
    out = []
    for row in rows:
        figure = row["figures"]["top1"]
        value, low, high, floor = (100 * figure[key] for key in ("value", "low", "high", "floor"))
        kind = "bar" if row["knowledge"] == "adaptive" else "bar pale"
        out.append(
            f'<span class="name">{escape(_label(row))}</span><span class="track">'
            f'<span class="{kind}" style="width:{value:.1f}%"></span>'
            f'<span class="interval" style="left:{low:.1f}%;width:{high - low:.1f}%"></span>'
            f'<span class="floor" style="left:{floor:.1f}%"></span></span>'
            f'<span class="value">{value:.1f}%</span>'
        )
    scale = "".join(f"<span>{tick}%</span>" for tick in (0, 25, 50, 75, 100))
    return f'<div class="chart">{"".join(out)}<span class="scale">{scale}</span></div>'


def _label(row: dict[str, Any]) -> str:
    return f"{row['name']} {row['variant']}, {row['knowledge']}"


def _inversion_table(rows: Sequence[dict[str, Any]]) -> str:
    columns = (
        ("top1", "all words"),
        ("top5", "in 5 guesses"),
        ("top10", "in 10"),
        ("content_top1", "content words"),
        ("rouge_l", "ROUGE-L"),
        ("exact", "whole records"),
    )
    return _table(rows, columns, mark="top1")


def _attribute_table(rows: Sequence[dict[str, Any]]) -> str:
    return _table(rows, (("accuracy", "accuracy"), ("macro_f1", "macro F1"), ("auc", "AUC")), mark="accuracy")


def _table(rows: Sequence[dict[str, Any]], columns: Sequence[tuple[str, str]], mark: str) -> str:
    head = "".join(f"<th>{escape(title)}</th>" for _, title in columns)
    most = max((row["figures"][mark]["value"] for row in rows), default=None)
    body = []
    for row in rows:
        cells = "".join(f"<td>{_cell(row['figures'][key])}</td>" for key, _ in columns)
        top = row["figures"][mark]["value"] == most
        opening = '<tr class="top">' if top else "<tr>"
        body.append(f"{opening}<td>{escape(_label(row))}</td>{cells}</tr>")
    return (
        f'<div class="scroll"><table><thead><tr><th>attack</th>{head}</tr></thead><tbody>{"".join(body)}</tbody>'
        f'</table></div><p class="soft">{_SMALL}</p>'
    )


def _cell(figure: dict[str, float]) -> str:
    value, low, high, floor = (100 * figure[key] for key in ("value", "low", "high", "floor"))
    interval = f"{low:.0f}-{high:.0f} | " if high > low else ""
    return f"{value:.1f} <small>{interval}{floor:.1f}</small>"


def _channels(findings: Sequence[dict[str, Any]]) -> str:
    return "".join(
        f'<div class="finding"><p class="cell">{_cell(one["figure"])}</p><div><p>{escape(one["name"])}</p>'
        f'<p class="soft">{prose(one["text"])}</p></div></div>'
        for one in findings
    )


def _examples(examples: Sequence[tuple[list[str], list[str]]]) -> str:
    out = []
    for truth, guess in examples:
        yours = "".join(gap + escape(text) for gap, text in _spaced(truth))
        marked = "".join(
            gap + (f"<mark>{escape(text)}</mark>" if right else escape(text))
            for (gap, text), right in zip(_spaced(guess), map(eq, truth, guess), strict=True)
        )
        out.append(
            f'<div class="pair"><p><span class="who">yours</span>{yours}</p>'
            f'<p><span class="who">attacker</span>{marked}</p></div>'
        )
    return "".join(out)


def _spaced(tokens: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Each token as people write it, and the blank before it: pieces of a word stand together.

    WordPiece marks what goes on (##), byte-level BPE and SentencePiece what begins a word.
    """
    begins = any(token.startswith(_BEGINS) for token in tokens)
    for token in tokens:
        if token.startswith("##") and len(token) > 2:
            yield "", token[2:]
        elif begins:
            yield (" ", token[1:]) if token.startswith(_BEGINS) else ("", token)
        else:
            yield " ", token


def _frontier(points: Sequence[dict[str, Any]]) -> str:
    drawn = [
        Point(series=one["series"], name=one["name"], x=tuple(one["recovered"]), y=tuple(one["accuracy"]))
        for one in points
    ]
    picture = frontier(
        drawn,
        title="What is read, what is kept",
        x_label="content words read back",
        y_label="accuracy (estimate)",
        join=False,
    )
    # Inside a page the picture needs no name space of its own, and the page names no address at all.
    return _scroll(picture.replace(_NAMESPACE, ""))


def _sent_note(sent: dict[str, Any]) -> str:
    return (
        f"This audit attacks the recorded frames of job {sent['job']}: what left this device and what came back, as it "
        f"was. {sent['records_sent']:,} records were found in them."
    )


def _sent(sent: dict[str, Any]) -> str:
    """Every kind of frame in either direction: how many there were, and how many were looked at."""
    rows = []
    for kind, count in sorted(sent["frames"].items(), key=lambda one: (not one[0].startswith("up"), one[0])):
        kept = f"<td>{count['kept_frames']:,}</td><td>{count['kept_bytes']:,}</td>"
        if kind.endswith("(call)"):
            kept = '<td colspan="2">hash only</td>'  # calls carry settings and names, no vectors
        rows.append(
            f"<tr><td>{escape(_kind(kind))}</td><td>{count['frames']:,}</td><td>{count['bytes']:,}</td>{kept}</tr>"
        )
    notes = bullets(sent["notes"]) if sent["notes"] else ""
    return (
        '<div class="scroll"><table><thead><tr><th>direction, kind</th><th>frames</th><th>bytes</th>'
        f"<th>looked at</th><th>bytes</th></tr></thead><tbody>{''.join(rows)}</tbody></table></div>{notes}"
    )


def _kind(kind: str) -> str:
    direction, _, name = kind.partition(" ")
    return f"{'sent' if direction == 'up' else 'came back'}: {name.lower().replace('_', ' ')}"


def _use_note(facts: dict[str, Any]) -> str:
    return _UTILITY_NOTE + (_SKIP_NOTE if facts["skip"] not in (None, "none") else "")


def _utility(utility: dict[str, dict[str, float]]) -> str:
    rows = "".join(
        f"<tr><td>{about}</td><td>{_cell(utility[name])}</td></tr>"
        for name, about in (("clean", "on clean vectors"), ("released", "on what is sent"))
    )
    return f'<div class="scroll"><table><tbody>{rows}</tbody></table></div>'


def _facts(facts: dict[str, Any]) -> str:
    mechanism = facts["mechanism"]
    settings = ", ".join(f"{key}={value}" for key, value in mechanism["params"].items()) or "default settings"
    records = facts["records"]
    where = depth(facts["cut"], facts["tail"], facts["skip"])
    rows = {
        "model": f"{facts['model']}, {where}, noise at the {facts['injection']}",
        "mechanism": f"{mechanism['name']} ({settings})",
        "attacked": f"{records['attacked']:,} of your records, "
        + ("as they were sent" if facts.get("transcript") else "each released afresh"),
        "attacker's text": f"{records['public']:,} public texts and {records['own_as_public']:,} other records of "
        "yours, in place of text of the same kind",
        "size": f"{facts['size']}, {facts['seconds']:,.0f} s, PrivTune {facts['privtune']}",
    }
    return f"<dl>{''.join(f'<dt>{escape(k)}</dt><dd>{escape(v)}</dd>' for k, v in rows.items())}</dl>"
