"""What tuning found, as a document, a picture and a page. Every figure in them is of the dev split, and says so."""

from __future__ import annotations

from dataclasses import asdict
from html import escape
from typing import Any

from privtune.device.audit.report.frame import bullets, claim, depth, document, section
from privtune.device.audit.report.picture import Goal, Point, frontier
from privtune.device.audit.tuning.choice import Setting, Wish, Words, naming, short, shown
from privtune.device.audit.tuning.request import TuneRequest
from privtune.device.audit.tuning.tune import Tuned
from privtune.shared import __version__

NOTES = (
    "Every figure is of the dev split, on which the setting was chosen: confirm it on records that were not used here, "
    "with `privtune audit` and `privtune evaluate`.",
    "Intervals are for each setting alone; trying many settings makes it likelier that one looks better than it is.",
    "The attackers are those of the audit, with its limits: measured attacks are not a proof.",
    "Training here trains every weight above the cut (with a tail: all that is the device's) in one process, which is "
    "at least as much as an adapter can do.",
    "The choice depends on your records; what it tells of them is not accounted.",
)


def headline(request: TuneRequest, tuned: Tuned) -> str:
    """The outcome in one line."""
    named = f"{request.param}={shown(tuned.choice.setting.value)}"
    if tuned.choice.met:
        return f"{request.mechanism} with {named} meets the wish on the dev split"
    return f"No setting of {request.mechanism} surely meets the wish on the dev split; {named} is nearest"


def wished(wish: Wish) -> str:
    """The limits in words."""
    limits = []
    if wish.max_recovery is not None:
        limits.append(f"at most {100 * wish.max_recovery:g}% of {naming(wish.words)} recovered")
    if wish.max_drop is not None:
        limits.append(f"at most {100 * wish.max_drop:g} points of accuracy lost")
    return " and ".join(limits) + ", with the whole 95% interval"


def facts_of(request: TuneRequest, tuned: Tuned, command: str | None) -> dict[str, Any]:
    """JSON-ready, without any text of the owner's. command: the line that uses the choice; None where none is met."""
    return {
        "privtune": __version__,
        "split": "dev",
        "model": request.model,
        "cut": request.cut,
        "tail": request.tail,
        "skip": request.skip if request.tail else None,
        "mechanism": request.mechanism,
        "fixed": request.fixed,
        "varied": request.param,
        "wish": asdict(request.wish),
        "size": request.size.name,
        "training": asdict(request.training),
        "records": tuned.records,
        "no_noise": asdict(tuned.clean),
        "settings": [
            asdict(setting) | {key: tuned.facts[setting.value][key] for key in ("statement", "seconds", "attacks")}
            for setting in tuned.settings
        ],
        "choice": {"met": tuned.choice.met, "value": tuned.choice.setting.value, "remarks": tuned.choice.remarks},
        "command": command,
        "notes": NOTES,
    }


def picture(request: TuneRequest, tuned: Tuned) -> str:
    """Recovery against accuracy as SVG: a point a setting, the wish as a shaded corner."""
    wish, chosen = request.wish, tuned.choice.setting
    series = f"{request.mechanism}, by {request.param}"
    points = [
        _point(series, f"{shown(s.value)} (chosen)" if s == chosen and tuned.choice.met else shown(s.value), s, wish)
        for s in tuned.settings
    ]
    points.append(_point("no noise", "", tuned.clean, wish))
    goal = Goal(
        name="wished",
        x=max(p.x[2] for p in points) if wish.max_recovery is None else wish.max_recovery,
        y=min(p.y[1] for p in points) if wish.max_drop is None else tuned.clean.accuracy.value - wish.max_drop,
    )
    return frontier(
        points,
        title=f"{request.mechanism} on the dev split",
        x_label=f"{naming(wish.words)} recovered by the worst attack, dev split",
        y_label="accuracy, dev split",
        goals=[goal],
    )


def page(request: TuneRequest, tuned: Tuned, command: str | None) -> str:
    """One HTML file with outcome, picture and table; no script, no outside resource."""
    title = headline(request, tuned)
    tone = "good" if tuned.choice.met else "warn"
    remarks = "".join(f"<p>{escape(line)}</p>" for line in tuned.choice.remarks)
    used = f"<p>Use it:</p><p><code>{escape(command)}</code></p>" if command else ""
    statement = tuned.facts[tuned.choice.setting.value]["statement"]
    records = tuned.records
    where = depth(request.cut, request.tail, request.skip)
    about = (
        f"{request.model}, {where}, {request.size.name} attacks on {records['attacked']:,} of {records['dev']:,} dev "
        f"records; {records['train']:,} training records. In brackets: 95% intervals."
    )
    parts = [
        f'<section class="verdict {tone}"><h2>{escape(title)}</h2><p>Wished: {escape(wished(request.wish))}.</p>'
        f"{remarks}{used}</section>",
        section(
            "Recovery against accuracy, dev split", "The shaded corner is what was wished.", picture(request, tuned)
        ),
        section("Every setting, dev split", about, _table(request, tuned)),
        section("Privacy statement of this setting", "", claim(statement)),
        section("How far this goes", "", bullets(NOTES)),
    ]
    return document("PrivTune noise tuning", title, parts)


def _point(series: str, name: str, setting: Setting, wish: Wish) -> Point:
    x, y = setting.recovered[wish.words], setting.accuracy
    return Point(series=series, name=name, x=(x.value, x.low, x.high), y=(y.value, y.low, y.high))


def _table(request: TuneRequest, tuned: Tuned) -> str:
    words: tuple[Words, Words] = ("content", "all") if request.wish.words == "content" else ("all", "content")
    titles = (request.param, *(f"{naming(which)}, %" for which in words), "accuracy, %", "points lost", "worst attack")
    head = "".join(f"<th>{escape(title)}</th>" for title in titles)
    return (
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>'
        + _row("no noise", tuned.clean, words, top=False)
        + "".join(_row(shown(s.value), s, words, top=s == tuned.choice.setting) for s in tuned.settings)
        + "</tbody></table></div>"
    )


def _row(name: str, setting: Setting, words: tuple[Words, Words], *, top: bool) -> str:
    estimates = [*(setting.recovered[which] for which in words), setting.accuracy, setting.drop]
    cells = [short(estimate) for estimate in estimates]
    told = "".join(f"<td>{escape(cell)}</td>" for cell in [name, *cells, setting.recovered[words[0]].attack])
    return f'<tr class="top">{told}</tr>' if top else f"<tr>{told}</tr>"
