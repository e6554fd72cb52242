"""Names that only their place in the text tells: after a greeting, in a field of a form, before a firm's ending.

A common word may be a name there ("hi grace, it's may from open field software"), and the same word stays elsewhere.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

from privtune.device.surrogates.closed_words import CLOSED
from privtune.device.surrogates.fields import FIELDS, Field
from privtune.device.surrogates.kinds import Kind, Span
from privtune.device.surrogates.lexicon import Lexicon

_NAME = r"(?P<first>[^\W\d_]+(?:['’-][^\W\d_]+)*)(?:[ \t](?P<second>[^\W\d_]+(?:['’-][^\W\d_]+)*))?"
_END = r"(?=\s*(?:[,.!?:;)&/\n…]|$)|\s+(?:and|und|et|x+|it['’]?s|xo)\b)"
_ASKED = (
    r"(?=\s*(?:[,.!?:;)&/\n…]|$)|\s+(?:and|to|if|that|when|where|why|not|she|he|her|him|i|we|u|ur|said|says"
    r"|is|at|in|from|right|too)\b)"
)


def _cue(words: str, after: str = "", end: str = "") -> re.Pattern[str]:
    return re.compile(rf"(?<![\w'’-])(?:{words}){after}\s+{_NAME}{end}", re.IGNORECASE)


# Whoever follows is named, whatever the word.
_SURE = (
    _cue(r"my (?:full |first |last )?name(?: is|['’]s|s)|name(?:['’]s| is)|(?:is|was|are|i am|i['’]?m) called|signed by"
        r"|named after|meine? (?:nach|vor)?name (?:ist|lautet)|mein name ist|ich heiße|heißt|je m['’]appelle"
        r"|s['’]appelle"
        r"|mon nom est"),
    _cue(r"(?<!\d )(?:mr|mrs|ms|prof|dr|herrn?|mme|mlle|monsieur|signora?|señora?)", r"\.?"),
    re.compile(
        r"(?:^|(?<=[\n.,!?;] )|(?<=[\n]))(?:signed|attn|(?:kind |best |warm )?regards|yours sincerely"
        r"|sincerely yours|yours "
        r"faithfully|sincerely|yours truly|yours|best wishes|mit freundlichen grüßen|(?:viele|liebe|beste"
        r"|herzliche) grüße|gruß"
        r"|mfg|lg|vg|(?:bien )?cordialement|bises|bisous|amitiés|bien à vous|amicalement|cheers|love|best|thanks"
        r"|thx|thank you"
        rf"|danke|merci)[,.!]?\s+{_NAME}(?= x+\b|\s*(?:$|\n|[,|]\s))", re.IGNORECASE),
)  # fmt: skip
# Whoever follows is named if the word is in a list of given names, even a very common word.
_CALLED = (
    _cue(r"dear|hi|hey|hello|yo|hiya|good (?:morning|evening|afternoon|night)|happy birthday|bday|thanks"
        r"|thank you|thx|ty"
        r"|tysm|love (?:u|you)|bye|sorry|congrats|wtf|omg|ok|okay|ciao|come in|listen|this is|it['’]?s|hallo"
        r"|liebe[rs]?|moin"
        r"|guten (?:morgen|tag|abend)|danke|bonjour|salut|coucou|cher|chère|chers|merci|bonsoir", r"[,!]?", _END),
    _cue(r"hey|hi|yo|hello|hallo|salut", "", r"(?= (?:what['’]?s|how|r|are|u|did|do|can|where|wanna|pls|please|im"
        r"|i['’]m|its)\b)"),
    _cue(r"ask|asked|tell|told|know|saw|owe|text|texted|texting|call|called|met|invited|seen|dating|email|emailed"
        r"|frag|sag|ruf"
        r"|schreib|demande à|dis à", "", _ASKED),
    _cue(r"did|does|can|could|would|should", "", r"(?= (?:still|ever|even|join|help|meet|pick|get|go|come|say"
        r"|tell|call|have|do|make|know|like|want|leave|send|pay|text|ask|really)\b)"),
    _cue(r"(?:is|was|where['’]?s)", "", r"(?= (?:always|late|sick|coming|here|home|mad|angry|still|there|at|going|alone"
        r"|ready|back)\b|\s*\?)"),
    re.compile(
        r"(?:^|(?<=[.!?,;] )|(?<=\n)|(?<= and )|(?<= but )|(?<=so )|(?<= if )|(?<=lol )"
        r"|(?<=omg ))(?P<first>[^\W\d_]+)(?P<second>(?!))?"
        r"(?= (?:said|says|told|asked|texted|thinks|called|wants|knows|loves|hates|lives|works|wo?n['’]?t"
        r"|doesn['’]?t|didn['’]?t"
        r"|isn['’]?t|hasn['’]?t|never|from|is my|is (?:sick|late|here|coming|dating|getting|leaving|moving"
        r"|allergic)|and i)\b)",
        re.IGNORECASE),
    _cue(r"(?:me|you|him|he|she) and"),
    re.compile(
        r"(?<!\w)(?:to|at|from|with|is|and|near) (?P<first>[^\W\d_]+)(?P<second>(?!))?(?=['’]s\b)", re.IGNORECASE
    ),
    re.compile(r"(?:[\"'“‘](?=[^\W\d_]+[!.,?]?[\"'”’])|@)(?P<first>[A-Z][^\W\d_]+"
        r"|(?<=@)[^\W\d_]+)(?P<second>(?!))?(?![\w.]\w)"),
    re.compile(  # a possessive without its apostrophe
        r"(?<!\w)(?:that['’]?s|is that|this is|at|borrowed|took"
        r"|it['’]?s) (?P<first>[^\W\d_]{2,}?)(?P<second>(?!))?['’]?s"
        r"(?= (?!of|in|and|to|for|are)[^\W\d_])", re.IGNORECASE),
    re.compile(r"(?:^|\n)[ \t>*-]*(?P<first>[^\W\d_]+)(?P<second>(?!))?:(?=\s)"),
)  # fmt: skip
# Whoever follows is named if the word is a name more often than not, or in no dictionary.
_LIKELY = (
    *_CALLED[:1],
    _cue(r"this is|it['’]?s|i['’]?m|i am|hier ist|ich bin|je suis|c['’]est", "", r"(?=\s+(?:from|here|speaking"
        r"|calling|von|de)\b)"),
    _cue(r"brother|sister|son|daughter|husband|wife|cousin|uncle|aunt|auntie|friend|buddy|boyfriend|girlfriend"
        r"|boss|nurse"
        r"|neighbou?r|nephew|niece|flatmate|roommate|colleague|coworker|teacher|partner|mate|bruder|schwester"
        r"|sohn|tochter"
        r"|frau|freundin?|kollegin?|chefin?|nachbarin?|cousine|tante|onkel|frère|sœur|fils|fille|mari|femme|amie?"
        r"|voisine?"
        r"|collègue|oncle|copine|copain", "", r"(?! (?:an?|the|his|her|my|it|you|us|them|me|in|on|of|not|be)\b)"),
)  # fmt: skip
_ADDRESSED = re.compile(
    r"(?:^|(?<=[\n.!?>-] ))(?P<first>[^\W\d_]+), (?:you|your|please|can|could|will|would|do|did|are|have|i|we"
    r"|it['’]s|what|why"
    r"|where|how|when|my|don['’]t|come|stop|call|look)\b|[,.!?]\s+(?P<last>[A-Z][^\W\d_]+)\.?$",
    re.IGNORECASE,
)
_SPEAKER = re.compile(r"(?:^|\n|[.?!] )(?P<first>[A-Z][^\W\d_]+): (?=[A-Z\"“])")
_NOBODY = frozenset(
    """
    all everyone everybody team there sir madam mam ma'am guys folks friend friends customer colleagues again both
    you me
    us u him her them so much mate bro dude man babe honey darling sweetie dear mom mum mama dad papa grandma grandpa
    santa god lord jesus what who that this it not here now today tomorrow soon later anyway everything nothing nobody
    someone anyone doctor professor teacher boss miss baby boy girl kids children ladies gentlemen students members
    members neighbour neighbor sorry please thanks thank yes no ok okay well just very too really still sure true
    good great
    fine happy sad damen herren zusammen alle allen kollegen freunde schatz mama papa leute ihr euch dir ihnen tous
    toutes monsieur madame mademoiselle messieurs mesdames docteur ami amis maman tout vous toi bien beaucoup pour
    dr prof doktor president captain officer minister mister calling speaking writing from about because the a an love
    english internet sincerely faithfully truly regards wishes always frau herr herrn familie vielmals sehr schon
    hilfe help your my our their his for
    """.split()  # noqa: SIM905  # a list of one word a line would be a page
)

# What ends the name of a firm or house.
_HEADS = (
    r"analytics|bakery|bank|books|brewery|cafe|capital|care|centre|center|clinic|college|consulting|dental"
    r"|dentistry|diner"
    r"|electronics|energy|engineering|estates|farm|farms|foods|foundation|freight|furniture|gardens|group|gym|hardware"
    r"|holdings|hospice|hospital|hotel|inn|insurance|interiors|institute|kitchen|labs|laundry|logistics|lodge"
    r"|marine|media"
    r"|motors|mutual|nursery|optics|partners|pharmacy|plumbing|polytechnic|press|properties|publishing|rentals|repairs"
    r"|restaurant|roofing|salon|savings|church|cleaning|supplies|school|services|shipping|software|solutions"
    r"|studio|studios|systems"
    r"|technologies|trust|university|veterinary|vets|works|ltd|inc|llc|gmbh|plc|corp"
)
_KINDS_OF_HEADS = frozenset(
    """
    high primary secondary middle elementary medical law business local public private national general central old new
    big small health car life home travel computer open source art music summer sunday nursing night day boarding
    driving
    research training community city state county federal social customer data free food great good best first online
    legal own whole entire commercial investment savings central professional financial
    """.split()  # noqa: SIM905  # a list of one word a line would be a page
)
_TITLE_HEADS = "|".join(one.title() for one in _HEADS.split("|"))
_TITLED = re.compile(rf"(?<![\w'’-])(?:[A-Z][\w'’-]*\.?[ ](?:&[ ])?){{1,4}}(?:{_TITLE_HEADS})(?!\w)")
_EMPLOYED = re.compile(
    r"(?:(?<!\w)(?:(?:work|works|worked|working|job|interview|internship|employed|hired|intern|account"
    r"|appointment) (?:at|for|by|with)"
    r"|(?:customer|patient|client|member|student|owner|manager|director|ceo|employee) (?:of|at)|went to|go to"
    r"|going to|been to"
    rf"|from|payable to|front of|at)|,)(?: the)? (?P<name>(?:[^\W\d_][\w'’-]*[ ](?:(?:&"
    rf"|and)[ ])?){{1,3}}?(?:{_HEADS}))(?!\w)",
    re.IGNORECASE,
)
_SURE_EMPLOYER = re.compile(
    r"(?:work|job|interview|intern|employed|hired|account|customer|patient|client|payable)", re.IGNORECASE
)
_AT_PLACES = (
    r"(?:live|lives|lived|living|stay|staying|stuck|born|based|landed|arrived|raised|grew up|back|seen|wohne(?:n"
    r"|t)?) (?:in|near)"
    r"|(?:trip|flight|train|bus|fly|flying|flew|drive|drove|moved|moving|move|travel|travelled|traveling|shipped"
    r"|relocated|sent"
    r"|from [^\W\d_]+(?: [^\W\d_]+)?|back) to|(?:i['’]?m|flight|train|back) from|nach|aus|habite(?:nt|s)? à|viens de"
)
_PLACE = re.compile(rf"(?<![\w'’-])(?:{_AT_PLACES})\s+{_NAME}", re.IGNORECASE)
_IN = re.compile(rf"(?<![\w'’-])(?:in|near|from|to|à|de|en|bei|IN|NEAR|FROM|TO|À|DE|EN|BEI)\s+(?=[A-ZÄÖÜÉ]){_NAME}")


_IN_LOWER = re.compile(rf"(?<![\w'’-])(?:in|aus|nach|bei|à|vers)\s+{_NAME}")
# In German two nouns side by side are a name (bei Nordsee Reisen).
_FIRM = re.compile(r"(?<!\w)(?:[Bb]ei|[Ff]irma|[Ff]ür|von) (?P<name>[A-ZÄÖÜ][^\W\d_]+(?: &)? [A-ZÄÖÜ][^\W\d_]+)")


class Cues:
    """Finds what the words around it name."""

    def __init__(self, lexicon: Lexicon) -> None:
        self._lexicon = lexicon

    def find(self, text: str) -> Iterator[Span]:
        """The surest first; they may overlap."""
        yield from self._fields(text)
        for pattern in _SURE:
            for match in pattern.finditer(text):
                yield from self._person(match, self._may_be_named)
        for pattern in _LIKELY:
            for match in pattern.finditer(text):
                yield from self._person(match, self._is_likely)
        for pattern in _CALLED:
            for match in pattern.finditer(text):
                yield from self._person(match, self._is_called)
        for match in _ADDRESSED.finditer(text):
            group = match.lastgroup or ""
            if self._is_called(match[group]):
                yield Span(*match.span(group), Kind.GIVEN)
        yield from self._speakers(text)
        yield from self._organisations(text)
        yield from self._places(text)

    def _person(self, match: re.Match[str], accepted: Callable[[str], bool]) -> Iterator[Span]:
        first, second = match["first"], match["second"]
        if not accepted(first):
            return
        of_two = second is not None and self._goes_on(first, second)
        kind = Kind.GIVEN if of_two or first.lower() in self._lexicon.given else Kind.FAMILY
        yield Span(*match.span("first"), kind)
        if of_two:
            yield Span(*match.span("second"), Kind.FAMILY)

    def _may_be_named(self, word: str) -> bool:
        plain = word.lower()
        common = plain in self._lexicon.function_words and not self._lexicon.is_listed(plain)
        return len(plain) > 1 and plain not in _NOBODY and plain not in CLOSED and not common

    def _is_called(self, word: str) -> bool:
        return word.lower() in self._lexicon.called and self._may_be_named(word)

    def _is_likely(self, word: str) -> bool:
        """A given name, however common the word is, or a word that no dictionary has."""
        plain, lexicon = word.lower(), self._lexicon
        if not self._may_be_named(word) or plain in lexicon.function_words:
            return False
        if plain in lexicon.called:
            return True
        unknown = lexicon.has_dictionary and not lexicon.is_known(plain) and word[0].isupper()
        return unknown or lexicon.is_name(plain, capital=word[0].isupper())

    def _goes_on(self, first: str, second: str) -> bool:
        """Whether a second word belongs to the name: in the same case, and no everyday word."""
        plain = second.lower()
        mixed = first[0].isupper() and not first.isupper()
        if plain in self._lexicon.function_words or plain in _NOBODY or (mixed and second[0].islower()):
            return False
        known = self._lexicon.is_known(plain) if self._lexicon.has_dictionary else not self._lexicon.is_name(plain)
        return mixed or not known or plain in self._lexicon.family

    def _speakers(self, text: str) -> Iterator[Span]:
        """Where one speaker of a transcript has a name, the others have one too, unless they are a role (Judge)."""
        speakers = list(_SPEAKER.finditer(text))
        if any(self._is_likely(one["first"]) for one in speakers):
            for one in speakers:
                plain = one["first"].lower()
                role = self._lexicon.is_known(plain) and self._lexicon.has_common_plural(plain)
                if not role and not one["first"].isupper() and plain not in _NOBODY and plain not in CLOSED:
                    yield Span(*one.span("first"), Kind.GIVEN)

    def _fields(self, text: str) -> Iterator[Span]:
        for match in FIELDS.finditer(text):
            field = Field.of(match["label"])
            if field is not None:
                yield from field.spans(text, match.start("value"), match.end("value"), self._lexicon)

    def _organisations(self, text: str) -> Iterator[Span]:
        for match in _TITLED.finditer(text):
            start = self._first_of(text, match.start(), match.end())
            if start is not None:
                yield Span(start, match.end(), Kind.ORGANISATION)
        for match in _EMPLOYED.finditer(text):
            words = match["name"].lower().split()[:-1]
            sure, kinds = _SURE_EMPLOYER.match(match[0]) is not None, [word in _KINDS_OF_HEADS for word in words]
            if match[0][0] == "," and not re.match(r"\.?\s*(?:$|\n)", text[match.end() :]):
                continue  # only below a name
            if not CLOSED.intersection(words) and (not all(kinds) if sure else len(words) > 1 and not any(kinds)):
                yield Span(*match.span("name"), Kind.ORGANISATION)

        for match in _FIRM.finditer(text) if self._lexicon.language == "de" else ():
            words = match["name"].lower().split()
            if not any(
                word in self._lexicon.function_words or word in _NOBODY or word in self._lexicon.months
                for word in words
            ):
                yield Span(*match.span("name"), Kind.ORGANISATION)

    def _first_of(self, text: str, start: int, end: int) -> int | None:
        """Where a firm's name begins: after articles and the like; None if only a kind of firm is left."""
        words = list(re.finditer(r"[\w'’-]+", text[start:end]))
        while len(words) > 1 and words[0][0].lower() in CLOSED:
            words = words[1:]
        kinds = all(word[0].lower() in _KINDS_OF_HEADS for word in words[:-1])
        return None if kinds and len(words) < 3 else start + words[0].start()

    def _places(self, text: str) -> Iterator[Span]:
        places = [*_PLACE.finditer(text), *_IN.finditer(text)]
        places += [] if self._lexicon.has_dictionary else _IN_LOWER.finditer(text)
        for match in places:
            first, second = match["first"], match["second"]
            plain = first.lower()
            both = f"{plain} {second.lower()}" if second else ""
            if both in self._lexicon.towns:
                yield Span(match.start("first"), match.end("second"), Kind.PLACE)
            elif plain not in self._lexicon.function_words and self._is_place(first):
                yield Span(*match.span("first"), Kind.PLACE)

    def _is_place(self, word: str) -> bool:
        plain, lexicon = word.lower(), self._lexicon
        if plain in _NOBODY:
            return False
        if lexicon.has_dictionary:
            listed = plain in lexicon.towns or plain in lexicon.places
            return listed or not (lexicon.is_known(plain) or lexicon.is_everyday(plain))
        parts = plain.split("-")
        rare = len(parts) > 1 and not all(map(lexicon.is_everyday, parts))
        town = plain in lexicon.towns and plain not in lexicon.function_words
        return rare or town or plain in lexicon.places or lexicon.is_name(plain, capital=word[0].isupper())
