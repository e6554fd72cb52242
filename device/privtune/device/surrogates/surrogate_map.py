"""The secret map of one record or conversation: which surrogate replaces which unit, and back.

Each unit's surrogate is drawn independently of the unit, from the public distribution of its kind. So given the kinds
and the pattern of equal words, what leaves says nothing of what was replaced; the map is what knows, and it stays.
"""

from __future__ import annotations

import hashlib
import hmac
import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from privtune.device.surrogates.coverage import Coverage, coverage_of
from privtune.device.surrogates.finder import Finder
from privtune.device.surrogates.kinds import Case, Kind, Span, case_of, folded, in_case
from privtune.device.surrogates.lexicon import Lexicon
from privtune.device.surrogates.pools import Pools
from privtune.device.surrogates.restorer import Restorer, Restoring
from privtune.device.surrogates.whole_words import WholeWords

_TOKEN = re.compile(r"\w+")
_TRIES = 20  # draws until the next ones are longer: a short list, or short numbers, run out


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
        self._units: dict[str, Unit] = {}  # by `_key`
        self._known: WholeWords | None = None  # the units' words; None after a unit was added
        self._taken: set[str] = set()  # surrogates in lower case
        self._spans: dict[str, list[Span]] = {}  # of each learned text
        self._clear: set[str] = set()  # words of learned texts that leave as they are, in lower case
        self._counts: dict[Kind, int] = {}

    def learn(self, texts: Sequence[str], found: Sequence[list[Span]] | None = None) -> None:
        """Find what identifies in texts, in addition to what the map has, and draw surrogates for it.

        found: what the finder found in each of them, where it was asked about many texts at once.

        A word in clear that could be read as a surrogate is replaced too: otherwise it would come back as what the
        surrogate stands for.
        """
        new = [text for text in texts if text not in self._spans] if found is None else texts
        for text, spans in zip(new, self._finder.find(new) if found is None else found, strict=True):
            self._spans[text] = spans
            for span in spans:
                self._add(text[span.start : span.end], span.kind)
        while left_out := [one for text in new for one in self._left_out(text)]:
            for surface, kind in left_out:
                self._add(surface, kind)
        for text in new:  # it may have left already: what a later text shows to be a name stays in clear here
            self._spans[text] = self._all_spans(text)
            clear = (piece.text for piece in self.pieces(text) if piece.kind is None)
            self._clear.update(word for part in clear for word in _TOKEN.findall(folded(part)))

    def replace(self, text: str) -> str:
        """A learned text as it may leave."""
        return "".join(piece.surrogate or piece.text for piece in self.pieces(text))

    def pieces(self, text: str) -> list[Piece]:
        """A learned text piece by piece, in order."""
        return self._pieces(text, self._spans[text])

    def _pieces(self, text: str, spans: Sequence[Span]) -> list[Piece]:
        found, at = [], 0
        for span in spans:
            if span.start > at:
                found.append(Piece(text[at : span.start]))
            surface = text[span.start : span.end]
            unit = self._units[self._key(surface)]
            found.append(Piece(surface, unit.kind, unit.written(surface)))
            at = span.end
        return [*found, Piece(text[at:])] if at < len(text) or not found else found

    def restore(self, text: str) -> str:
        """What the model wrote, with the true words in the places of their surrogates."""
        return Restoring(self._back()).sub(text)

    def restorer(self) -> Restorer:
        """The same for a text that comes piece by piece."""
        return Restorer(Restoring(self._back()))

    def coverage(self, texts: Sequence[str]) -> Coverage:
        """How much of learned texts was replaced."""
        return sum((coverage_of(self.pieces(text), self._lexicon) for text in texts), Coverage())

    def _key(self, surface: str) -> str:
        """Spellings of one unit share a key: lower, upper and the first mixed case. Another mixed case is a unit."""
        key = folded(surface)
        unit = self._units.get(key)
        return key if unit is None or unit.surfaces.get(case_of(surface), surface) == surface else surface

    def _add(self, surface: str, kind: Kind) -> None:
        key = self._key(surface)
        if key not in self._units:
            self._units[key] = Unit(kind, self._draw(kind, surface))
            self._known = None
        self._units[key].surfaces.setdefault(case_of(surface), surface)

    def _draw(self, kind: Kind, surface: str) -> str:
        """A surrogate that no other unit of this map has."""
        for attempt in itertools.count():
            drawn = self._pools.draw(kind, surface, self._choose(kind), longer=attempt // _TRIES)
            if folded(drawn) not in self._taken and not self._clear.issuperset(_TOKEN.findall(folded(drawn))):
                self._taken.add(folded(drawn))
                return drawn
        raise AssertionError  # not reached: longer draws never run out

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
        spans = list(self._spans[text])
        if self._known is None:
            self._known = WholeWords({folded(key) for key in self._units}, folded)
        taken = bytearray(len(text))
        for span in spans:
            taken[span.start : span.end] = b"\1" * (span.end - span.start)
        for found in self._known.find(text, taken=taken):
            surface = text[found.start : found.end]
            unit = self._units.get(self._key(surface)) or self._units[found.word]
            if case_of(surface) != "lower" or "lower" in unit.surfaces:
                spans.append(Span(found.start, found.end, unit.kind))
        return sorted(spans, key=lambda span: span.start)

    def _left_out(self, text: str) -> Iterator[tuple[str, Kind]]:
        """Surfaces that are to be replaced too: units in other cases, and words in clear that look like a surrogate."""
        spans = self._all_spans(text)
        surfaces = [(text[span.start : span.end], span.kind) for span in spans]
        other_cases = [(surface, kind) for surface, kind in surfaces if not self._has(surface)]
        yield from other_cases
        if not other_cases:
            yield from (clash for clash in self._clashes(self._pieces(text, spans)) if not self._has(clash[0]))

    def _has(self, surface: str) -> bool:
        unit = self._units.get(self._key(surface))
        return unit is not None and case_of(surface) in unit.surfaces

    def _clashes(self, pieces: Sequence[Piece]) -> Iterator[tuple[str, Kind]]:
        """Words in clear that a reader of the replaced text could take for a surrogate, or for a part of one."""
        kinds = {folded(unit.surrogate): unit.kind for unit in self._units.values()}
        leaves = "".join(piece.surrogate or piece.text for piece in pieces)
        ahead = WholeWords(kinds, folded).find(leaves)
        found, at = next(ahead, None), 0
        for piece in pieces:
            end = at + len(piece.surrogate or piece.text)
            while found is not None and found.start < end:
                surface = piece.text[max(found.start - at, 0) : found.end - at].strip()
                if piece.kind is None and any(map(str.isalnum, surface)):
                    yield surface, kinds[found.word]
                if found.end > end:
                    break
                found = next(ahead, None)
            at = end

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
