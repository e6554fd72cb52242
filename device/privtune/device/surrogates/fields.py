"""Fields of forms, letters and records whose label says that the value identifies: `Employer: Open Field Software`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from privtune.device.surrogates.closed_words import CLOSED
from privtune.device.surrogates.kinds import Kind, Span
from privtune.device.surrogates.lexicon import Lexicon

# Labels of English, German and French forms. A role may also be a speaker's in a transcript, where a sentence follows.
_NAMED = (
    r"(?:full|first|last|given|family|maiden|middle|display|user)?[ _]?names?|surname|next of kin|emergency contact"
    r"|contact(?: person)?|attn|signature|signed|spouse|sender|recipient|account holder|card ?holder|beneficiary"
    r"|attending"
    r"|assigned to|signed[ _]by|created[ _]by|approved[ _]by|doctor['’]s name|(?:ship|bill|deliver|invoice) to"
    r"|reporter|supervisor|(?:tea|pas)tor['’]s name|teacher['’]s name|author|from|to|cc|owner|patient name|applicant"
    r"|vor-?name|nachname|familienname|geburtsname|ansprechpartner(?:in)?|kontakt|absender|empfänger|kontoinhaber"
    r"|unterschrift"
    r"|verfasser|autor|von|an|ehepartner|nom(?: de famille| de naissance)?|prénoms?|destinataire|expéditeur"
    r"|titulaire|auteur"
    r"|conjoint|époux|signataire|à"
)
_ROLES = (
    r"patient(?:in)?|customer|client|manager|tenant|landlord|doctor|driver|guardian|employee|witness|agent|caller"
    r"|mother|father"
    r"|referee(?: \d)?|teacher|user|speaker|kundin?|kunde|mieter(?:in)?|vermieter|hausarzt|arzt|fahrer|mutter"
    r"|vater|client"
    r"|cliente|patiente|locataire|propriétaire|médecin|mère|père"
)
_FIRMS = (
    r"(?:current |previous |former |last )?employer|company(?:[ _]name)?|school attended|company|organi[sz]ation"
    r"|org|firm|school|bank|hospital|clinic|institution|arbeitgeber|firma|unternehmen|schule"
    r"|krankenhaus|verein|employeur|société|entreprise|école|banque|hôpital"
)
_PLACES = (
    r"city|town|place of birth|town of birth|birth ?place|place of residence|village|county|location|branch|addr"
    r"|street|(?:home )?address|hometown"
    r"|wohnort|ort|stadt|geburtsort|straße|strasse|anschrift|gemeinde|ville|lieu(?: de naissance)?|commune|rue|domicile"
)
_CODES = (
    r"vehicle|vin|postal code|(?:licen[cs]e |number )?plate(?: n(?:umber|o\.?))?|(?:vehicle )?registration"
    r"|kennzeichen|immatriculation|post ?code|zip"
)
_LABEL = "|".join((_NAMED, _ROLES, _FIRMS, _PLACES, _CODES))
FIELDS = re.compile(
    rf"(?:^|(?<=[\n,;|{{(&\"'\[<>]))[ \t]*(?P<label>{_LABEL})[\"']?(?:[ \t]*[:=][ \t]*|(?<=mber)[ \t])"
    r"(?P<value>[\"']?[^\n,;|\"“”<>{}()\[\]&:=\t]{1,60})(?=$|[\n,;|\"”<>{}()\[\]&\t])",
    re.IGNORECASE | re.MULTILINE,
)
_WORD = re.compile(r"[^\W_]+(?:['’.-][^\W_]+)*")
_BLANK = frozenset(
    """
    none unknown n a na no yes nil null true false same see above below tbd tba various self keine unbekannt ja nein
    siehe
    aucun aucune inconnu oui non idem everyone all us me you you're you.re him her them who what the support admin guest
    anonymous nobody someone team staff
    """.split()  # noqa: SIM905  # a list of one word a line would be a page
)
_TITLES = frozenset(["mr", "mrs", "ms", "miss", "dr", "prof", "sir", "herr", "frau", "mme", "mlle", "m"])
_LONGEST = 5  # words of a value; more are a sentence
_INSIDE = frozenset("of and the for de la le les du des d l am an der den dem zum zur im in von van & und et".split())  # noqa: SIM905


@dataclass(frozen=True)
class Field:
    """What a label says of its value. kind: of the whole value, or of each word of a person's name. role: may speak."""

    kind: Kind
    role: bool = False

    @classmethod
    def of(cls, label: str) -> Field | None:
        """The field of a label of `FIELDS`."""
        plain = label.lower()
        for pattern, kind in ((_FIRMS, Kind.ORGANISATION), (_PLACES, Kind.PLACE), (_CODES, Kind.CODE)):
            if re.fullmatch(pattern, plain):
                return cls(kind)
        return cls(Kind.FAMILY, role=re.fullmatch(_ROLES, plain) is not None)

    def spans(self, text: str, start: int, end: int, lexicon: Lexicon) -> Iterator[Span]:
        """The units of a value; none where it is blank or a sentence."""
        words = [word for word in _WORD.finditer(text, start, end) if word[0].lower() not in _TITLES]
        plain = [word[0].lower() for word in words]
        if not 0 < len(words) <= _LONGEST or plain[0] in _BLANK or re.search(r"[.!?]\s+\S|[!?]", text[start:end]):
            return
        if self.kind is Kind.CODE:
            if any(letter.isdigit() for letter in text[start:end]):
                yield from (Span(*word.span(), Kind.CODE) for word in words)
            return
        closed = CLOSED if lexicon.has_dictionary else lexicon.function_words
        sentence = any(one in closed and one not in _INSIDE for one in plain)
        lower = all(word[0][0].islower() for word in words)
        if sentence and lower and len(words) > 1:
            return
        if self.kind is Kind.FAMILY:
            yield from self._names(words, lexicon, lower=lower)
            return
        if not any(one.isalpha() and len(one) > 1 for one in plain):
            return
        yield Span(words[0].start(), words[-1].end(), self.kind)
        yield from (Span(*word.span(), self.kind) for word in words if word[0].isalpha())

    def _names(self, words: list[re.Match[str]], lexicon: Lexicon, *, lower: bool) -> Iterator[Span]:
        plain = [word[0].lower() for word in words]
        listed = any(lexicon.is_listed(one) or one in lexicon.called for one in plain)
        unusual = any(not lexicon.is_everyday(one) for one in plain)
        mixed = any(word[0][0].islower() for word in words if word[0].lower() not in _INSIDE)
        if (lower and not (listed or unusual)) or (mixed and not lower) or (self.role and not unusual):
            return
        for place, word in enumerate(words):
            if word[0].isalpha() or "'" in word[0] or "-" in word[0]:
                given = place < len(words) - 1 or (len(words) == 1 and word[0].lower() in lexicon.given)
                yield Span(*word.span(), Kind.GIVEN if given else Kind.FAMILY)
