"""Records as they come: long, odd, in other scripts, full of names. Each is replaced, in time, and comes back."""

from __future__ import annotations

import calendar
import random
import time

import pytest

from privtune.device.surrogates.surrogate_map import SurrogateMap
from privtune.device.surrogates.surrogates import Surrogates
from privtune.shared.job_spec import SurrogateSpec

MONTHS = calendar.month_name[1:]
SYLLABLES = ["ka", "ru", "mo", "ti", "ze", "no", "vi", "ha", "xu", "pe", "ly", "dra"]


def invented(count: int) -> list[str]:
    chosen = random.Random(1)
    return sorted({"".join(chosen.choices(SYLLABLES, k=4)).title() for _ in range(3 * count)})[:count]


def replaced(surrogates: Surrogates, text: str) -> str:
    own = surrogates._map("hard")
    own.learn([text])
    sent = own.replace(text)
    assert own.restore(sent) == text
    assert streamed(own, sent, 1) == text
    return sent


def streamed(own: SurrogateMap, answer: str, size: int) -> str:
    restorer = own.restorer()
    pieces = [restorer.push(answer[at : at + size]) for at in range(0, len(answer), size)]
    return "".join(pieces) + restorer.finish()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "\t\r\n \u200b",
        "🙂🙃👨‍👩‍👧" * 20,
        " ".join(f"{month} 1, {month[:3]} 2." for month in MONTHS),
        " ".join(f"in {year}," for year in range(1900, 2100)),
        " ".join(f"{letter}. Hawkins and" for letter in "BCDEFGHIJKLMNOPQRSTUVWXYZ"),
        "I met " + " and I met ".join(invented(900)),
        "I met McDonald and Mcdonald and MCDONALD and mcDonald.",
        "the codes XY77, Xy77, xy77, xY77 and Ab12-xy77",
        "in İstanbul and Istanbul and ISTANBUL, İSTANBUL then",
        "ask priya_r.5 now, and x+1(212) 555-0134",
        '{"name": "Priya Raghunathan", "age": 47, "tel": "+1 212 555 0134", "esc": "Priya\\nRaghunathan"}',
        '<b>Priya</b> <a href="mailto:p.r@x.org">Raghunathan</a>&nbsp;at &lt;27 Elm Street&gt;',
        r"\textbf{Priya Raghunathan} \cite{raghunathan2021} $x_{12}=3.14$ \'Emile",
        "Name:\tPriya Raghunathan\r\nAge:\t47\r\n",
        "\u202bاسمي محمد العتيبي والرقم 0501234567\u202c",
        "ผมชื่อสมชาย ใจดี อายุ 47 ปี โทร 081-234-5678",
        "我叫王伟，住在北京市朝阳区27号，电话13912345678。",
    ],
)
def test_a_hard_text_comes_back(surrogates: Surrogates, text: str) -> None:
    replaced(surrogates, text)


def test_a_text_with_every_surrogate_comes_back(surrogates: Surrogates) -> None:
    pools = surrogates._pools
    names = " and ".join((*pools._given, *pools._family)).lower()
    words = " ".join(word for listed in pools._rare.values() for word in listed[:300])
    replaced(surrogates, f"I met Priya Raghunathan. {names} {words} {' '.join(MONTHS).lower()} 5 March zxqvw brixly")


@pytest.mark.parametrize(
    "one",
    ["a", "1", "1.", "A.", "a-", "(", "+1 ", ",", '"', "http://", "a'", "www.", "a@a.", "Anna a ", "Anna ", " ", "10:"],
)
def test_time_grows_with_the_length_only(surrogates: Surrogates, one: str) -> None:
    """A second for 2,000 characters is ten times what it takes; with a quadratic pattern it was a minute and more."""
    text = one * (4_000 // len(one))
    began = time.process_time()
    own = surrogates.fresh()
    own.learn([text])
    own.replace(text)
    assert time.process_time() - began < 4


def test_a_long_web_address_is_replaced_whole(surrogates: Surrogates) -> None:
    address = "https://www.example.com/" + "maurice/" * 100
    assert "maurice" not in replaced(surrogates, f"see {address} now").replace("/", " ").split()


@pytest.mark.parametrize(
    ("text", "hidden"),
    [
        ("मेरा नाम राजेश कुमार है", "राजेश"),
        ("ask Pri\u200bya Raghu\u00adnathan", "nathan"),
        ("ask Kathe\u200drine", "rine"),
    ],
)
def test_marks_and_invisible_characters_do_not_cut_words(surrogates: Surrogates, text: str, hidden: str) -> None:
    assert hidden not in replaced(surrogates, text)


def test_own_terms_may_be_anything() -> None:
    terms = ("", " ", "C++", "a.b", "Blue", "Blue Bird", "blue bird two", "x", "(y", "Zoë", "Bird\tSong", "|", "[z]")
    surrogates = Surrogates(SurrogateSpec(replace="identifying"), b"s" * 32, terms)
    text = "we like c++ and a.b, not axb; BLUE BIRD TWO, blue  bird, blue, x (y zoe\u0308 bird\nsong | [z] v_blue_2"
    own = surrogates.fresh()
    own.learn([text])
    found = {piece.text for piece in own.pieces(text) if piece.kind is not None}
    expected = {
        "c++",
        "a.b",
        "BLUE BIRD TWO",
        "blue  bird",
        "blue",
        "x",
        "(y",
        "zoe\u0308",
        "bird\nsong",
        "[z]",
        "v_blue_2",
    }
    assert expected <= found
    assert own.restore(own.replace(text)) == text
