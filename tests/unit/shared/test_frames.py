import numpy as np
import pytest

from privtune.shared.errors import FrameCorrupt, MessageTooLarge, SessionSuperseded
from privtune.shared.wire import FORWARD, STEP, FrameReader, FrameWriter, Message, tensor_message
from privtune.split.v1 import split_pb2 as pb

MAX = 1 << 20


def make(chunk_bytes=64, rows=13):
    rng = np.random.default_rng(0)
    message = tensor_message(FORWARD, 3, 1, rng.standard_normal((rows, 16)).astype(np.float32), "fp32")
    message.forward = pb.ForwardHeader(record_ids=[7, 9], lengths=[4, 9], inlined=[True, True])
    message.last_micro_batch = True
    return message, list(FrameWriter(epoch=5, chunk_bytes=chunk_bytes).frames(message))


def read(frames, **changes):
    reader = FrameReader(**{"epoch": 5, "max_tensor_bytes": MAX} | changes)
    return [message for frame in frames if (message := reader.feed(frame)) is not None]


@pytest.mark.parametrize("chunk_bytes", [1, 64, 831, 832, 833, MAX])
def test_chunks_come_together_again(chunk_bytes):
    message, frames = make(chunk_bytes)
    assert len(frames) == max(1, -(-len(message.payload) // chunk_bytes))
    (back,) = read(frames)
    np.testing.assert_array_equal(back.tensor(), message.tensor())
    assert (back.kind, back.step, back.micro_batch, back.last_micro_batch) == (FORWARD, 3, 1, True)
    assert list(back.forward.record_ids) == [7, 9]


def test_a_message_without_payload():
    frames = list(FrameWriter(epoch=5).frames(Message(kind=STEP, step=2, control=pb.StepControl(pause=True))))
    (back,) = read(frames)
    assert back.control.pause
    assert not back.payload


def test_a_repeated_frame_counts_once():
    _, frames = make()
    assert len(read([f for frame in frames for f in (frame, frame)])) == 1


def test_a_gap_is_refused():
    _, frames = make()
    with pytest.raises(FrameCorrupt, match="frame 1 is missing"):
        read([frames[0], *frames[2:]])


def test_a_flipped_bit_is_refused():
    _, frames = make()
    frames[4].payload = bytes([frames[4].payload[0] ^ 1]) + frames[4].payload[1:]
    with pytest.raises(FrameCorrupt, match="checksum of frame 4"):
        read(frames)


def test_another_epoch_is_fenced_off():
    _, frames = make()
    with pytest.raises(SessionSuperseded):
        read(frames, epoch=6)


def test_too_large_is_refused_from_the_header_alone():
    _, frames = make()
    with pytest.raises(MessageTooLarge, match="832 bytes exceeds the agreed 831"):
        read(frames[:1], max_tensor_bytes=831)


def test_a_lying_header_can_not_grow_past_the_limit():
    _, frames = make()
    frames[0].tensor.rows = 1
    with pytest.raises(MessageTooLarge):
        read(frames, max_tensor_bytes=831)


def test_a_frame_without_kind_is_refused():
    _, frames = make()
    frames[0].kind = pb.FRAME_KIND_UNSPECIFIED
    with pytest.raises(FrameCorrupt, match="has no kind"):
        read(frames)


def test_chunks_out_of_place_are_refused():
    _, frames = make()
    frames[1].chunk_index = 2
    with pytest.raises(FrameCorrupt, match="chunk 1 is missing; chunk"):
        read(frames)


def test_chunks_of_nothing_do_not_go_on_for_ever():
    header = pb.ForwardHeader(readout=bytes(1 << 20))
    frames = (
        pb.Frame(session_epoch=5, seq=n, kind=FORWARD, chunk_index=n, chunk_count=1000, forward=header)
        for n in range(1000)
    )
    with pytest.raises(MessageTooLarge):
        read(frames)
