import numpy as np
import pytest
import torch

from privtune.device.audit import victim
from privtune.device.audit.attacker_text import Bigrams, PublicText, batches_of_length, without_overlap
from privtune.device.audit.victim import CleanStates
from privtune.shared.errors import InvalidInput


def test_clean_vectors_are_the_bottoms_own_and_only_words_are_to_be_told(make_lab, attacked, partition):
    lab = make_lab("dchi")
    observed = lab.victim.clean(attacked)
    assert len(observed.ids_N) == sum(len(row) - 2 for row in attacked)
    assert not torch.isin(observed.ids_N, torch.tensor([2, 3])).any()
    row = torch.from_numpy(attacked[5]).long()[None]
    h_TD = partition.bottom(1)(row, torch.ones_like(row))[0]
    mine = observed.seen.record_R == 5
    torch.testing.assert_close(observed.seen.y_RD[mine], h_TD)
    words = observed.ids_N[observed.seen.record_N == 5]
    assert words.tolist() == attacked[5][1:-1].tolist()
    torch.testing.assert_close(observed.seen.y_RD[observed.seen.row_N][observed.seen.record_N == 5], h_TD[1:-1])


def test_every_observation_draws_fresh_noise_and_the_quiet_one_none(make_lab, attacked):
    victim = make_lab("dchi", {"noise_ratio": 1.0}).victim
    one, two, quiet, clean = (
        f(attacked).seen.y_RD for f in (victim.observe, victim.observe, victim.quiet, victim.clean)
    )
    assert not torch.isclose(one, two).all(1).any()
    unclipped = clean.norm(dim=1) <= victim.mechanism.clip * 0.999
    torch.testing.assert_close(quiet[unclipped], clean[unclipped])
    assert (quiet - clean).norm(dim=1).max() < (one - clean).norm(dim=1).min() + 10
    assert victim.mechanism.statement().guarantee == "pure"  # looking at it has not spoilt the mechanism's statement


class Counting(torch.nn.Module):
    """A bottom that counts the records it is asked for."""

    def __init__(self, bottom):
        super().__init__()
        self.bottom, self.asked = bottom, 0

    def forward(self, ids_BT, mask_BT):
        self.asked += len(ids_BT)
        return self.bottom(ids_BT, mask_BT)


def test_a_record_goes_through_the_bottom_once_and_comes_out_the_same_in_any_company(partition, attacked):
    bottom = Counting(partition.bottom(1))
    states = CleanStates(bottom)
    first_BTD = states(attacked[:20])
    again_BTD = states([attacked[3], *attacked[20:24]])
    assert bottom.asked == 24
    length = len(attacked[3])
    assert torch.equal(again_BTD[0, :length], first_BTD[3, :length])
    assert not again_BTD[0, length:].any()


def test_beyond_its_room_nothing_is_kept_and_nothing_is_lost(partition, attacked, monkeypatch):
    monkeypatch.setattr(victim, "_KEPT", 0)
    bottom = Counting(partition.bottom(1))
    states = CleanStates(bottom)
    assert torch.equal(states(attacked[:5]), states(attacked[:5]))
    assert bottom.asked == 10


def test_batches_keep_records_and_tokens_together(make_lab, attacked):
    seen = make_lab().victim.observe(attacked).seen
    parts = list(seen.batches(7))
    assert sum(len(part) for part in parts) == len(seen)
    assert torch.equal(torch.cat([part.y_RD for part in parts]), seen.y_RD)
    assert torch.equal(torch.cat([part.y_RD[part.row_N] for part in parts]), seen.y_RD[seen.row_N])
    y_BTD, mask_BT = parts[0].padded()
    assert torch.equal(y_BTD[mask_BT.bool()], parts[0].y_RD)


def test_sorted_by_length_it_is_the_same(make_lab, attacked):
    seen = make_lab("pool", {"size": 4, "clusters": False}).victim.observe(attacked).seen
    ordered, order_B, order_N = seen.by_length()
    assert torch.equal(ordered.lengths_B, seen.lengths_B.sort().values)
    assert torch.equal(ordered.lengths_B, seen.lengths_B[order_B])
    assert torch.equal(ordered.slot_N, seen.slot_N[order_N])
    assert torch.equal(ordered.y_RD[ordered.row_N], seen.y_RD[seen.row_N[order_N]])
    assert torch.equal(order_B[ordered.record_N], seen.record_N[order_N])


def test_batches_of_alike_length_hold_each_record_once():
    lengths_B = np.random.default_rng(0).integers(5, 60, size=300)
    batches = batches_of_length(lengths_B, 16, np.random.default_rng(1))
    assert sorted(torch.cat(batches).tolist()) == list(range(300))
    padded = sum(len(batch) * lengths_B[batch].max() for batch in batches)
    assert padded < 1.2 * lengths_B.sum()


def test_a_pooling_mechanism_tells_which_row_a_token_went_into(make_lab, attacked):
    seen = make_lab("pool", {"size": 4, "clusters": False}).victim.observe(attacked).seen
    assert seen.slots == 4
    first = seen.record_N == 0
    # [CLS] has row 0; words 1..4 row 1, and so on; the slot is the number in the row.
    words = int(first.sum())
    assert seen.row_N[first].tolist() == [1 + i // 4 for i in range(words)]
    assert seen.slot_N[first].tolist() == [i % 4 for i in range(words)]


def test_text_that_both_sides_have_is_refused(attacked):
    public = PublicText([attacked[3], *attacked[:2]], frozenset({2, 3}))
    with pytest.raises(InvalidInput, match="1 of 10 attacked records are also in the attacker's public text"):
        public.check_disjoint(attacked[3:13])
    public.check_disjoint(attacked[10:])
    assert without_overlap(attacked, attacked[:50]) == list(range(50, 60))
    with pytest.raises(InvalidInput, match="public text"):
        PublicText([], frozenset())


def test_frequencies_are_the_texts_own():
    public = PublicText([np.array([2, 5, 5, 6, 3]), np.array([2, 5, 7, 3])], frozenset({2, 3}))
    assert public.ids_V.tolist() == [5, 6, 7]
    assert public.counts_V.tolist() == [3, 1, 1]
    assert public.frequent_ids.tolist() == [5, 6, 7]
    assert public.index(torch.tensor([7, 4, 5])).tolist() == [2, -1, 0]
    assert public.log_prior_V.exp().sum() == pytest.approx(1)


def test_bigrams_are_a_law_and_know_what_follows():
    public = PublicText([np.array([2, 5, 6, 5, 6, 5, 7, 3])], frozenset({2, 3}))
    bigrams = Bigrams(public, 10)
    law = bigrams.log_prob(torch.tensor(5), torch.arange(10)).exp()
    assert law.sum() == pytest.approx(1, abs=1e-5)
    assert law[6] > law[7] > law[8] > 0
    # Witten-Bell: (count + kinds * P(single)) / (total + kinds), for 5 -> 6 seen 2 of 3 times with 2 kinds
    single = bigrams.log_prob(torch.tensor(8), torch.tensor(6)).exp()
    assert law[6] == pytest.approx(float((2 + 2 * single) / 5), abs=1e-5)


@pytest.mark.parametrize(("name", "params"), [("dchi", {}), ("pool", {"size": 3})])
def test_rows_that_were_really_sent_get_the_truth_of_a_simulation(make_lab, attacked, name, params):
    victim = make_lab(name, params).victim
    drawn = victim.observe(attacked)
    rows = list(torch.split(drawn.seen.y_RD, drawn.seen.lengths_B.tolist()))
    sent = victim.received(attacked, rows)
    for field in ("y_RD", "lengths_B", "row_N", "slot_N"):
        assert torch.equal(getattr(sent.seen, field), getattr(drawn.seen, field)), field
    assert torch.equal(sent.ids_N, drawn.ids_N)
    first = sent.first(7)
    assert len(first.seen) == 7
    assert torch.equal(first.ids_N, sent.ids_N[sent.seen.record_N < 7])
    if name == "dchi":
        with pytest.raises(InvalidInput, match="that was another mechanism"):
            victim.received(attacked[:1], [rows[0][:-1]])
