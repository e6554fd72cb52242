"""What belongs to a unit that was found: initials, particles, a second name, the rest of a town, a firm's kind."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from privtune.device.surrogates.closed_words import CLOSED
from privtune.device.surrogates.kinds import Kind, Span
from privtune.device.surrogates.lexicon import CAPITAL_NOUNS, Lexicon

_INITIALS = re.compile(r"(?<!\w)(?:(?:[A-Z]\.[ -]?)+|[B-HJ-Z] )$")  # before a name
_PARTICLES = re.compile(  # between names, or before a family name or town with a capital of their own
    r"(?<!\w)(?:(?:van|von|der|den|ter|ten|de|del|della|di|da|dos|das|do|du|la|le|el|al|bin|ibn|bint|abu|af|zu) )+$",
    re.IGNORECASE,
)
_SAINTS = re.compile(  # the first word of many towns, in any case
    r"(?<![\w'’])(?:san|santa|santo|são|saint|sainte|st\.?|sankt|da)[ -]$", re.IGNORECASE
)
_TOWNS_BEGIN = re.compile(
    r"(?<![\w'’])(?:bad|los|las|port|fort|mount|la|le|el|new|south|north|east|west)[ -]$", re.IGNORECASE
)
_TOWNS_GO_ON = re.compile(
    r"[ -](?P<rest>(?:(?:am|an der|on|upon|sur|les|le|la|en|de|sous)[ -])?[^\W\d_]{2,})(?!\w)", re.IGNORECASE
)
_INITIALS_AFTER = re.compile(r",? ((?:[A-Z]\. ?)*[A-Z]\.)(?!\w)")
_CAPITAL_BEFORE = re.compile(r"(?<!\w)([A-Z][^\W\d_]+) $")
_CAPITAL_AFTER = re.compile(r" ([A-ZÄÖÜÉ][^\W\d_]+)(?!\w)")
_JOINED = re.compile(r"(?: and | & | et | und )([^\W\d_]+)(?!\w)", re.IGNORECASE)
_SECOND_HALF = re.compile(r"-([^\W\d_]+)(?!\w)")
_FIRST_HALF = re.compile(r"(?<!\w)([^\W\d_]+)-$")
_QUESTION = re.compile(r"[^.!?\n]{0,300}\?")
_KINDS = (
    r"bank|sparkasse|volksbank|versicherung(?:en)?|apotheke|bäckerei|metzgerei|fleischerei|schreinerei|tischlerei"
    r"|gärtnerei"
    r"|spedition|brauerei|druckerei|praxis|kanzlei|klinik(?:um)?|krankenhaus|stadtwerke|werke|optik|autohaus"
    r"|reisebüro|verlag"
    r"|buchhandlung|logistik|bau|hotel|gasthof|restaurant|immobilien|elektro|sanitär|haustechnik|grundschule|gymnasium"
    r"|boulangerie|pâtisserie|boucherie|pharmacie|garage|librairie|cabinet|clinique|hôpital|lycée|collège|école"
    r"|assurances?"
    r"|banque|crédit|caisse|mutuelle|société|maison|transports|éditions|imprimerie|entreprise|établissements"
    r"|menuiserie|fromagerie"
    r"|bakery|books|brewery|cafe|capital|clinic|college|consulting|dental|estates|foods|foundation|freight|group"
    r"|gym|holdings"
    r"|hospice|hospital|insurance|logistics|marine|motors|mutual|partners|pharmacy|savings|software|systems|university"
    r"|veterinary|vets|works|analytics|ltd|inc|llc|gmbh|plc|corp|co|brothers|sons|daughters|fils|partner|söhne|ag"
    r"|kg|trust|care|kitchen"
)
_KIND_AFTER = re.compile(rf"(?P<gap>(?:[ -](?:&|[^\W\d_]+))?)[ -](?P<kind>{_KINDS})(?![\w'’-])", re.IGNORECASE)
_KIND_BEFORE = re.compile(
    rf"(?<![\w'’-])(?:(?:la|le|the) (?=[A-ZÉÀ]))?(?P<kind>{_KINDS}|[^\W\d_]+(?:werke|bank|kasse|verein|betriebe"
    rf"|bau|haus|handel))"
    r" (?:(?:du|de la|des|de|am|im|von) |d['’])?$",
    re.IGNORECASE,
)
_NAMES = (Kind.GIVEN, Kind.FAMILY)
_NAMING = (*_NAMES, Kind.PLACE, Kind.ORGANISATION, Kind.RARE)
_SELDOM = 10_000  # a word more frequent than this may follow a name in capitals
_REACH = 30  # characters before a unit that are looked at


class Neighbours:
    """Finds the neighbours of units. capitalised: words in lower case that have a capital and name nobody."""

    def __init__(self, lexicon: Lexicon, capitalised: frozenset[str]) -> None:
        self._lexicon, self._capitalised = lexicon, capitalised

    def find(self, text: str, spans: Iterable[Span]) -> Iterator[Span]:
        """What belongs to these units; it may overlap with them."""
        spans = list(spans)
        ends = {span.end for span in spans}
        for span in spans:
            if span.kind in _NAMES:
                yield from self._of_person(text, span)
            if span.kind in _NAMING:
                yield from self._of_name(text, span, ends)

    def _of_person(self, text: str, span: Span) -> Iterator[Span]:
        lexicon = self._lexicon
        first = _CAPITAL_BEFORE.search(text, max(0, span.start - _REACH), span.start)
        if first and lexicon.is_listed(first[1].lower()) and not _QUESTION.match(text, span.end):
            yield Span(*first.span(1), Kind.GIVEN)
        if (second := _CAPITAL_AFTER.match(text, span.end)) and self._is_family(second[1], span.kind):
            yield Span(*second.span(1), Kind.FAMILY)
        if (joined := _JOINED.match(text, span.end)) and self._is_called_too(text, joined, span):
            yield Span(*joined.span(1), Kind.GIVEN)

    def _is_family(self, word: str, kind: Kind) -> bool:
        plain, lexicon = word.lower(), self._lexicon
        if plain in self._capitalised:
            return False
        if not lexicon.has_dictionary and lexicon.language not in CAPITAL_NOUNS:
            return True  # a capital inside a sentence
        if plain in lexicon.function_words or (lexicon.is_everyday(plain) and plain not in lexicon.family):
            return False
        return kind is Kind.GIVEN or not lexicon.is_known(plain) or lexicon.rank(plain) >= _SELDOM

    def _is_called_too(self, text: str, joined: re.Match[str], span: Span) -> bool:
        """A given name in the same case."""
        word = joined[1].lower()
        same = joined[1][0].isupper() == text[span.start].isupper()
        return same and word in self._lexicon.called and word not in self._lexicon.function_words

    def _of_name(self, text: str, span: Span, ends: set[int]) -> Iterator[Span]:
        lexicon, since = self._lexicon, max(0, span.start - _REACH)
        if before := _INITIALS.search(text, max(0, span.start - 12), span.start):
            yield Span(before.start(), before.start() + len(before[0].rstrip(" -")), Kind.INITIALS)
        if after := _INITIALS_AFTER.match(text, span.end):
            yield Span(after.start(1), after.end(1), Kind.INITIALS)
        particles = _PARTICLES.search(text, since, span.start) if span.kind is not Kind.RARE else None
        inside = particles is not None and particles.start() - 1 in ends and span.kind in _NAMES
        if particles and (particles[0][0].isupper() or inside):
            for word in re.finditer(r"\w+", particles[0]):
                yield Span(particles.start() + word.start(), particles.start() + word.end(), Kind.FAMILY)
        saint = _SAINTS.search(text, since, span.start) or _TOWNS_BEGIN.search(text, since, span.start)
        if saint and (_SAINTS.match(saint[0]) or text[saint.start() : span.end].lower() in lexicon.towns):
            yield Span(saint.start(), saint.end() - 1, Kind.PLACE)
        if span.kind is not Kind.ORGANISATION and span.kind is not Kind.RARE:
            after, before = _SECOND_HALF.match(text, span.end), _FIRST_HALF.search(text, since, span.start)
            if (
                after
                and not lexicon.is_everyday(after[1])
                and (span.kind in _NAMES or self._is_half(text, after, span))
            ):
                yield Span(*after.span(1), Kind.GIVEN if span.kind in _NAMES else Kind.PLACE)
            if before and self._is_half(text, before, span):
                yield Span(*before.span(1), Kind.GIVEN if span.kind in _NAMES else Kind.PLACE)
        rest = _TOWNS_GO_ON.match(text, span.end)
        if rest and text[span.start : rest.end()].lower() in lexicon.towns:
            yield from _words(text, span.end, rest.end())
        if kind := _KIND_AFTER.match(text, span.end):
            gap, cases = kind["gap"].strip(" -"), {text[span.start].isupper(), kind["kind"][0].isupper()}
            cases |= {gap[0].isupper()} if gap.isalpha() else set()
            if len(cases) == 1 and gap.lower() not in CLOSED:
                yield from _words(text, span.end, kind.end())
        elif not lexicon.has_dictionary and (kind := _KIND_BEFORE.search(text, since, span.start)):
            yield Span(kind.start(), kind.end("kind"), Kind.ORGANISATION)  # in English it stands behind

    def _is_half(self, text: str, half: re.Match[str], span: Span) -> bool:
        """Of a hyphened name: in its case, and no word of the dictionary."""
        plain, same = half[1].lower(), half[1][0].isupper() == text[span.start].isupper()
        return (
            same
            and not self._lexicon.is_everyday(plain)
            and not (self._lexicon.has_dictionary and self._lexicon.is_known(plain))
        )


def _words(text: str, start: int, end: int) -> Iterator[Span]:
    """Words of a unit's rest, each a unit: what is between them may be found already."""
    for word in re.finditer(r"[^\W_]+", text[start:end]):
        yield Span(start + word.start(), start + word.end(), Kind.PLACE)
