"""Ids of a public table: the vectors that they stand for, and tables that are none."""

import numpy as np
import pytest

from privtune.shared.errors import FrameCorrupt, NonFinite
from privtune.shared.public_table import MAX_ROWS, MAX_TABLE_BYTES, PublicTable
from privtune.shared.wire import FrameReader, FrameWriter
from privtune.split.v1 import split_pb2 as pb

RNG = np.random.default_rng(0)
ROWS, OFFSETS = (RNG.standard_normal((count, 4)).astype(np.float32) for count in (5, 3))


def table(**changes):
    return PublicTable(**{"rows_KD": ROWS, "offsets_PD": OFFSETS, "placed": 3} | changes)


def test_placed_rows_move_with_their_position_and_the_last_offset_holds_beyond():
    h_ND = table().vectors(np.array([2, 2, 4, 0]), np.array([1, 9, 1, 0]))
    np.testing.assert_array_equal(h_ND, [ROWS[2] + OFFSETS[1], ROWS[2] + OFFSETS[2], ROWS[4], ROWS[0] + OFFSETS[0]])
    alone = table(offsets_PD=OFFSETS[:0], placed=0)
    np.testing.assert_array_equal(alone.of_record(np.array([[1.0], [4.0]])), ROWS[[1, 4]])


@pytest.mark.parametrize("outside", [5, 255, -1])
def test_an_id_without_a_row_is_refused(outside):
    with pytest.raises(FrameCorrupt, match="not in the job's table of 5 rows"):
        table().vectors(np.array([0, outside]), np.array([0, 1]))


def test_it_travels_whole():
    writer, reader = FrameWriter(epoch=1, chunk_bytes=50), FrameReader(epoch=1, max_tensor_bytes=1 << 20)
    came = [message for frame in writer.frames(table().to_message()) if (message := reader.feed(frame)) is not None]
    found = PublicTable.from_message(came[0])
    assert found.sha256 == table().sha256
    np.testing.assert_array_equal(found.offsets_PD, OFFSETS)


def test_the_hash_covers_rows_offsets_and_what_they_are():
    others = [
        table(placed=2),
        table(rows_KD=np.concatenate([ROWS, OFFSETS[:1]]), offsets_PD=OFFSETS[1:]),
        table(rows_KD=ROWS + 1e-6),
        table(rows_KD=ROWS.reshape(10, 2), offsets_PD=OFFSETS.reshape(6, 2)),
    ]
    assert len({one.sha256 for one in (table(), *others)}) == 5


@pytest.mark.parametrize(
    ("header", "complaint"),
    [
        ({"offsets": 8}, "no table"),
        ({"offsets": 9}, "no table"),
        ({"placed": 6}, "no table"),
        ({"placed": 2}, "another hash"),
        ({"sha256": "0" * 64}, "another hash"),
        (None, "without its header"),
    ],
)
def test_what_is_no_table_is_refused(header, complaint):
    message = table().to_message()
    if header is None:
        message.table = None
    else:
        message.table.MergeFrom(pb.TableHeader(**header))
    with pytest.raises(FrameCorrupt, match=complaint):
        PublicTable.from_message(message)


def test_a_table_with_nan_is_refused():
    message = table().to_message()
    message.payload = b"\0\0\xc0\x7f" + message.payload[4:]
    with pytest.raises(NonFinite):
        PublicTable.from_message(message)


def test_ids_are_as_short_as_the_table_and_a_large_one_does_not_fit():
    sizes = (256, 257, MAX_ROWS, MAX_ROWS + 1)
    narrow = [table(rows_KD=np.zeros((size, 1), np.float32), offsets_PD=OFFSETS[:0, :1], placed=0) for size in sizes]
    assert [one.codec for one in narrow] == ["ids8", "ids16", "ids16", "ids16"]
    assert [one.fits for one in narrow] == [True, True, True, False]
    twice = np.concatenate([ROWS[:1], ROWS])
    assert not table(rows_KD=twice).fits, "two ids of one vector say more than the vector"
    assert table(rows_KD=twice, placed=1).fits, "special ids are public in any case"
    near = np.concatenate([ROWS[:1] / 1000, ROWS[:1] / 1100, ROWS])
    assert table(rows_KD=near, offsets_PD=OFFSETS / 1000).fits
    far = np.concatenate([OFFSETS / 1000, OFFSETS[:1] * 1000])
    assert not table(rows_KD=near, offsets_PD=far).fits, "at the last position the first two rows round to one vector"
    wide = np.zeros((2, MAX_TABLE_BYTES // 8 + 1), np.float32)
    assert not table(rows_KD=wide, offsets_PD=wide[:0]).fits
    with pytest.raises(FrameCorrupt, match="no table"):
        PublicTable.from_message(table(rows_KD=wide, offsets_PD=wide[:0]).to_message())
