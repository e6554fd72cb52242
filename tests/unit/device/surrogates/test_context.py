"""Names that only their context tells, and the everyday words that stay in the same context."""

from __future__ import annotations

import functools

import pytest

from privtune.device.surrogates.surrogates import Surrogates
from privtune.shared.job_spec import SurrogateSpec


@functools.cache
def of_language(language: str) -> Surrogates:
    return Surrogates(SurrogateSpec(replace="identifying", language=language), b"s" * 32)


def in_clear(surrogates: Surrogates, text: str) -> list[str]:
    own = surrogates.fresh()
    own.learn([text])
    return [word for piece in own.pieces(text) if piece.kind is None for word in piece.text.split()]


@pytest.mark.parametrize(
    ("text", "hidden"),
    [
        ("the van was at Okoro Street 1 again", "Okoro Street 1"),  # addresses
        ("ship it to Fenwick Lane 6A, Hull", "Fenwick 6A, Hull"),
        ("it is old tannery way 7a now", "old tannery 7a"),
        ("a flat in Via Garibaldi 3 is free", "Via Garibaldi 3"),
        ("the order R2X 8X5 is late", "R2X 8X5"),  # codes
        ("the order PC 70 DV 614 is late", "PC 70 DV 614"),
        ("the order D44-797K-G4 is late", "D44-797K-G4"),
        ("plate W 3768 F was seen", "W 3768 F"),
        ("plate M5 KXD was seen", "M5 KXD"),
        ("send it to gb66 west 1619 2745 4562 40 then", "gb66 west 1619 2745 4562 40"),
        ("my pin is 4\u200b7\u200b1 now", "4\u200b7\u200b1"),
        ("my name is may and i bought a lamp", "may"),  # persons
        ("hey will, its me", "will,"),
        ("mr day seen today", "day"),
        ("thank you. Will", "Will"),
        ("ok hurry\nruby: almost there", "ruby:"),
        ("grace said shes tired", "grace"),
        ("Clay: Hello? Yi: It is me.", "Clay: Yi:"),
        ("Insurance of Mr Van den Bosch.", "Van den"),
        ("First name: Will\nManager: Ngo", "Will Ngo"),  # fields
        ('{"first_name": "Will", "employer": "Open Field Software"}', "Will Open Field"),
        ("employer: open field software", "open field software"),
        ("i work at open field software in town", "open field software"),  # organisations
        ("we ate at Three Rivers Kitchen then", "Three Rivers Kitchen"),
        ("they live in bergen now", "bergen"),  # places
        ("flight to da nang again", "da nang"),
        ("Surname: Da Silva", "Da Silva"),
    ],
)
def test_context_tells_names(surrogates: Surrogates, text: str, hidden: str) -> None:
    assert not set(hidden.split()) & set(in_clear(surrogates, text))


@pytest.mark.parametrize(
    ("language", "text", "hidden"),
    [
        ("de", "wir fahren morgen nach göppingen", "göppingen"),
        ("de", "Sehr geehrter Herr Brückner, danke", "Brückner,"),
        ("de", "Mehmet arbeitet bei Stadtwerke Husum.", "Stadtwerke Husum."),
        ("de", "Das Paket liegt Am Alten Wasserwerk 72.", "Am Alten Wasserwerk 72."),
        ("fr", "tu sais si thibault vient ce soir", "thibault"),
        ("fr", "on part à saint-malo samedi", "saint-malo"),
        ("fr", "votre rendez-vous est en janvier 2006", "janvier 2006"),
        ("fr", "Connais-tu Fatoumata Petit?", "Fatoumata Petit?"),
    ],
)
def test_other_languages_tell_names_by_their_use_abroad(language: str, text: str, hidden: str) -> None:
    assert not set(hidden.split()) & set(in_clear(of_language(language), text))


@pytest.mark.parametrize(
    ("language", "text"),
    [
        ("en", "Teacher: Sit down. Customer: Sure, I will. Contact: please call us."),
        ("en", "i went to medical school and have health insurance from the bank"),
        ("en", "hey may i ask, thanks again, dear all, ok sure"),
        ("en", "in winter it may rain on the road"),
        ("en", r"\textbf{it} is \emph{so}"),
        ("en", "there are 5 people on the way, 3 of them in a good place"),
        ("de", "die Rechnung für die Wohnung und das Geld von dem Hund im Garten"),
        ("fr", "la maison et la voiture sont dans le jardin de ma mère"),
    ],
)
def test_everyday_words_stay_in_the_same_context(language: str, text: str) -> None:
    assert in_clear(of_language(language), text) == text.split()


def test_a_word_of_one_public_list_is_of_its_kind(surrogates: Surrogates) -> None:
    own = surrogates.fresh()
    texts = ["Poughkeepsie called me.", "I met Poughkeepsie there.", "We love Poughkeepsie."]
    own.learn(texts)
    assert {str(piece.kind) for text in texts for piece in own.pieces(text) if piece.kind} == {"place"}


def test_a_single_digit_is_replaced_by_two(surrogates: Surrogates) -> None:
    own = surrogates.fresh()
    own.learn(["we live at 7 Elm Street"])
    assert own.restore("it has 2 rooms, or 5") == "it has 2 rooms, or 5"
