"""What the cloud keeps of texts that are being written: within bounds, freed, and never mixed up."""

import functools

import numpy as np
import pytest
import torch
from transformers import LlamaModel

from privtune.cloud.catalog import Catalog
from privtune.cloud.compute.host import Host
from privtune.cloud.compute.release_cache import NotHeld, ReleaseCache
from privtune.cloud.compute.step_machine import StepMachine
from privtune.cloud.compute.text_cache import TextCache
from privtune.cloud.compute.top_session import TopSession
from privtune.shared.errors import FrameCorrupt, InvalidInput, MessageTooLarge
from privtune.shared.job_spec import JobSpec
from privtune.shared.wire import END, FORWARD, OUTPUT, RESEND, STEP, Message, pack_positions, tensor_message
from privtune.split.v1 import split_pb2 as pb
from tests.support.tiny_models import save_model

WIDTH = 32


@pytest.fixture(scope="module")
def top(tmp_path_factory):
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("models")
    save_model(folder / "dec", "llama", "causal-lm")
    host = Host(Catalog([f"dec={folder / 'dec'}"]), folder / "bottoms")
    spec = JobSpec(model="dec", training_file="device://x", task="causal-lm", codec="fp32")
    return TopSession(host, spec, 1, folder)


@pytest.fixture
def clock():
    return [0.0]


@pytest.fixture
def texts(clock):
    return TextCache(max_bytes=1 << 20, max_texts=3, idle_s=10.0, clock=lambda: clock[0])


@pytest.fixture
def machine(top, texts):
    return machine_of(top, texts)


def machine_of(top, texts):
    return StepMachine(top, ReleaseCache(WIDTH, "fp32", 1 << 20), lambda: None, texts=texts)


def rows_of(record, count):
    return np.random.default_rng(record).standard_normal((count, WIDTH)).astype(np.float32)


def ask(machine, parts, *, step=0, readout=None, **header):
    """parts: (record, past, length) of each; the rows of a record are always the same."""
    h_MD = np.concatenate([rows_of(record, past + length)[past:] for record, past, length in parts])
    message = tensor_message(FORWARD, step, 0, h_MD, "fp32")
    longest = max(length for _, _, length in parts)
    last = [row * longest + length - 1 for row, (_, _, length) in enumerate(parts)]
    fields = {"past": [past for _, past, _ in parts], "inlined": [True] * len(parts)} | header
    message.forward = pb.ForwardHeader(
        record_ids=[record for record, _, _ in parts],
        lengths=[length for _, _, length in parts],
        readout=pack_positions(np.array(last if readout is None else readout)),
        forward_only=True,
        **fields,
    )
    return list(machine.handle(message))


def state(machine, *parts, **options):
    (answer,) = ask(machine, parts, **options)
    assert answer.kind == OUTPUT
    return answer.tensor()


def whole(top, record, count):
    h_1TD = torch.from_numpy(rows_of(record, count))[None]
    return top.evaluate(h_1TD, torch.ones(1, count, dtype=torch.long), torch.tensor([count - 1])).numpy()


def test_rows_in_pieces_give_the_state_of_the_whole(machine, top):
    assert state(machine, (1, 0, 4)).shape == (1, WIDTH)
    state(machine, (1, 4, 1))
    np.testing.assert_allclose(state(machine, (1, 5, 3)), whole(top, 1, 8), atol=1e-5)


def test_several_texts_in_one_message(machine, top):
    state(machine, (1, 0, 4), (2, 0, 2))
    out_2D = state(machine, (1, 4, 1), (2, 2, 3))
    np.testing.assert_allclose(out_2D[:1], whole(top, 1, 5), atol=1e-5)
    np.testing.assert_allclose(out_2D[1:], whole(top, 2, 5), atol=1e-5)


def test_one_new_row_of_each_text_is_one_pass(machine, top, monkeypatch):
    passes = []
    monkeypatch.setattr(LlamaModel, "forward", counted(LlamaModel.forward, passes))
    state(machine, (1, 0, 4), (2, 0, 2))
    passes.clear()
    out_2D = state(machine, (1, 4, 1), (2, 2, 1))
    assert passes == [2]
    state(machine, (1, 5, 1))
    np.testing.assert_allclose(out_2D[:1], whole(top, 1, 5), atol=1e-5)
    np.testing.assert_allclose(out_2D[1:], whole(top, 2, 3), atol=1e-5)
    np.testing.assert_allclose(state(machine, (1, 6, 1), (2, 3, 1))[:1], whole(top, 1, 7), atol=1e-5)


@pytest.mark.parametrize(("lengths", "passes"), [((4, 2, 3), [3]), ((20, 1, 1), [2, 1])])
def test_texts_that_begin_in_one_message_are_one_pass_unless_it_is_mostly_padding(
    machine, top, monkeypatch, lengths, passes
):
    seen = []
    monkeypatch.setattr(LlamaModel, "forward", counted(LlamaModel.forward, seen))
    out_ND = state(machine, *((record, 0, length) for record, length in enumerate(lengths)))
    assert seen == passes
    for record, length in enumerate(lengths):
        np.testing.assert_allclose(out_ND[record : record + 1], whole(top, record, length), atol=1e-5)
        np.testing.assert_allclose(state(machine, (record, length, 1)), whole(top, record, length + 1), atol=1e-5)


def test_texts_that_padding_would_make_too_large_go_on_one_by_one(top, monkeypatch):
    long = top.new_text()
    long.extend(torch.zeros(40, WIDTH))
    machine = machine_of(top, TextCache(max_bytes=int(1.5 * long.nbytes), max_texts=9, idle_s=10.0))
    state(machine, (1, 0, 40), (2, 0, 2))
    passes = []
    monkeypatch.setattr(LlamaModel, "forward", counted(LlamaModel.forward, passes))
    out_2D = state(machine, (1, 40, 1), (2, 2, 1))
    assert passes == [1, 1]
    np.testing.assert_allclose(out_2D[1:], whole(top, 2, 3), atol=1e-5)


def counted(forward, passes):
    """`forward`, noting the batch size of each pass. `wraps`, so that its signature can be read."""

    @functools.wraps(forward)
    def call(*args, inputs_embeds, **options):
        passes.append(len(inputs_embeds))
        return forward(*args, inputs_embeds=inputs_embeds, **options)

    return call


def test_a_text_begun_again_replaces_what_was_kept(machine, texts, top):
    state(machine, (1, 0, 6))
    np.testing.assert_allclose(state(machine, (1, 0, 3)), whole(top, 1, 3), atol=1e-5)
    assert len(texts) == 1


def test_over_the_number_the_oldest_goes_and_is_asked_for_again(machine, texts, top):
    for record in range(4):
        state(machine, (record, 0, 3))
    assert len(texts) == 3
    (answer,) = ask(machine, [(0, 3, 1)])
    assert answer.kind == RESEND
    np.testing.assert_allclose(state(machine, (0, 0, 4)), whole(top, 0, 4), atol=1e-5)


def test_over_the_bytes_the_oldest_goes(top):
    one = top.new_text()
    one.extend(torch.zeros(8, WIDTH))
    texts = TextCache(max_bytes=2 * one.nbytes, max_texts=100, idle_s=10.0)
    machine = machine_of(top, texts)
    for record in range(3):
        state(machine, (record, 0, 8))
    assert texts.size == 2 * one.nbytes
    assert [answer.kind for answer in ask(machine, [(0, 8, 1)])] == [RESEND]


def test_a_text_that_is_too_large_alone_is_refused(top):
    texts = TextCache(max_bytes=1000, max_texts=100, idle_s=10.0)
    with pytest.raises(MessageTooLarge, match="--max-texts-mib"):
        ask(machine_of(top, texts), [(0, 0, 8)])
    assert texts.size == 0


def test_ended_texts_are_let_go_and_unknown_ones_do_no_harm(machine, texts):
    state(machine, (1, 0, 3), (2, 0, 3))
    assert list(machine.handle(Message(kind=END, step=0, forward=pb.ForwardHeader(record_ids=[1, 77])))) == []
    assert len(texts) == 1
    assert [answer.kind for answer in ask(machine, [(1, 3, 1)])] == [RESEND]


def test_sessions_do_not_see_one_another(machine, texts, top):
    other = machine_of(top, texts)
    state(machine, (1, 0, 3))
    assert [answer.kind for answer in ask(other, [(1, 3, 1)])] == [RESEND]
    state(other, (1, 0, 5))
    texts.drop_session(other)
    np.testing.assert_allclose(state(machine, (1, 3, 1)), whole(top, 1, 4), atol=1e-5)
    texts.drop_session(machine)
    assert (len(texts), texts.size) == (0, 0)


def test_abandoned_texts_are_let_go(machine, texts, clock):
    state(machine, (1, 0, 3))
    clock[0] = 8.0
    state(machine, (2, 0, 3))
    clock[0] = 12.0
    texts.drop_idle()
    assert len(texts) == 1
    with pytest.raises(NotHeld):
        texts.get(machine, 1, 3)


def test_all_or_none_of_a_message_goes_on(machine):
    state(machine, (1, 0, 3))
    assert [answer.kind for answer in ask(machine, [(1, 3, 1), (2, 3, 1)])] == [RESEND]
    state(machine, (1, 3, 1))


@pytest.mark.parametrize(
    ("parts", "header", "why"),
    [
        ([(1, 2, 1)], {}, "continues after 2 rows, but 3"),
        ([(1, 3, 1)], {"past": [3, 0]}, "do not fit together"),
        ([(1, 3, 1)], {"inlined": [False]}, "inline"),
        ([(1, 3, 1)], {"readout": [1]}, "position"),
    ],
)
def test_contradictions_are_refused(machine, parts, header, why):
    state(machine, (1, 0, 3))
    with pytest.raises(FrameCorrupt, match=why):
        ask(machine, parts, **header)


def test_a_text_over_the_context_is_refused(machine):
    with pytest.raises(InvalidInput, match="49 tokens is over this model's 48"):
        ask(machine, [(1, 0, 49)])


def test_a_training_session_keeps_no_texts(top):
    machine = StepMachine(top, ReleaseCache(WIDTH, "fp32", 1 << 20), lambda: None)
    with pytest.raises(FrameCorrupt, match="does not send frames of kind"):
        list(machine.handle(Message(kind=END, step=0, forward=pb.ForwardHeader(record_ids=[1]))))


def test_an_inference_session_trains_nothing(machine):
    with pytest.raises(FrameCorrupt, match="forward-only"):
        list(machine.handle(Message(kind=STEP, step=0)))
