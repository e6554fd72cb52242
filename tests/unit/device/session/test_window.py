"""The send-ahead window: its bound and order, and what the cloud no longer holds is sent in full."""

import numpy as np

from privtune.device.release.perturber import Released
from privtune.device.session.window import PendingBatch, SendAhead
from privtune.shared.wire import FORWARD, Message

NOTHING = Released(handles=np.array([], dtype=np.int64), releases=[])


class FakeStream:
    """Notes what is sent; answers each micro-batch by its number, after asking for it in full if it is in `evicted`."""

    def __init__(self, evicted=()):
        self.sent, self.evicted = [], evicted

    def send(self, message):
        self.sent.append((message.micro_batch, bytes(message.payload)))

    def output(self, step, micro_batch, in_full):
        if micro_batch in self.evicted:
            self.send(in_full())
        return f"answer to {step}, {micro_batch}"


def request(batch, /, *, inline_all=False):
    return Message(kind=FORWARD, step=batch.step, micro_batch=batch.number, payload=b"full" if inline_all else b"")


def window(stream, count, *, in_flight, silent=()):
    made = []

    def coming():
        for number in range(count):
            made.append(number)
            yield PendingBatch(
                step=7,
                number=number,
                indices=np.array([number]),
                released=NOTHING,
                readout_N=np.array([0]),
                asks=number not in silent,
            )

    return SendAhead(stream, coming(), request, in_flight=in_flight), made


def test_no_more_are_made_and_sent_than_may_be_under_way():
    stream = FakeStream()
    ahead, made = window(stream, 6, in_flight=3)
    seen = []
    for batch in ahead:
        assert len(made) == min(len(seen) + 3, 6)  # this one and two more, as long as there are any
        seen.append((batch.number, ahead.answer(batch)))
    assert seen == [(number, f"answer to 7, {number}") for number in range(6)]
    assert stream.sent == [(number, b"") for number in range(6)]


def test_the_window_can_be_filled_while_nothing_is_taken():
    stream = FakeStream()
    ahead, made = window(stream, 6, in_flight=2)
    batches = iter(ahead)
    first = next(batches)
    assert made == [0, 1]
    ahead.fill()
    assert made == [0, 1, 2]
    assert (first.number, next(batches).number) == (0, 1)


def test_what_the_cloud_no_longer_holds_is_sent_in_full():
    stream = FakeStream(evicted={1})
    ahead, _ = window(stream, 2, in_flight=2)
    assert [ahead.answer(batch) for batch in ahead] == ["answer to 7, 0", "answer to 7, 1"]
    assert stream.sent == [(0, b""), (1, b""), (1, b"full")]


def test_a_micro_batch_that_asks_nothing_is_neither_sent_nor_waited_for():
    stream = FakeStream()
    ahead, _ = window(stream, 3, in_flight=1, silent={1})
    assert [ahead.answer(batch) for batch in ahead] == ["answer to 7, 0", None, "answer to 7, 2"]
    assert [number for number, _ in stream.sent] == [0, 2]
