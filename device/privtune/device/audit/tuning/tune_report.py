"""What tuning found, as a document, a picture and a page. All of them say that the figures are of the dev split."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from privtune.device.audit.report.frame import depth, inline, render_page
from privtune.device.audit.report.picture import Goal, Point, frontier
from privtune.device.audit.tuning.choice import Setting, Value, Wish, Words, naming, short, shown
from privtune.device.audit.tuning.request import TuneRequest
from privtune.device.audit.tuning.tune import Tuned
from privtune.device.protections.measured import gain_sentence
from privtune.shared import __version__
from privtune.shared.wording import counted

NOTES = (
    "Every figure is of the dev split, on which the setting was chosen: confirm it on records that were not used here, "
    "with `privtune audit` and `privtune evaluate`.",
    "Each interval is for one setting alone; the more settings you try, the likelier one looks better than it is.",
    "The attackers are those of the audit, with its limits: measured attacks are not a proof.",
    "Training here updates every weight above the cut (with a tail: every weight of the device's) in one process, "
    "which is at least as much as an adapter can do.",
    "The choice depends on your records; what it reveals about them is not accounted for.",
)


def headline(request: TuneRequest, tuned: Tuned) -> str:
    """The outcome in one line."""
    named = f"{request.param}={shown(tuned.choice.setting.value)}"
    if tuned.choice.met:
        return f"{request.mechanism} with {named} meets your limits on the dev split"
    return f"No setting of {request.mechanism} surely meets your limits on the dev split; {named} is nearest"


def wished(wish: Wish) -> str:
    """The limits in words."""
    limits = []
    if wish.max_recovery is not None:
        limits.append(f"at most {100 * wish.max_recovery:g}% of {naming(wish.words)} recovered")
    if wish.max_drop is not None:
        limits.append(f"at most {100 * wish.max_drop:g} points of accuracy lost")
    return " and ".join(limits) + ", with the whole 95% interval"


def gain_of(request: TuneRequest, tuned: Tuned, value: Value) -> str:
    """What the cloud adds at one setting: as measured here, else by the published tables."""
    here = tuned.gains.get(value)
    return request.gain(value) if here is None else gain_sentence((here.value, here.low, here.high), "your dev split")


def facts_of(request: TuneRequest, tuned: Tuned, command: str | None) -> dict[str, Any]:
    """JSON-ready, without any of the owner's text. command: the line that uses the choice; None if it is not met."""
    return {
        "privtune": __version__,
        "split": "dev",
        "model": request.model,
        "cut": request.cut,
        "tail": request.tail,
        "skip": request.skip if request.tail else None,
        "surrogates": request.surrogates.model_dump() if request.surrogates.on else None,
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
        "cloud_gain": gain_of(request, tuned, tuned.choice.setting.value),
        "gains": {shown(value): asdict(gain) for value, gain in tuned.gains.items()},
        "command": command,
        "notes": NOTES,
    }


def picture(request: TuneRequest, tuned: Tuned) -> str:
    """Recovery against accuracy as SVG: one point per setting, the limits as a shaded corner."""
    wish, chosen = request.wish, tuned.choice.setting
    series = f"{request.mechanism}, by {request.param}"
    points = [
        _point(series, f"{shown(s.value)} (chosen)" if s == chosen and tuned.choice.met else shown(s.value), s, wish)
        for s in tuned.settings
    ]
    points.append(_point("no noise", "", tuned.clean, wish))
    goal = Goal(
        name="wanted",
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
    records = tuned.records
    words: tuple[Words, Words] = ("content", "all") if request.wish.words == "content" else ("all", "content")
    return render_page(
        "tune.html",
        name="PrivTune noise tuning",
        headline=headline(request, tuned),
        tone="good" if tuned.choice.met else "warn",
        wanted=wished(request.wish),
        remarks=tuned.choice.remarks,
        gain=gain_of(request, tuned, tuned.choice.setting.value),
        command=command,
        picture=inline(picture(request, tuned)),
        about=f"{request.model}, {depth(request.cut, request.tail, request.skip)}, {request.size.name} attacks on "
        f"{records['attacked']:,} of {counted(records['dev'], 'dev record')}; "
        f"{counted(records['train'], 'training record')}. In "
        "brackets: 95% intervals.",
        titles=(
            request.param,
            *(f"{naming(which)}, %" for which in words),
            "accuracy, %",
            "points lost",
            "worst attack",
        ),
        rows=[
            (_row("no noise", tuned.clean, words), False),
            *((_row(shown(one.value), one, words), one == tuned.choice.setting) for one in tuned.settings),
        ],
        statement=tuned.facts[tuned.choice.setting.value]["statement"],
        notes=NOTES,
    )


def _point(series: str, name: str, setting: Setting, wish: Wish) -> Point:
    x, y = setting.recovered[wish.words], setting.accuracy
    return Point(series=series, name=name, x=(x.value, x.low, x.high), y=(y.value, y.low, y.high))


def _row(name: str, setting: Setting, words: tuple[Words, Words]) -> list[str]:
    estimates = [*(setting.recovered[which] for which in words), setting.accuracy, setting.drop]
    return [name, *(short(estimate) for estimate in estimates), setting.recovered[words[0]].attack]
