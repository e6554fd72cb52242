"""Several adapters over one base in one pass give the numbers of separate passes, for every architecture."""

import pytest
import torch

from privtune.shared.job_spec import TuningSpec
from privtune.shared.modeling.joint_top import JointTop, Member, NotJoint
from privtune.shared.modeling.lora import attach_lora, trainable_parameters
from privtune.shared.modeling.partition import Partition
from privtune.shared.modeling.seeding import seeded
from tests.support.tiny_models import CONFIGS, ENCODERS, WIDTH, tiny_classifier, tiny_lm

SHAPES = [(2, 7), (3, 4), (2, 7), (1, 9)]  # records and positions
TUNINGS = [{"rank": 4, "dropout": 0.2}, {"rank": 4, "dropout": 0.0}, {"rank": 4, "dropout": 0.2}, {"rank": 2}]
DROPOUT = 0.1


def partition(kind, dropout=DROPOUT):
    changes = {name: dropout for name in CONFIGS[kind] if "drop" in name}
    return Partition(tiny_classifier(kind, **changes) if kind in ENCODERS else tiny_lm(kind, **changes))


def tops(cuts):
    """A top for each shape, with an adapter that is not zero."""
    made = []
    for number, tuning in enumerate(TUNINGS):
        top = cuts.top(1)
        targets = sorted({name.split(".")[-1] for name, m in top.named_modules() if isinstance(m, torch.nn.Linear)})
        chosen = {"targets": targets[:2]} if number == 1 else {}
        attach_lora(top, TuningSpec(**tuning, **chosen), number)
        generator = torch.Generator().manual_seed(number)
        with torch.no_grad():
            for parameter in trainable_parameters(top):
                parameter.normal_(0, 0.1, generator=generator)
        made.append(top)
    return made


def batch(number):
    records, longest = SHAPES[number]
    lengths = torch.tensor([longest, longest - 2, longest - 1][:records])
    mask_BT = (torch.arange(longest)[None] < lengths[:, None]).long()
    h_BTD = torch.randn(records, longest, WIDTH, generator=torch.Generator().manual_seed(number))
    return h_BTD.requires_grad_(True), mask_BT, torch.tensor([0, 1, longest][: records + 1])


def members(all_tops):
    return [
        Member(top=top, h_BTD=h_BTD, mask_BT=mask_BT, readout_N=readout_N, seeded=seeded("top", number))
        for number, top in enumerate(all_tops)
        for h_BTD, mask_BT, readout_N in [batch(number)]
    ]


def learned(outs, inputs):
    return torch.autograd.grad([out_ND.cos().sum() for out_ND in outs], inputs)


def alone(all_tops):
    found = []
    for number, top in enumerate(all_tops):
        h_BTD, mask_BT, readout_N = batch(number)
        with seeded("top", number):
            out_ND = top.train()(h_BTD, mask_BT, readout_N)
        found.append((out_ND, learned([out_ND], [h_BTD, *trainable_parameters(top)])))
    return [out_ND for out_ND, _ in found], [one for _, gradients in found for one in gradients]


KINDS = [(kind, kind in ("bert", "gpt2")) for kind in CONFIGS if kind != "deberta-v2"]


@pytest.mark.parametrize(("kind", "grouped"), [*KINDS, ("bert", False), ("llama", True)])
def test_one_pass_gives_the_numbers_of_separate_ones_dropout_included(kind, grouped):
    cuts = partition(kind)
    made = tops(cuts)
    wanted, gradients = alone(made)
    together = members(made)
    outs = JointTop(cuts.top(1), grouped=grouped).forward(together, training=True)
    inputs = [one for part in together for one in (part.h_BTD, *trainable_parameters(part.top))]
    for found, expected in zip([*outs, *learned(outs, inputs)], [*wanted, *gradients], strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_a_layer_that_records_share_is_refused_and_nothing_is_left_behind():
    """DeBERTa adapts and drops parts of its table of relative positions, once for all records of a pass."""
    cuts = partition("deberta-v2")
    made, joint, before = tops(cuts), JointTop(cuts.top(1), grouped=False), torch.get_rng_state()
    with pytest.raises(NotJoint):
        joint.forward(members(made), training=True)
    assert joint.refused
    assert torch.equal(torch.get_rng_state(), before)


def test_random_numbers_of_another_kind_are_noticed():
    """OPT draws a number per block, whether or not it skips blocks by it."""
    cuts = partition("llama")
    plain = cuts.top(1)
    plain.task.base_model.layers[1].register_forward_hook(lambda *_: torch.rand(()) and None)
    with pytest.raises(NotJoint, match="random numbers"):
        JointTop(plain, grouped=False).forward(members(tops(cuts)), training=True)


def test_what_one_member_sends_changes_no_other():
    cuts = partition("bert")
    made = tops(cuts)
    _, wanted = alone(made)
    together = members(made)
    with torch.no_grad():
        together[1].h_BTD.fill_(float("nan"))
    outs = JointTop(cuts.top(1), grouped=True).forward(together, training=True)
    inputs = [one for part in together for one in (part.h_BTD, *trainable_parameters(part.top))]
    found, counts = iter(learned(outs, inputs)), [1 + len(trainable_parameters(top)) for top in made]
    expected = iter(wanted)
    for number, count in enumerate(counts):
        for _ in range(count):
            mine, theirs = next(found), next(expected)
            if number != 1:
                torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)
    assert outs[1].isnan().any()
