"""Which records share a pass: all of them, each once, without much padding."""

import random

from privtune.cloud.compute.padding import MOST_PADDED, ROWS, together


def test_usual_micro_batches_are_one_pass_in_their_order():
    assert together([5, 9, 7]) == [[0, 1, 2]]
    assert together([40_000]) == [[0]]


def test_no_pass_is_much_larger_than_its_records():
    draw = random.Random(0)
    for _ in range(200):
        lengths = [draw.choice((1, 2, draw.randint(1, 3000))) for _ in range(draw.randint(1, 200))]
        found = together(lengths)
        assert sorted(place for rows in found for place in rows) == list(range(len(lengths)))
        for rows in found:
            padded = len(rows) * max(lengths[row] for row in rows)
            assert len(rows) == 1 or padded <= min(ROWS, MOST_PADDED * sum(lengths[row] for row in rows))
        assert len(found) <= 12 + 2 * sum(lengths) // ROWS
