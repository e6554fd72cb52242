import numpy as np
import pytest
import torch

from privtune.device.audit.attacker_text import PublicText
from privtune.device.audit.identifying import Hidden
from privtune.device.audit.metrics import InversionScore, bootstrap, hits, rouge_l, spread
from privtune.device.audit.observed import Observed, Seen


def observed(truth, lengths, row=None, slot=None):
    count = len(truth)
    seen = Seen(
        y_RD=torch.zeros(sum(lengths), 2),
        lengths_B=torch.tensor(lengths),
        row_N=torch.tensor(row) if row else torch.arange(count),
        slot_N=torch.tensor(slot) if slot else torch.zeros(count, dtype=torch.int64),
    )
    return Observed(seen=seen, ids_N=torch.tensor(truth))


def test_hits_count_the_first_guesses_only():
    guesses = torch.tensor([[1, 2, 3, 4, 5, 6], [9, 9, 9, 9, 9, 2], [9, 9, 9, 9, 9, 9]])
    assert hits(guesses, observed([1, 2, 3], [2, 1])).tolist() == [[1, 1, 1], [0, 0, 1], [0, 0, 0]]


def test_order_inside_a_row_of_several_tokens_does_not_count():
    two_in_one = observed([7, 8], [1], row=[0, 0], slot=[0, 1])
    assert hits(torch.tensor([[8], [7]]), two_in_one)[:, 0].tolist() == [True, True]
    assert hits(torch.tensor([[8], [8]]), two_in_one)[:, 0].tolist() == [False, True]


def test_one_ranking_is_dealt_to_the_slots_of_a_row():
    seen = observed([7, 8], [1], row=[0, 0], slot=[0, 1]).seen
    dealt = spread(torch.arange(20).expand(2, -1), seen)
    assert dealt[:, :3].tolist() == [[0, 2, 4], [1, 3, 5]]
    assert spread(torch.arange(4).expand(2, -1), seen)[:, 2].tolist() == [-1, -1]


def test_rouge_l_against_counts_by_hand():
    assert rouge_l(np.array([1, 2, 3]), np.array([1, 2, 3])) == 1
    assert rouge_l(np.array([1, 9, 3]), np.array([1, 2, 3])) == pytest.approx(4 / 6)
    assert rouge_l(np.array([3, 2, 1]), np.array([1, 2, 3])) == pytest.approx(2 / 6)
    assert rouge_l(np.array([], dtype=int), np.array([1])) == 0


def test_figures_floors_and_content_words():
    # 0..99 are frequent (0 the most), 100..149 are content words (100 the most frequent of them)
    text = np.concatenate([np.full(400 - 2 * i, i) for i in range(150)])
    public = PublicText([text], frozenset())
    truth = observed([0, 1, 100, 120], [2, 2])
    score = InversionScore(public)
    score.add(torch.tensor([[0], [5], [100], [7]]), truth)
    figures = score.figures()
    assert figures["top1"].value == 0.5
    assert figures["top1"].floor == 0.25  # the most frequent id everywhere
    assert figures["top10"].floor == 0.5  # 0 and 1 are among the ten most frequent ids
    assert figures["content_top1"].value == 0.5
    assert figures["content_top1"].floor == 0.5  # the most frequent content word, 100
    assert figures["rouge_l"].value == pytest.approx(0.5)
    assert figures["exact"].value == 0
    assert figures["top1"].low <= 0.5 <= figures["top1"].high


def test_the_floor_of_the_language_knows_lengths_and_nothing_else():
    # 5 stands first, then 6, 7; a text of two words is 8 9
    long, short = np.array([2, 5, 6, 7, 3]), np.array([2, 8, 9, 3])
    public = PublicText([long] * 6 + [short] * 5, frozenset({2, 3}))
    score = InversionScore(public)
    truth = observed([5, 6, 7, 8, 9], [3, 2])
    score.add(torch.zeros(5, 1, dtype=torch.int64), truth)
    figures = score.figures()
    assert figures["top1"].language_floor == 1.0
    assert figures["top1"].floor == 0.2
    assert figures["rouge_l"].language_floor is None


def test_the_interval_shrinks_with_the_number_of_records_and_is_the_binomial_one():
    rng = np.random.default_rng(0)
    rows = np.stack([(rng.random(1000) < 0.3).astype(float), np.ones(1000)], axis=1)
    ((value, low, high),) = bootstrap(rows, [(0, 1)])
    assert value == rows[:, 0].mean()
    assert high - low == pytest.approx(2 * 1.96 * np.sqrt(value * (1 - value) / 1000), rel=0.15)
    ((_, low4, high4),) = bootstrap(rows[:250], [(0, 1)])
    assert (high4 - low4) > 1.5 * (high - low)


class _Letters:
    """A tokenizer: 0 is a, 1 is b, ..."""

    def decode(self, ids):
        return " ".join(chr(97 + one) for one in ids)


def test_replaced_words_are_looked_for_in_the_guesses_for_their_record_and_for_others():
    hidden = Hidden(words=[frozenset("ab"), frozenset("c"), frozenset("d")], tokenizer=_Letters())
    score = InversionScore(PublicText([np.arange(9)], frozenset()), hidden)
    # Of a, b, c, d only a is guessed for its own record; each of the others has a as well, and one of them d.
    score.add(torch.tensor([[0], [5], [0], [3], [0], [-1]]), observed([4] * 6, [2, 2, 2]))
    found = score.figures()["replaced"]
    assert found.value == 1 / 4
    assert found.floor == pytest.approx((2 / 2 + 1 / 2) / 4)
    few = InversionScore(PublicText([np.arange(9)], frozenset()), hidden)
    few.add(torch.tensor([[0], [1]]), observed([4] * 2, [2]))  # a slow attack, on the first records only
    assert few.figures()["replaced"].value == 1


def test_several_seeds_add_up():
    public = PublicText([np.arange(5)], frozenset())
    score = InversionScore(public)
    score.add(torch.tensor([[0], [1]]), observed([0, 1], [1, 1]))
    score.add(torch.tensor([[4], [4]]), observed([0, 1], [1, 1]))
    assert score.figures()["top1"].value == 0.5
