"""The secret map of one record or conversation: which surrogate replaces which unit, and back.

Each unit's surrogate is drawn independently of the unit, from the public distribution of its kind. So given the kinds
and the pattern of equal words, what leaves says nothing of what was replaced; the map is what knows, and it stays.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from privtune.device.surrogates.coverage import Coverage, coverage_of
from privtune.device.surrogates.finder import Finder
from privtune.device.surrogates.kinds import Case, Kind, Span, case_of, in_case
from privtune.device.surrogates.lexicon import Lexicon
from privtune.device.surrogates.pools import Pools
from privtune.device.surrogates.restorer import Restorer, restoring
from privtune.device.surrogates.whole_words import bounded
from privtune.shared.errors import InternalError

_TRIES = 500  # draws until one is not taken yet: only short numbers come near it
_ROUNDS = 20


@dataclass(slots=True)
class Unit:
    """A replaced word or phrase.

    kind: its public type.
    surrogate: in mixed case.
    surfaces: how the unit is written in each case that was seen.
    """

    kind: Kind
    surrogate: str
    surfaces: dict[Case, str] = field(default_factory=dict)

    def written(self, surface: str) -> str:
        """The surrogate of a surface."""
        return in_case(self.surrogate, case_of(surface))


@dataclass(frozen=True, slots=True)
class Piece:
    """A piece of a text: replaced, or in clear (kind and surrogate None)."""

    text: str
    kind: Kind | None = None
    surrogate: str | None = None


class SurrogateMap:
    """One record's or conversation's map. The same secret and texts in the same order give the same map."""

    def __init__(self, secret: bytes, finder: Finder, pools: Pools, lexicon: Lexicon) -> None:
        self._secret, self._finder, self._pools, self._lexicon = secret, finder, pools, lexicon
        self._units: dict[str, Unit] = {}  # by the unit in lower case
        self._taken: set[str] = set()  # surrogates in lower case
        self._spans: dict[str, list[Span]] = {}  # by text
        self._counts: dict[Kind, int] = {}

    def learn(self, texts: Sequence[str], found: Sequence[list[Span]] | None = None) -> None:
        """Find what identifies in texts, in addition to what the map has, and draw surrogates for it.

        found: what the finder found in each of them, where it was asked about many texts at once.

        A word in clear that equals a surrogate is replaced too: otherwise it would come back as what the surrogate
        stands for.
        """
        new = [text for text in texts if text not in self._spans] if found is None else texts
        for text, spans in zip(new, self._finder.find(new) if found is None else found, strict=True):
            self._spans[text] = spans
            for span in spans:
                self._add(text[span.start : span.end], span.kind)
        for _ in range(_ROUNDS):
            clashes = [clash for text in texts for clash in self._clashes(text)]
            if not clashes:
                return
            for surface, kind in clashes:
                self._add(surface, kind)
        raise InternalError("surrogates and the words of a text can't be told apart")

    def replace(self, text: str) -> str:
        """A learned text as it may leave."""
        return "".join(piece.surrogate or piece.text for piece in self.pieces(text))

    def pieces(self, text: str) -> list[Piece]:
        """A learned text piece by piece, in order."""
        found, at = [], 0
        for span in self._all_spans(text):
            if span.start > at:
                found.append(Piece(text[at : span.start]))
            surface = text[span.start : span.end]
            unit = self._units[surface.lower()]
            found.append(Piece(surface, unit.kind, unit.written(surface)))
            at = span.end
        return [*found, Piece(text[at:])] if at < len(text) or not found else found

    def restore(self, text: str) -> str:
        """What the model wrote, with the true words in the places of their surrogates."""
        return restoring(self._back()).sub(text)

    def restorer(self) -> Restorer:
        """The same for a text that comes piece by piece."""
        return Restorer(restoring(self._back()))

    def coverage(self, texts: Sequence[str]) -> Coverage:
        """How much of learned texts was replaced."""
        return sum((coverage_of(self.pieces(text), self._lexicon) for text in texts), Coverage())

    def _add(self, surface: str, kind: Kind) -> None:
        key = surface.lower()
        unit = self._units.get(key)
        if unit is None:
            unit = self._units[key] = Unit(kind, self._draw(kind, surface))
        unit.surfaces.setdefault(case_of(surface), surface)

    def _draw(self, kind: Kind, surface: str) -> str:
        """A surrogate that no other unit of this map has."""
        for attempt in range(_TRIES):
            longer = surface + "0" * (attempt * 2 // _TRIES)  # half of the tries failed: short numbers run out
            drawn = self._pools.draw(kind, longer, self._choose(kind))
            if drawn.lower() not in self._taken:
                self._taken.add(drawn.lower())
                return drawn
        raise InternalError(f"no surrogate is left for a {kind.value}; split the record")

    def _choose(self, kind: Kind):  # type: ignore[no-untyped-def]  # pools.Choose
        number = self._counts[kind] = self._counts.get(kind, -1) + 1
        state = hmac.new(self._secret, f"{kind.value}\0{number}".encode(), hashlib.sha512).digest()
        left = int.from_bytes(state)

        def choose(below: int) -> int:
            nonlocal left
            if left < below << 64:
                left = int.from_bytes(hashlib.sha512(left.to_bytes(64)).digest())
            left, drawn = divmod(left, below)
            return drawn

        return choose

    def _all_spans(self, text: str) -> list[Span]:
        """What the finder found, and every other place of the same units."""
        spans = [span for span in self._spans[text] if text[span.start : span.end].lower() in self._units]
        if not self._units:
            return spans
        taken = bytearray(len(text))
        for span in spans:
            taken[span.start : span.end] = b"\1" * (span.end - span.start)
        for match in self._known().finditer(text):
            unit = self._units.get(match[0].lower())  # None: letters that only a pattern takes for the same
            if unit is None or (case_of(match[0]) == "lower" and "lower" not in unit.surfaces):
                continue
            if not any(taken[match.start() : match.end()]):
                spans.append(Span(match.start(), match.end(), unit.kind))
        return sorted(spans, key=lambda span: span.start)

    def _known(self) -> re.Pattern[str]:
        return bounded(self._units, ignore_case=True)

    def _clashes(self, text: str) -> Iterator[tuple[str, Kind]]:
        """Words in clear that a reader could take for a surrogate."""
        kinds = {unit.surrogate.lower(): unit.kind for unit in self._units.values()}
        if not kinds:
            return
        clear = [piece for piece in self.pieces(text) if piece.kind is None]
        for piece in clear:
            for match in bounded(kinds, ignore_case=True).finditer(piece.text):
                if match[0].lower() in kinds:
                    yield match[0], kinds[match[0].lower()]

    def _back(self) -> dict[str, str]:
        """Every form in which a surrogate may be written, and what it stands for."""
        back: dict[str, str] = {}
        for unit in self._units.values():
            for case, surface in unit.surfaces.items():
                back[in_case(unit.surrogate, case)] = surface
        for unit in self._units.values():  # cases that the text has not, but an answer may have
            seen = unit.surfaces.get("mixed") or unit.surfaces.get("upper") or unit.surfaces["lower"].title()
            back.setdefault(in_case(unit.surrogate, "mixed"), seen)
            back.setdefault(unit.surrogate.upper(), seen.upper())
        return back
