"""Which of several measured settings to take: the rule of `privtune tune-noise`, without models or files.

All figures are of a dev split. A setting keeps a limit if the unfavourable end of its 95% interval does, not just its
value. Shares are between 0 and 1; `drop` is a difference of two shares.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

Words = Literal["content", "all"]
Value = float | int | str | bool
TRUSTED = 0.95  # share that the attacks must recover from clean vectors (docs/attacks.md)


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A value and its 95% interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Recovered(Estimate):
    """What the worst attack recovers.

    floor: the same without seeing a release.
    attack: its name.
    """

    floor: float
    attack: str


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One measured setting.

    value: of the varied parameter.
    drop: accuracy that it loses, on the same records.
    """

    value: Value
    recovered: dict[Words, Recovered]
    accuracy: Estimate
    drop: Estimate


@dataclass(frozen=True, kw_only=True)
class Wish:
    """Limits on the share of these words that may be recovered and on lost accuracy; None: no limit."""

    words: Words
    max_recovery: float | None
    max_drop: float | None

    def misses(self, setting: Setting) -> dict[str, float]:
        """Each limit that the setting may break, and by how much."""
        ends = {
            "recovery": (setting.recovered[self.words].high, self.max_recovery),
            "drop": (setting.drop.high, self.max_drop),
        }
        return {name: high - limit for name, (high, limit) in ends.items() if limit is not None and high > limit}

    def cost(self, setting: Setting) -> float:
        """What to minimise among settings that keep all limits: lost accuracy if it has no limit, else recovery."""
        return setting.drop.value if self.max_drop is None else setting.recovered[self.words].value


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The outcome.

    met: `setting` keeps every limit; otherwise it is the nearest.
    remarks: which limits are in the way, and caveats.
    """

    setting: Setting
    met: bool
    remarks: tuple[str, ...]


def choose(settings: Sequence[Setting], wish: Wish, clean: Setting, majority: float) -> Choice:
    """The setting to take. clean: without noise; majority: accuracy of always naming the most common label."""
    chosen = best(settings, wish)
    remarks = _limits(settings, chosen, wish)
    named = clean.recovered[wish.words]
    blind = wish.max_recovery is not None and named.high <= wish.max_recovery
    if blind:
        remarks.append(
            f"Even without noise the attacks name no more than you allow ({span(named)} of {naming(wish.words)}), so "
            "they can't tell settings apart: give more records or --public-text, use --full, or --of all."
        )
    elif named.value < TRUSTED:
        remarks.append(
            f"Without noise the attacks name only {span(named)} of {naming(wish.words)}: a better attacker may recover "
            "more than these figures show. More records, --public-text or --full make them stronger."
        )
    if chosen.accuracy.low <= majority:
        remarks.append(f"Always naming the most common label would be right {100 * majority:.1f}% of the time.")
    return Choice(setting=chosen, met=not wish.misses(chosen) and not blind, remarks=tuple(remarks))


def best(settings: Sequence[Setting], wish: Wish) -> Setting:
    """The cheapest setting that keeps every limit; if there is none, the one that misses by least."""
    return min(settings, key=lambda setting: (max(wish.misses(setting).values(), default=0.0), wish.cost(setting)))


def between(settings: Sequence[Setting], wish: Wish, *, whole: bool) -> float | int | None:
    """The value to measure next: the geometric mean of two neighbours between which the answer lies.

    One neighbour keeps a limit that the other breaks. None: there is no such pair, or no value between them.
    whole: the parameter takes whole numbers only.
    """
    numbers = {float(setting.value): setting for setting in settings if not isinstance(setting.value, str | bool)}
    chosen = best(settings, wish)
    missed = wish.misses(chosen).keys()
    found: list[tuple[float, float, float]] = []
    for low, high in pairwise(sorted(numbers)):
        pair = (numbers[low], numbers[high])
        if chosen not in pair:
            continue
        other = pair[1] if chosen == pair[0] else pair[0]
        # Beside one that keeps all limits, one that does not; beside one that misses some, one that misses others.
        beyond = wish.misses(other).keys()
        if (beyond and not missed) or (missed and not missed <= beyond):
            found.append((wish.cost(other), low, high))
    for _, low, high in sorted(found):
        middle = (low * high) ** 0.5 if low > 0 else (low + high) / 2
        value = round(middle) if whole else float(f"{middle:.3g}")
        if low < value < high:
            return value
    return None


def _limits(settings: Sequence[Setting], nearest: Setting, wish: Wish) -> list[str]:
    """Which limits are in the way, for the nearest setting and for all of them. Empty if it keeps all limits."""
    lines: list[str] = []
    recovered, missed = nearest.recovered[wish.words], wish.misses(nearest)
    if not missed:
        return lines
    if "recovery" in missed and wish.max_recovery is not None:
        lines.append(
            f"{recovered.attack} still names {span(recovered)} of {naming(wish.words)}; at most "
            f"{100 * wish.max_recovery:g}% is allowed.{_too_wide(recovered, wish.max_recovery)}"
        )
    if "drop" in missed and wish.max_drop is not None:
        lines.append(
            f"It loses {span(nearest.drop, 'points')} of accuracy; at most {100 * wish.max_drop:g} are allowed."
            f"{_too_wide(nearest.drop, wish.max_drop)}"
        )
    always = set.intersection(*(set(wish.misses(setting)) for setting in settings))
    if "recovery" in always:
        lines.append("No setting that was tried hides enough: try stronger ones, another mechanism or a deeper cut.")
    if "drop" in always:
        lines.append("No setting that was tried keeps enough accuracy: try weaker ones or another mechanism.")
    if not always:
        lines.append(
            "Settings that surely hide enough may lose too much: try --refine, another mechanism or other --param "
            "values."
        )
    return lines


def _too_wide(estimate: Estimate, limit: float) -> str:
    if estimate.value > limit:
        return ""
    return " The value itself keeps the limit, but its interval does not: more dev records make it narrower."


def naming(words: Words) -> str:
    """`content words` or `all words`."""
    return "content words" if words == "content" else "all words"


def span(estimate: Estimate, unit: Literal["%", "points"] = "%") -> str:
    """`12.3% [10.1, 14.6]` or `2.1 points [0.4, 3.9]`."""
    value, low, high = (100 * number for number in (estimate.value, estimate.low, estimate.high))
    return f"{value:.1f}{'%' if unit == '%' else ' points'} [{low:.1f}, {high:.1f}]"


def short(estimate: Estimate) -> str:
    """For tables: `12.3 [10, 15]`."""
    return f"{100 * estimate.value:.1f} [{100 * estimate.low:.0f}, {100 * estimate.high:.0f}]"


def shown(value: Value) -> str:
    """A value as people type it: 3, 2.5, true."""
    if isinstance(value, bool):
        return str(value).lower()
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
