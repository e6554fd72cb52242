"""Finds what identifies in a text: formats, entities, capitals, names in lower case, rare words and the owner's terms.

In doubt a word is replaced: a word too many costs the model a little, a word too few costs the owner his secret.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence

from privtune.device.surrogates.cues import Cues
from privtune.device.surrogates.formats import Formats
from privtune.device.surrogates.kinds import Kind, Span, rare_kind
from privtune.device.surrogates.lexicon import CAPITAL_NOUNS, Lexicon
from privtune.device.surrogates.neighbours import Neighbours
from privtune.device.surrogates.recognisers import Recognised, Recognisers
from privtune.device.surrogates.whole_words import in_word

# Accents and vowel signs may be characters of their own, and invisible characters may be between letters.
_MARKS = "".join(chr(one) for one in range(0x300, 0x20000) if unicodedata.category(chr(one))[0] == "M")
_INVISIBLE = r"[\u00ad\u200b-\u200f\u202a-\u202e\u2060-\u2069\ufeff]"
_UNSEEN = re.compile(_INVISIBLE)
_LETTERS = rf"(?:[^\W\d_][{_MARKS}]*(?:{_INVISIBLE}+(?=[^\W\d_]))?)+"
WORD = re.compile(rf"(?<![^\W_])(?:(?:[A-Z]\.){{2,}}|{_LETTERS}(?:['’]{_LETTERS})*(?![^\W_]))")
_CAMEL = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])")
_ABBREVIATED = re.compile(r"(?:St|Mt|Ft|Mr|Mrs|Ms|Dr|Prof|Rev|Hon|Gen|Col|Sgt|Capt|Lt|No|Nr|vs)\.\s*$")
_LABEL = re.compile(r"\s?[:=]")
_BEGINS = re.compile(r"(?:^|[.!?:;\n•*>|\"“”‘…—–]|\s-)\W*$")  # what is before the first word of a sentence

_ARTICLES = ("a", "an", "the", "this", "my", "our", "your", "his", "her", "their")
_TITLES = frozenset(["mr", "mrs", "ms", "miss", "dr", "prof", "sir", "madam"])
# Capitalised inside a sentence, and nobody's name: days, titles, abbreviations.
_CAPITALISED = frozenset(
    """
    i monday tuesday wednesday thursday friday saturday sunday mr mrs ms miss madam sir dr doctor prof professor captain
    president aunt uncle mom mum dad mother father grandma grandpa ok tv dvd cd pc usb id faq ceo cfo cto hr pr it ai am
    pm ad bc god christmas easter internet english
    """.split()  # noqa: SIM905  # a list of one word a line would be a page
)
_POSSESSIVE = re.compile(r"['’](?:s|ll|ve|re|d|m)?$", re.IGNORECASE)  # and other short forms
_COMMAND = re.compile(r"[a-z]+\*?(?=[\[{])")  # of LaTeX, after a backslash
_HALVES = re.compile(
    r"(?:do|does|did|is|was|are|were|wo|would|could|should|has|have|had|ai)n|n't|ll|ve"
)  # of short forms
_TITLE_CASE = 0.6  # of a text's words: above it a capital says nothing
_LABELS = 50_000  # what a form calls its fields is among so many of the most frequent words
_FEW_WORDS = 4  # a text too short to be a headline


class Finder:
    """Finds the spans of a text. own_terms: words and phrases that the owner names; found in any case."""

    def __init__(self, lexicon: Lexicon, recognisers: Recognisers, rank: int, own_terms: Sequence[str] = ()) -> None:
        self._lexicon, self._recognisers, self._rank = lexicon, recognisers, rank
        forms = {unicodedata.normalize(form, term) for term in own_terms for form in ("NFC", "NFD")}
        patterns = (r"\s+".join(map(re.escape, form.split())) for form in forms if form.strip())
        terms = sorted(patterns, key=len, reverse=True)
        self._formats, self._cues = Formats(lexicon, rank), Cues(lexicon)
        self._neighbours = Neighbours(lexicon, _CAPITALISED)
        self._months = frozenset(month.lower() for month in lexicon.months)
        self._own = re.compile(rf"(?<![^\W_])(?:{'|'.join(terms)})(?![^\W_])", re.IGNORECASE) if terms else None

    def find(self, texts: Sequence[str]) -> Iterator[list[Span]]:
        """The spans of each text, in order, without overlaps."""
        visible = [_visible(text) for text in texts]
        for text, seen, recognised in zip(texts, visible, self._recognisers.read(visible), strict=True):
            taken = bytearray(len(seen))
            spans = list(self._free(self._candidates(seen, recognised), taken))
            spans += self._free(self._neighbours.find(seen, spans), taken)
            found = _whole_tokens(seen, sorted(spans, key=lambda span: span.start))
            yield found if len(seen) == len(text) else list(_in_full(text, found))

    @staticmethod
    def _free(candidates: Iterable[Span], taken: bytearray) -> Iterator[Span]:
        """The candidates that no surer one overlaps."""
        for span in candidates:
            if span.end > span.start and not any(taken[span.start : span.end]):
                taken[span.start : span.end] = b"\1" * (span.end - span.start)
                yield span

    def _candidates(self, text: str, recognised: Recognised) -> Iterator[Span]:
        """All that may be replaced, the surest first."""
        if self._own is not None:
            yield from (Span(match.start(), match.end(), Kind.TERM) for match in self._own.finditer(text))
        yield from recognised.formats
        yield from self._formats.find(text)
        yield from self._cues.find(text)
        for entity in recognised.entities:
            yield from self._entity(text, entity)
        yield from self._words(text, recognised)

    def _entity(self, text: str, entity: Span) -> Iterator[Span]:
        """A person's names one by one, anything else as one unit; without what only surrounds it."""
        matches = list(WORD.finditer(text, entity.start, entity.end))
        after_title = [place + 1 for place, match in enumerate(matches) if match[0].lower() in _TITLES]
        words = matches[max(after_title, default=0) :]
        words = [one for one in words if len(one[0]) > 1 and self._names(one[0]) and not _is_command(text, one)]
        if len(words) > 1 and self._only_begins(text, words[0]):
            words = words[1:]
        if not words:
            return
        kind = self._lexicon.listed_kind(words[0][0].lower()) if len(words) == 1 and not after_title else None
        if kind in (Kind.PLACE, Kind.COUNTRY):
            yield _unit(words[0], kind)
            return
        if entity.kind is Kind.FAMILY or after_title or kind is Kind.GIVEN:
            for place, match in enumerate(words):
                yield _unit(match, self._name_kind(match[0], place, len(words)))
            return
        start, end = words[0].start(), words[-1].end()
        end -= _possessive(text[start:end])
        whole = text[start:end].lower()
        yield Span(start, end, Kind.COUNTRY if whole in self._lexicon.countries else entity.kind)

    def _names(self, word: str) -> bool:
        """Whether a word of an entity belongs to the name: a capital, or no everyday word."""
        plain = word.lower()
        if plain in _CAPITALISED or plain in _ARTICLES or plain in self._months:
            return False
        if plain in self._lexicon.function_words:
            return word[0].isupper()  # New York
        return word[0].isupper() or not self._lexicon.is_everyday(plain) or self._lexicon.is_name(plain, capital=True)

    def _name_kind(self, word: str, place: int, of: int) -> Kind:
        """The first of several is a given name and the last a family name; others by the public lists."""
        if of > 1 and place in (0, of - 1):
            return Kind.GIVEN if place == 0 else Kind.FAMILY
        return Kind.GIVEN if word.lower() in self._lexicon.given else Kind.FAMILY

    def _words(self, text: str, recognised: Recognised) -> Iterator[Span]:
        matches = list(WORD.finditer(text))
        capitals = sum(match[0][0].isupper() for match in matches)
        telling = capitals <= _TITLE_CASE * len(matches) or len(matches) < _FEW_WORDS
        telling = telling and self._lexicon.language not in CAPITAL_NOUNS
        for match in matches:
            yield from self._word(text, match, telling=telling, proper=match.start() in recognised.proper)
            if match.start() in recognised.called:
                yield _unit(match, Kind.GIVEN)

    def _word(self, text: str, match: re.Match[str], *, telling: bool, proper: bool) -> Iterator[Span]:
        word = match[0]
        bare = word[: len(word) - _possessive(word)]
        plain = unicodedata.normalize("NFC", bare).lower().replace("’", "'")
        if _is_command(text, match) or len(plain) == 1 or plain in _CAPITALISED or _HALVES.fullmatch(plain):
            return
        capital = self._is_capital_name(text, match, bare, telling, proper)
        if plain in self._lexicon.function_words and not (
            capital and (plain in self._months or self._lexicon.is_listed(plain))
        ):
            return
        if plain in self._months and (bare[0].isupper() or not self._lexicon.has_dictionary):
            yield _unit(match, Kind.MONTH)
        elif capital or self._lexicon.is_name(plain, capital=bare[0].isupper()):
            yield _unit(match, self._capital_kind(plain))
        elif self._is_rare(text, match, bare, plain):
            yield _unit(match, self._capital_kind(plain) if bare[0].isupper() else rare_kind(plain))

    def _is_capital_name(self, text: str, match: re.Match[str], bare: str, telling: bool, proper: bool) -> bool:
        """A capital inside a sentence is a name; at its beginning and in headlines the part of speech decides."""
        if not bare[0].isupper():
            return False
        if proper:
            return not self._only_begins(text, match)
        shouted = bare.isupper() and not self._lexicon.is_rare(bare.lower(), self._rank)
        return telling and not shouted and not _begins(text, match)

    def _is_rare(self, text: str, match: re.Match[str], bare: str, plain: str) -> bool:
        label = bare[0].isupper() and self._only_begins(text, match)
        return self._lexicon.is_rare(plain, self._rank) and not label and not self._common_parts(bare)

    def _only_begins(self, text: str, match: re.Match[str]) -> bool:
        """A word that is no listed name, with the capital of a sentence's beginning: an everyday one, or a label."""
        plain = match[0].lower()
        if self._lexicon.is_listed(plain) or not _begins(text, match):
            return False
        label = _LABEL.match(text, match.end()) is not None and self._lexicon.rank(plain) < _LABELS
        return label or self._lexicon.is_everyday(plain)

    def _capital_kind(self, plain: str) -> Kind:
        lexicon = self._lexicon
        if plain in lexicon.countries:
            return Kind.COUNTRY
        if plain in lexicon.given:
            return Kind.GIVEN
        return Kind.PLACE if plain in lexicon.places and plain not in lexicon.family else Kind.FAMILY

    def _common_parts(self, bare: str) -> bool:
        """Whether a word in camelCase is put together from common words, as names of fields are."""
        parts = _CAMEL.findall(bare) if bare[0].islower() else []
        common = not any(self._lexicon.is_rare(part.lower(), self._rank) for part in parts)
        return len(parts) > 1 and "".join(parts) == bare and common


def _visible(text: str) -> str:
    """Without the characters that nobody sees: they may be between letters or digits."""
    return _UNSEEN.sub("", text)


def _in_full(text: str, spans: Iterable[Span]) -> Iterator[Span]:
    """The same units in the text with its invisible characters."""
    places = [at for at, letter in enumerate(text) if not _UNSEEN.match(letter)]
    return (Span(places[span.start], places[span.end - 1] + 1, span.kind) for span in spans)


def _is_command(text: str, match: re.Match[str]) -> bool:
    return text[match.start() - 1 : match.start()] == "\\" and _COMMAND.match(text, match.start()) is not None


def _begins(text: str, match: re.Match[str]) -> bool:
    window = max(0, match.start() - 8), match.start()
    return _BEGINS.search(text, *window) is not None and _ABBREVIATED.search(text, *window) is None


def _unit(match: re.Match[str], kind: Kind) -> Span:
    return Span(match.start(), match.end() - _possessive(match[0]), kind)


def _possessive(word: str) -> int:
    found = _POSSESSIVE.search(word)
    return len(found[0]) if found else 0


def _whole_tokens(text: str, spans: Iterable[Span]) -> list[Span]:
    """Spans widened to the whole of what is written together: part of a user's name or number says the rest."""
    whole: list[Span] = []
    for span in spans:
        start, end, before = span.start, span.end, whole[-1].end if whole else 0
        if start < before:
            continue  # a part of the token before
        while start > before and _joined(text, start, outside=start - 1):
            start -= 1
        while end < len(text) and _joined(text, end, outside=end):
            end += 1
        if (start, end) != (span.start, span.end):
            letters = any(letter.isalpha() for letter in text[start:end])
            span = Span(start, end, Kind.HANDLE if letters else Kind.NUMBER)
        whole.append(span)
    return whole


def _joined(text: str, at: int, outside: int) -> bool:
    """Whether a token goes on across this place: into a word or number, or from digit to digit over a separator."""
    if in_word(text[outside]):
        return True
    around = text[max(at - 2, 0) : at], text[at : at + 2]
    if not all(around):
        return False
    before, after = around[0][-1], around[1][0]
    over_next = before.isdigit() and after in ".," and around[1][1:].isdigit()
    return over_next or (before in ".," and after.isdigit() and around[0][:-1].isdigit())
