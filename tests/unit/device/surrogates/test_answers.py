"""What a language model writes about surrogates comes back as the true words, and nothing else does."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from privtune.device.surrogates.restorer import Restorer, Restoring
from privtune.device.surrogates.surrogates import Surrogates

BACK = {
    "Anna": "Priya",
    "Port Anna": "Leeds",
    "Anna B": "x",
    "B C": "y",
    "12": "47",
    "12,5": "99,1",
    "1": "8",
    "a@b.org": "q@r.com",
}
LETTERS = st.lists(st.sampled_from([*BACK, " ", ".", ",", "b", "s", "1", "Port", "'s", "\n", "5"]), max_size=12).map(
    "".join
)


@given(LETTERS, st.lists(st.integers(1, 6), min_size=1))
def test_a_stream_in_any_pieces_is_the_whole(answer: str, sizes: list[int]) -> None:
    forms = Restoring(BACK)
    restorer, out, at = Restorer(forms), "", 0
    for size in sizes * (len(answer) + 1):
        out += restorer.push(answer[at : at + size])
        at += size
    assert out + restorer.finish() == forms.sub(answer)


@pytest.mark.parametrize(
    ("written", "true"),
    [
        ("Anna's car, **Anna**, “Anna” and _the_ (Anna).", "Priya's car, **Priya**, “Priya” and _the_ (Priya)."),
        ("Port Anna, Anna", "Leeds, Priya"),
        ("It is 12. It is 12,5 or 12, no 112, 12.5 or 3,12.", "It is 47. It is 99,1 or 47, no 112, 12.5 or 3,12."),
        ("Write to <a@b.org>.", "Write to <q@r.com>."),
        ('{"name": "Anna", "age": 12}', '{"name": "Priya", "age": 47}'),
        ("Annabel, Joanna, AnnaB and Anna_1", "Annabel, Joanna, AnnaB and Anna_1"),
        ("- Anna\n- Anna", "- Priya\n- Priya"),
    ],
)
def test_whole_surrogates_only_come_back(written: str, true: str) -> None:
    assert Restoring(BACK).sub(written) == true


def test_names_come_back_by_parts_and_in_capitals(surrogates: Surrogates) -> None:
    text = "Dear Mr Tom Okonkwo , hello."
    own = surrogates.fresh()
    own.learn([text])
    given_name, family = own.replace(text).split()[2:4]
    assert own.restore(f"Mr {family}, {given_name}, {family.upper()}") == "Mr Okonkwo, Tom, OKONKWO"
