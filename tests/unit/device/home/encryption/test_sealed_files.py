"""An encrypted file gives back what was written, and nothing that was changed, moved or cut off."""

import io

import pytest

from privtune.device.home.encryption import sealed_files
from privtune.device.home.encryption.sealed_files import (
    FileKey,
    SealedReader,
    SealingAppender,
    SealingWriter,
    begins_torn,
    is_sealed,
)

KEY = FileKey(key=b"k" * 32, name="jobs/one/job.json")


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr(sealed_files, "CHUNK", 16)


def sealed(text, key=KEY):
    target = io.BytesIO()
    writer = SealingWriter(target, key)
    for at in range(0, len(text), 7):
        writer.write(text[at : at + 7])
    writer.finish()
    return target.getvalue()


def opened(data, key=KEY):
    return io.BufferedReader(SealedReader(io.BytesIO(data), key)).read()


@pytest.mark.parametrize("length", [0, 1, 15, 16, 17, 32, 100])
def test_a_file_comes_back_as_it_was(length):
    text = bytes(range(length))
    data = sealed(text)
    assert is_sealed(io.BytesIO(data))
    assert opened(data) == text
    assert length < 8 or text[:8] not in data
    reader = io.BufferedReader(SealedReader(io.BytesIO(data), KEY))
    reader.seek(length // 2)
    assert reader.read() == text[length // 2 :]


def test_equal_files_differ_on_the_disk():
    assert sealed(b"the same") != sealed(b"the same")


def test_no_byte_can_be_changed_and_no_part_left_out():
    data = sealed(bytes(40))
    for at in range(len(data)):
        changed = bytearray(data)
        changed[at] ^= 1
        with pytest.raises(OSError, match="damaged"):
            opened(bytes(changed))
    header, chunk = len(data) - 40 - 3 * 20, 16 + 20
    for cut in range(header, len(data)):
        with pytest.raises(OSError, match="damaged"):
            opened(data[:cut])
    first, second = data[header : header + chunk], data[header + chunk : header + 2 * chunk]
    for order in (second + first, first + first, second):
        with pytest.raises(OSError, match="damaged"):
            opened(data[:header] + order + data[header + 2 * chunk :])


def test_a_file_opens_only_under_its_own_name_and_key():
    for other in (FileKey(key=KEY.key, name="jobs/two/job.json"), FileKey(key=b"o" * 32, name=KEY.name)):
        with pytest.raises(OSError, match="damaged"):
            opened(sealed(b"text"), other)


def grow(path, *texts):
    appender = SealingAppender(path, KEY, new=False)
    for text in texts:
        appender.write(text)
    appender.close()


def test_a_file_grows_and_a_torn_end_is_cut_off(tmp_path):
    path = tmp_path / "log"
    grow(path, b"one\n", b"two\n")
    whole = path.read_bytes()
    grow(path, b"three\n")
    assert opened(path.read_bytes()) == b"one\ntwo\nthree\n"
    for cut in range(len(whole), path.stat().st_size):
        assert opened(path.read_bytes()[:cut]) == b"one\ntwo\n"
    path.write_bytes(path.read_bytes()[:-1])
    grow(path, b"four\n")
    assert opened(path.read_bytes()) == b"one\ntwo\nfour\n"
    assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("torn", [b"", b"\x89Pri", bytes(10), bytes(200), bytes(51) + b"chunk"])
def test_a_file_whose_beginning_is_torn_is_empty_and_grows_again(tmp_path, torn):
    path = tmp_path / "log"
    path.write_bytes(torn)
    assert begins_torn(io.BytesIO(torn))
    assert opened(torn) == b""
    grow(path, b"one\n")
    assert opened(path.read_bytes()) == b"one\n"


def test_what_is_written_after_a_torn_part_can_be_read(tmp_path):
    """A loss of power may leave a hole anywhere in what was not flushed, with lengths of zero in it."""
    path = tmp_path / "log"
    grow(path, b"one\n")
    whole = path.stat().st_size
    grow(path, b"two\n", b"three\n")
    for begin in (whole, whole + 51, whole + 60):
        path.write_bytes(path.read_bytes()[:begin] + bytes(90))
        grow(path, b"four\n")
        assert opened(path.read_bytes()) == b"one\nfour\n"


def test_of_a_file_that_grew_the_segments_cant_be_swapped_nor_their_chunks(tmp_path):
    path = tmp_path / "log"
    grow(path, b"one\n")
    length = path.stat().st_size
    grow(path, b"two\n")
    data = path.read_bytes()
    assert opened(data[length:] + data[:length]) == b""
    header = length - 4 - 20
    assert opened(data[:header] + data[length + header :]) == b""


def test_a_new_file_must_not_exist(tmp_path):
    (tmp_path / "log").touch()
    with pytest.raises(FileExistsError):
        SealingAppender(tmp_path / "log", KEY, new=True)
