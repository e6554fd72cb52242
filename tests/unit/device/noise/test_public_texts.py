"""Public texts are read as every other text of the owner's."""

import pytest

from privtune.device.noise.public_texts import read_labelled, read_texts
from privtune.shared.errors import DataInvalid


def test_texts_as_windows_and_the_web_write_them(tmp_path):
    texts, labelled = tmp_path / "t.txt", tmp_path / "l.tsv"
    texts.write_bytes("\ufeffone\u2028two\x85three\r\n\r\nfour\r\n".encode())
    assert read_texts(texts) == ("one\u2028two\x85three", "four")
    labelled.write_bytes("\ufeffgood\tone\u2028two\r\nbad\tthree\r\ngood\tfour\r\n".encode())
    assert read_labelled(labelled) == (("one\u2028two", 1), ("three", 0), ("four", 1))


@pytest.mark.parametrize(
    ("raw", "words"),
    [(b"good\tone\nbad\tcaf\xe9\n", r"line 2: not UTF-8 \(byte offset 16\)"), (b"a\tb\nc\td\x00\n", "line 2: a NUL")],
)
def test_what_is_no_text_is_refused_with_its_line(tmp_path, raw, words):
    file = tmp_path / "l.tsv"
    file.write_bytes(raw)
    for read in (read_texts, read_labelled):
        with pytest.raises(DataInvalid, match=words):
            read(file)
