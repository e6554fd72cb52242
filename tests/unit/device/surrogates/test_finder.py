"""What is replaced in a text, and what stays."""

from __future__ import annotations

import pytest

from privtune.device.surrogates.kinds import Kind
from privtune.device.surrogates.surrogates import Surrogates


def found(surrogates: Surrogates, text: str) -> dict[str, Kind]:
    own = surrogates.fresh()
    own.learn([text])
    return {piece.text: piece.kind for piece in own.pieces(text) if piece.kind is not None}


@pytest.mark.parametrize(
    ("text", "units"),
    [
        ("I met Priya Raghunathan there.", {"Priya": Kind.GIVEN, "Raghunathan": Kind.FAMILY}),
        ("Please ask Mr. Hawkins about it.", {"Hawkins": Kind.FAMILY}),
        ("Yesterday Rose saw Will again.", {"Rose": Kind.GIVEN, "Will": Kind.FAMILY}),
        ("a witty follow-up from emma thompson", {"emma": Kind.GIVEN, "thompson": Kind.FAMILY}),
        ("mail priya.r@acme-widgets.com today", {"priya.r@acme-widgets.com": Kind.EMAIL}),
        ("it is at https://acme.example.com/a?b=1 now", {"https://acme.example.com/a?b=1": Kind.URL}),
        ("call +1 (212) 555-0134 at once", {"+1 (212) 555-0134": Kind.CODE}),
        ("my IBAN is DE89370400440532013000", {"DE89370400440532013000": Kind.CODE}),
        ("the account 00-12345 is open", {"00-12345": Kind.NUMBER}),
        ("born on 1987-04-12 at home", {"1987-04-12": Kind.DATE}),
        ("she was born in 1987 here", {"1987": Kind.YEAR}),
        ("he paid $1,250.50 for it", {"1,250.50": Kind.NUMBER}),
        ("he is 47 now", {"47": Kind.NUMBER}),
        ("we live at 7 Elm now", {"7": Kind.NUMBER, "Elm": Kind.FAMILY}),
        ("the rash was erysipeloid after all", {"erysipeloid": Kind.RARE}),
        ("about project bluebird and Zeta 9", {"project bluebird": Kind.TERM, "Zeta 9": Kind.TERM}),
        ("contact person - Will Tesfaye", {"Will": Kind.GIVEN, "Tesfaye": Kind.FAMILY}),
        ("signed by A. B. Kealoha", {"A. B.": Kind.INITIALS, "Kealoha": Kind.FAMILY}),
        ("so ask my cousin květa, please", {"květa": Kind.RARE}),
        ("so ask my cousin kve\u030cta, please", {"kve\u030cta": Kind.PLACE}),
        ("then we moved to ibadan", {"ibadan": Kind.PLACE}),
        ("it was 979 Old Tannery Way then", {"979": Kind.NUMBER, "Old Tannery Way": Kind.PLACE}),
        ("come on 5 March or march 8th", {"5": Kind.NUMBER, "March": Kind.MONTH, "8th": Kind.NUMBER}),
        ("ask the_real_kipchoge today", {"the_real_kipchoge": Kind.HANDLE}),
        ("write to vasiliki.svobodova now", {"vasiliki.svobodova": Kind.HANDLE}),
        ("they live in CF2 7MR now", {"CF2 7MR": Kind.CODE}),
        ("dial (+1 492 773 7704) then", {"+1 492 773 7704": Kind.CODE}),
        ("Min-jun plays", {"Min": Kind.FAMILY, "jun": Kind.GIVEN}),
        ("Dear Mr Okonkwo, your flat is ready.", {"Okonkwo": Kind.FAMILY}),
        ("we visited New York then", {"New York": Kind.PLACE}),
        ("he met Jan van den Bosch", {"Jan": Kind.GIVEN, "van": Kind.FAMILY, "den": Kind.FAMILY, "Bosch": Kind.FAMILY}),
        ("Marta said the insurer refused.", {"Marta": Kind.GIVEN}),
        ("did mark get the job", {"mark": Kind.GIVEN}),
        ("then peter and robert came", {"peter": Kind.GIVEN, "robert": Kind.GIVEN}),
        ("ask anna7 or user8812x", {"anna7": Kind.CODE, "user8812x": Kind.CODE}),
    ],
)
def test_what_identifies_is_found(surrogates: Surrogates, text: str, units: dict[str, Kind]) -> None:
    assert units.items() <= found(surrogates, text).items()


@pytest.mark.parametrize(
    "text",
    [
        "Are you sure that this is a good idea? We will see.",
        "the baker will rose early, young and hopeful",
        "i will go, and may i ask why? mark my words, i hope so.",
        "eatType[pub], priceRange[moderate], customer rating[5 out of 5]",
        "#Person1#: Hello, how are you? #Person2#: Fine, I'm on my way.",
        "I saw it on TV on Monday, Doctor.",
        "It took 3 hours.",
        "it does n't work , and that is mawkish , turgid and movingly told",
        "I'll go. They've gone, and there'll be more. I didn ' t know, and you don’t. She’d say I’m wrong.",
        "Username: none. Name: none.",
        "Will you come? May I ask why?",
    ],
)
def test_everyday_words_stay(surrogates: Surrogates, text: str) -> None:
    assert found(surrogates, text) == {}


def test_a_possessive_is_no_part_of_a_name(surrogates: Surrogates) -> None:
    own = surrogates.fresh()
    text = "We took Katherine's car."
    own.learn([text])
    assert own.replace(text).endswith("'s car.")


def test_a_language_without_recognisers_has_rules_and_word_frequencies() -> None:
    from privtune.shared.job_spec import SurrogateSpec

    german = Surrogates(SurrogateSpec(replace="identifying", language="de"), b"s" * 32)
    assert not any("spacy" in name for name in german.recognisers)
    units = found(german, "gestern rief mich herr przybylski aus 51379 an, mail an p.p@firma.de")
    assert {"przybylski", "51379", "p.p@firma.de"} <= units.keys()
