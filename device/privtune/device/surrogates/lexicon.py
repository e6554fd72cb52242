"""Public words: how common they are, and which are names. Nothing here depends on the private text."""

from __future__ import annotations

import functools
import importlib
import pkgutil
import statistics
import unicodedata
from collections.abc import Iterable, Iterator
from types import ModuleType

from privtune.device.surrogates.kinds import Kind
from privtune.device.surrogates.towns import towns

# fmt: off
MONTHS = (  # not from `calendar`, whose names follow the locale of the process
    "January", "February", "March", "April", "May", "June",
    "July", "August", "September", "October", "November", "December",
)
# fmt: on
CAPITAL_NOUNS = ("de", "lb")  # languages in which a capital says nothing
FUNCTION_WORDS = 200  # so many of a language's most frequent words carry no content
_EVERYDAY = 3_000  # words this frequent make no name in lower case; in an entity they may surround one
_UNKNOWN = 10_000  # words of no dictionary that are rarer than this may be names
_NO_DICTIONARY = 20_000  # the same where the language has none here: most of these words are names
_SHORTEST = 3  # letters of a name that is told by other languages alone
_UNSURE = 500  # without a dictionary, a listed name that is more frequent than this is taken for a word
_ELSEWHERE = ("en", "fr", "es", "de")  # languages whose texts name the same people and places
# Least frequency there over that at home (difference of Zipf frequencies): common words have less. Other languages use
# more words of French than of German.
_ABROAD = {"fr": -1.5}
_ABROAD_LISTED = {"fr": -1.75}
_ABROAD_ELSE, _ABROAD_LISTED_ELSE = -1.8, -2.4
_ABROAD_CAPITAL = -0.4  # as much less does for a capital
_LOAN = 3.0  # a word of the English dictionary with this Zipf frequency there is no name but a loan
_PLURAL_OF_NAMES = 0.03  # a common noun has a plural that is used more often than this fraction of its singular


class Lexicon:
    """What public text says of a language's words.

    language: ISO 639. Raises LookupError when there are no word frequencies for it.
    """

    def __init__(self, language: str) -> None:
        import wordfreq

        self._wordfreq, self.language = wordfreq, language
        listed = wordfreq.top_n_list(language, 400_000)
        self._rank = {word: rank for rank, word in enumerate(listed)}
        self.by_rank = tuple(listed)
        self.function_words = frozenset(listed[:FUNCTION_WORDS])
        self.months = _months(language)
        self.called, self.family, self.places, self.countries = _names(language)
        self.given = self.called - (self.family - _common_given_names())
        self.towns = towns(language)
        if not self.has_dictionary:
            self.places |= frozenset(filter(self._is_town, self.towns))
        self._other_words: frozenset[str] = frozenset()
        self._nouns: frozenset[str] = frozenset()

    @property
    def has_dictionary(self) -> bool:
        """Whether the dictionary is the language's own."""
        return self.language == "en"

    def learn_dictionary(self, nouns: Iterable[str], others: Iterable[str]) -> None:
        """Take the English dictionary: nouns, and verbs, adjectives and adverbs, which a lower-case name is not."""
        self._nouns, self._other_words = frozenset(nouns), frozenset(others)

    def rank(self, word: str) -> int:
        """Words that are more frequent than this one, in lower case; the length of the list where it is not in it."""
        return self._rank.get(word, len(self._rank))

    def is_content(self, word: str) -> bool:
        """Whether a word carries content."""
        return word.lower() not in self.function_words

    def is_everyday(self, word: str) -> bool:
        """Whether a word in lower case is among the most frequent ones."""
        return self.rank(word) < _EVERYDAY

    def is_name(self, word: str, *, capital: bool = False) -> bool:
        """Whether a word, given in lower case, is likelier a name or place than a common word.

        capital: how it is written; without a dictionary only a capital tells a family name.
        """
        if word in self.function_words:
            return False
        if not self.has_dictionary:
            if self.language == "de" and word.endswith("er") and word[:-2] in self.places:
                return True  # of a town: Kieler
            known = word in self.given or word in self.places
            return (known and self.rank(word) >= (_UNSURE if capital else _EVERYDAY)) or self._is_used_abroad(
                word, capital=capital
            )
        if not self.is_listed(word):
            return False
        stems = {word, word.removesuffix("s"), word.removesuffix("es")}
        common_noun = bool(stems & self._nouns) and self.has_common_plural(word)
        return word not in self._other_words and not common_noun

    def is_dictionary_word(self, word: str) -> bool:
        """Whether a word or what it is derived from is in the dictionary, and no name; without one, any plain word."""
        if not word.isalpha() or self.is_listed(word):
            return False
        return not self.has_dictionary or self.is_known(word)

    def is_known(self, word: str) -> bool:
        """Whether a word or what it is derived from is in the dictionary, names included."""
        return any(stem in self._nouns or stem in self._other_words for stem in _stems(word))

    def is_rare(self, word: str, rank: int) -> bool:
        """Whether a word in lower case is rarer than `rank`; one of no dictionary may be a name, and is rare sooner."""
        if not self.has_dictionary:
            return self.rank(word) >= min(rank, _NO_DICTIONARY)
        known = self.is_dictionary_word(word) and not self._is_like_a_name(word)
        return self.rank(word) >= (rank if known else min(rank, _UNKNOWN))

    def is_listed(self, word: str) -> bool:
        """Whether a word in lower case is a name or place of the public lists."""
        return any(word in names for names in (self.given, self.family, self.places, self.countries))

    def listed_kind(self, word: str) -> Kind | None:
        """What a word in lower case is by the public lists; None if it is in none of them or in several."""
        lists = ((Kind.GIVEN, self.given), (Kind.FAMILY, self.family), (Kind.COUNTRY, self.countries))
        kinds = [kind for kind, names in lists if word in names]
        kinds += [Kind.PLACE] if word in self.places or word in self.towns else []
        return kinds[0] if len(kinds) == 1 else None

    def _is_town(self, word: str) -> bool:
        return not self.is_everyday(word) or self._abroad(word) > _ABROAD.get(self.language, _ABROAD_ELSE)

    def _is_used_abroad(self, word: str, *, capital: bool = False) -> bool:
        """Names are written in other languages too, common words hardly; those that are are in the dictionary there."""
        listed = self.is_listed(word)
        if not listed and (word not in self._rank or len(word) < _SHORTEST):
            return False
        english = self._wordfreq.zipf_frequency(word, "en")
        loan = english >= _LOAN and (word in self._nouns or word in self._other_words) and not listed
        least = (_ABROAD_LISTED if listed else _ABROAD).get(
            self.language, _ABROAD_LISTED_ELSE if listed else _ABROAD_ELSE
        )
        return not loan and self._abroad(word) > least + (_ABROAD_CAPITAL if capital else 0)

    def _abroad(self, word: str) -> float:
        """How frequent a word is in other languages, over its frequency here: a difference of Zipf frequencies."""
        others = [one for one in _ELSEWHERE if one != self.language]
        zipf = self._wordfreq.zipf_frequency
        bare = _without_accents(word) if self.is_listed(word) else word  # they write Benoît so, and ete is no été
        return statistics.median(max(zipf(word, one), zipf(bare, one)) for one in others) - zipf(word, self.language)

    def _is_like_a_name(self, word: str) -> bool:
        """Whether a dictionary's noun is in the singular only, as its towns and people are."""
        others = any(stem in self._other_words for stem in _stems(word))
        return word in self._nouns and not others and not any(plural in self._rank for plural in _plurals(word))

    def has_common_plural(self, word: str) -> bool:
        """Names are hardly ever in the plural; of a plural, the singular is in common use."""
        frequency = functools.partial(self._wordfreq.word_frequency, lang=self.language)
        if word.endswith("s") and frequency(word[:-1]) > frequency(word) / 3:
            return True
        plurals = [plural for plural in _plurals(word) if plural not in self.family]  # Roberts
        return bool(sum(map(frequency, plurals)) > _PLURAL_OF_NAMES * frequency(word))


def _without_accents(word: str) -> str:
    return "".join(one for one in unicodedata.normalize("NFD", word) if unicodedata.category(one) != "Mn")


def _plurals(word: str) -> tuple[str, ...]:
    return (word + "s", word + "es", *((word[:-1] + "ies",) if word.endswith("y") else ()))


_ENDINGS = {  # of an inflected or derived word, and what they replace
    "s": ("",), "es": ("",), "ies": ("y",), "d": ("",), "ed": ("",), "ied": ("y",), "ing": ("", "e"), "er": ("", "e"),
    "est": ("", "e"), "ier": ("y",), "iest": ("y",), "ly": ("", "le"), "ily": ("y",), "ness": ("",), "iness": ("y",),
}  # fmt: skip


def _stems(word: str) -> Iterator[str]:
    """The word, and what it may be an inflection of."""
    yield word
    for ending, originals in _ENDINGS.items():
        if word.endswith(ending):
            stem = word.removesuffix(ending)
            yield from (stem + original for original in originals)
            if stem[-1:] == stem[-2:-1]:
                yield stem[:-1]  # running


@functools.cache
def _months(language: str) -> tuple[str, ...]:
    """The names of the months; English ones where no list has the language's."""
    from faker.providers import date_time

    found: dict[str, None] = {}
    for module in pkgutil.iter_modules(date_time.__path__):
        if module.name.split("_")[0] == language:
            provider = importlib.import_module(f"{date_time.__name__}.{module.name}").Provider
            found |= dict.fromkeys(getattr(provider, "MONTH_NAMES", {}).values())
    return tuple(found) or MONTHS


@functools.cache
def _names(language: str) -> tuple[frozenset[str], frozenset[str], frozenset[str], frozenset[str]]:
    """Given names, family names, places and countries in lower case, of a language's countries; some are several."""
    from faker.providers import address, person

    given = _listed(person, language, "first_names", "first_names_male", "first_names_female")
    family = _listed(person, language, "last_names")
    places = _listed(address, language, "cities", "states", "provinces", "regions", "counties")
    countries = _listed(address, language, "countries")
    return given, family, places, countries


@functools.cache
def _common_given_names() -> frozenset[str]:
    """Names that are rather given than family names, though they may be both."""
    from faker.providers.person.en_US import Provider

    return frozenset(name.lower() for name in Provider.first_names)


def _listed(package: ModuleType, language: str, *attributes: str) -> frozenset[str]:
    found: set[str] = set()
    for module in pkgutil.iter_modules(package.__path__):
        if module.name.split("_")[0] != language:
            continue
        provider = importlib.import_module(f"{package.__name__}.{module.name}").Provider
        for attribute in attributes:
            values = getattr(provider, attribute, ())
            if isinstance(values, list | tuple | dict):
                found.update(str(value).lower() for value in values)
    return frozenset(found)
