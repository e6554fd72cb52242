"""The claim, as a property: what leaves depends on kinds, shapes, case and the pattern of equal words, on nothing else.

Each test writes one sentence twice with other words of the same kinds in the same places, and compares what leaves.
"""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from privtune.device.surrogates.kinds import Kind, Span
from privtune.device.surrogates.surrogate_map import SurrogateMap
from privtune.device.surrogates.surrogates import Surrogates

SLOW = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
SECRETS = st.binary(min_size=8, max_size=8)
DRAWN = [kind for kind in Kind if kind not in (Kind.NUMBER, Kind.CODE, Kind.DATE, Kind.INITIALS)]
CLEAR = ["it", "was", "hope's", "maurice", "london", "march", "Group", "7", "(", "south"]
# A word's letters; whichever it is made of, its kind and case are given.
LETTERS = st.text("abcdefghijklmnopqrstuvwxyzäßéñжשم王", min_size=2, max_size=12)


def leaves(surrogates: Surrogates, secret: bytes, units: list[tuple[str, Kind | None]]) -> str:
    """Of units with a blank between them; a kind of None is a word in clear."""
    text, spans = "", []
    for surface, kind in units:
        if kind is not None:
            spans.append(Span(len(text), len(text) + len(surface), kind))
        text += surface + " "
    own = SurrogateMap(secret, surrogates._finder, surrogates._pools, surrogates._lexicon)
    own.learn([text], [spans])
    sent = own.replace(text)
    assert own.restore(sent) == text
    return sent


@SLOW
@given(st.data(), SECRETS)
def test_of_a_word_only_kind_and_pattern_leave(surrogates: Surrogates, data: st.DataObject, secret: bytes) -> None:
    pattern = data.draw(st.lists(st.one_of(st.integers(0, 5), st.sampled_from(CLEAR)), min_size=1, max_size=12))
    kinds = data.draw(st.lists(st.sampled_from(DRAWN), min_size=6, max_size=6))
    sent = []
    for _ in range(2):
        words = data.draw(st.lists(LETTERS, min_size=6, max_size=6, unique=True))
        words = [f"q{word}q" for word in words]  # none is a word in clear, whose place the pattern would tell
        sent.append(
            leaves(surrogates, secret, [(words[p], kinds[p]) if isinstance(p, int) else (p, None) for p in pattern])
        )
    assert sent[0] == sent[1]


@SLOW
@given(st.data(), SECRETS, st.sampled_from(["##", "#,#", "#/#/####", "####", "+# (###) ###", "##kg", "##th", "@##-@"]))
def test_of_a_number_or_code_only_the_shape_leaves(
    surrogates: Surrogates, data: st.DataObject, secret: bytes, shape: str
) -> None:
    kind = Kind.CODE if "@" in shape else Kind.DATE if "/" in shape else Kind.NUMBER
    digits = st.sampled_from("123456789")

    def filled() -> str:
        return "".join(
            data.draw(digits) if one == "#" else data.draw(st.sampled_from("ABC")) if one == "@" else one
            for one in shape
        )

    one, other = filled(), filled()
    assert leaves(surrogates, secret, [(one, kind)]) == leaves(surrogates, secret, [(other, kind)])


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("It is on the 21st.", "It is on the 34th."),
        ("Come on 1st March.", "Come on 6th April."),
        ("We live at 27b Elm Street.", "We live at 84f Oak Street."),
        ("It is flat 3c.", "It is flat 8f."),
    ],
)
def test_nothing_that_is_glued_to_a_number_tells_it(surrogates: Surrogates, one: str, other: str) -> None:
    sent = []
    for text in (one, other):
        own = surrogates._map("the same")
        own.learn([text])
        sent.append(own.replace(text))
    assert sent[0] == sent[1]


def test_what_has_left_in_clear_is_not_linked_to_its_surrogate_later(surrogates: Surrogates) -> None:
    turns = ["zzz is here", "So zzz is here"]
    own = SurrogateMap(b"x" * 32, surrogates._finder, surrogates._pools, surrogates._lexicon)
    own.learn(turns[:1], [[]])
    first = own.replace(turns[0])
    own.learn(turns[1:], [[Span(3, 6, Kind.GIVEN)]])
    assert own.replace(turns[0]) == first == turns[0]


@pytest.mark.parametrize("seed", range(5))
def test_no_new_surrogate_equals_a_word_that_has_left_in_clear(surrogates: Surrogates, seed: int) -> None:
    own = SurrogateMap(bytes([seed]) * 32, surrogates._finder, surrogates._pools, surrogates._lexicon)
    left = " ".join(surrogates._pools._family[::2]).lower()
    own.learn([left], [[]])
    own.learn(["Zzq came"], [[Span(0, 3, Kind.FAMILY)]])
    assert own.replace("Zzq came").split()[0].lower() not in left.split()


def test_the_opening_of_a_conversation_is_learned_as_a_whole(surrogates: Surrogates) -> None:
    """A pair of texts is one record, and a system prompt leaves together with the first question."""
    texts = ["it was zzqx again", "So I met Zzqx Hawkins and zzqx"]
    own = surrogates.conversation(texts, opening=2)
    assert "zzqx" not in " ".join(map(own.replace, texts)).lower()
