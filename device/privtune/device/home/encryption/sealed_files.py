"""One encrypted file: segments of chunks under ChaCha20-Poly1305, as in STREAM (Hoang et al. 2015) and age.

    segment   MAGIC, kind (1 byte), salt (32 bytes), then its chunks
    chunk     length of the text (4 bytes, big endian), the text encrypted, tag (16 bytes)

A segment has a key of its own: HKDF-SHA256 of the vault's key, with the salt, over kind, the file's name in its folder
and where the segment begins in the file. The nonce of a chunk is its number in the segment and whether it is the last.
So a chunk or a segment that was changed, moved, repeated, left out, or put into another file does not open. No nonce
comes twice under a key: whoever appends begins a segment with a new salt.

A file that was written whole (kind W) has a last chunk, and without it is damaged. A file that grows (kind L) has none;
what follows its last chunk that opens is what a killed process or a loss of power has torn, and is not part of it. Its
first bytes may be torn as well, missing or zero; then it is empty.

Not covered: an older version of the file in the place of the newer one; of a growing file, what is cut off at its end
(the chain of a transcript, whose end the ledger holds, shows that); length and time of a file.
"""

from __future__ import annotations

import errno
import io
import os
from bisect import bisect_right
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from privtune.shared.at_rest import Damaged, write_all

MAGIC = b"\x89PrivTune sealed 1\n"
CHUNK = 1 << 20
WHOLE, GROWING = b"W", b"L"
_SALT, _TAG, _LENGTH = 32, 16, 4
_HEADER = len(MAGIC) + 1 + _SALT
_MOST = 1 << 30  # of a chunk of a growing file: one write


@dataclass(frozen=True, kw_only=True)
class FileKey:
    """The vault's key for one file. key: 32 bytes. name: the file's, in its folder."""

    key: bytes
    name: str

    def segment(self, kind: bytes, salt: bytes, begin: int) -> ChaCha20Poly1305:
        """The cipher of a segment that begins at this byte of the file."""
        info = b"privtune file " + kind + begin.to_bytes(8, "big") + self.name.encode("utf-8", "surrogateescape")
        return ChaCha20Poly1305(HKDF(hashes.SHA256(), 32, salt, info).derive(self.key))


def is_sealed(file: BinaryIO) -> bool:
    """Whether an open file is an encrypted one; it is then at its beginning again."""
    found = file.read(len(MAGIC)) == MAGIC
    file.seek(0)
    return found


def begins_torn(file: BinaryIO) -> bool:
    """Whether nothing of an open file is whole: its first bytes did not reach the disk; then at its beginning again."""
    head = file.read(len(MAGIC))
    file.seek(0)
    return head.startswith(b"\0") or (len(head) < len(MAGIC) and MAGIC.startswith(head))


class SealingWriter(io.RawIOBase):
    """Encrypts what is written into a new file, whose last chunk `finish` writes. kind: whether it may grow later."""

    def __init__(self, target: BinaryIO, key: FileKey, kind: bytes = WHOLE) -> None:
        salt, self._target, self._number, self._kept = os.urandom(_SALT), target, 0, bytearray()
        self._cipher, self._kind = key.segment(kind, salt, target.tell()), kind
        target.write(MAGIC + kind + salt)

    def writable(self) -> bool:
        """As io asks."""
        return True

    def write(self, data: object) -> int:
        """Encrypt every whole chunk but the last, of which more may come."""
        given = memoryview(data).cast("B")  # type: ignore[arg-type]
        for at in range(0, len(given), CHUNK):
            self._kept += given[at : at + CHUNK]
            if len(self._kept) > CHUNK:
                self._chunk(bytes(self._kept[:CHUNK]), last=False)
                del self._kept[:CHUNK]
        return len(given)

    def finish(self) -> None:
        """Write the last chunk; nothing more may be written here."""
        self._chunk(bytes(self._kept), last=self._kind == WHOLE)

    def _chunk(self, data: bytes, *, last: bool) -> None:
        self._target.write(_sealed(self._cipher, self._number, data, last=last))
        self._number += 1


class SealingAppender:
    """Appends to a growing file: each write is a chunk, or several. An `at_rest.Appender`."""

    def __init__(self, path: Path, key: FileKey, *, new: bool) -> None:
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | (os.O_EXCL if new else 0) | getattr(os, "O_BINARY", 0)
        self._file = os.open(path, flags, 0o600)
        try:
            with open(path, "rb") as file:
                begin = SealedReader(file, key).whole()  # what follows would hide what is written now
            os.ftruncate(self._file, begin)
            salt, self._number = os.urandom(_SALT), 0
            self._cipher = key.segment(GROWING, salt, begin)
            write_all(self._file, MAGIC + GROWING + salt)
        except BaseException:
            os.close(self._file)
            raise

    def write(self, data: bytes) -> None:
        """See `at_rest.Appender`."""
        write_all(self._file, _sealed(self._cipher, self._number, data, last=False))
        self._number += 1

    def sync(self) -> None:
        """See `at_rest.Appender`."""
        os.fsync(self._file)

    def close(self) -> None:
        """See `at_rest.Appender`."""
        os.close(self._file)


def _sealed(cipher: ChaCha20Poly1305, number: int, data: bytes, *, last: bool) -> bytes:
    return len(data).to_bytes(_LENGTH, "big") + cipher.encrypt(_nonce(number, last), data, None)


def _nonce(number: int, last: bool) -> bytes:
    return number.to_bytes(11, "big") + bytes([last])


@dataclass(frozen=True, kw_only=True)
class _Chunk:
    """Where a chunk is. begin: of its text in the whole text. at: of its ciphertext in the file."""

    cipher: ChaCha20Poly1305
    kind: bytes
    number: int
    begin: int
    at: int
    length: int
    last: bool


class _Index:
    """The chunks of a file, found by their lengths. end: of the last whole chunk in the file; size: of the text."""

    def __init__(self) -> None:
        self.chunks: list[_Chunk] = []
        self.end = self.size = 0

    @classmethod
    def of(cls, file: BinaryIO, key: FileKey, begin: int = 0) -> _Index:
        """Read the lengths, not the chunks. Raises OSError for a file that is cut off or no sealed one."""
        found, length = cls(), file.seek(0, os.SEEK_END)
        found.end = begin
        cipher, kind, number = None, GROWING, 0
        while found.end < length:
            file.seek(found.end)
            head = file.read(_HEADER)
            if head.startswith(MAGIC):
                if kind == WHOLE or len(head) < _HEADER:
                    break
                kind, number = head[len(MAGIC) : len(MAGIC) + 1], 0
                cipher = key.segment(kind, head[-_SALT:], found.end)
                found.end += _HEADER
                continue
            size = int.from_bytes(head[:_LENGTH], "big")
            after = found.end + _LENGTH + size + _TAG
            if cipher is None or size > _MOST or after > length:
                break
            last = kind == WHOLE and after == length
            place = {"number": number, "begin": found.size, "at": found.end + _LENGTH, "length": size}
            found.chunks.append(_Chunk(cipher=cipher, kind=kind, last=last, **place))
            number, found.size, found.end = number + 1, found.size + size, after
        whole = kind == WHOLE and found.chunks and found.chunks[-1].last
        if not whole and (kind != GROWING or (found.end == begin and _is_another(file, begin, length))):
            raise damaged()
        return found

    def cut(self, number: int) -> None:
        """Let the text end before this chunk."""
        self.size, self.end = self.chunks[number].begin, self.chunks[number].at - _LENGTH
        del self.chunks[number:]


def _is_another(file: BinaryIO, begin: int, length: int) -> bool:
    """Whether a file without any header is no torn one."""
    file.seek(begin)
    return length >= begin + _HEADER and file.read(1) != b"\0"


def damaged() -> Damaged:
    """The error of a file that does not open."""
    return Damaged(errno.EIO, "it is damaged, or was moved here from another place")


class SealedReader(io.RawIOBase):
    """The text of an encrypted file that begins at byte `begin`; one chunk is in memory. Raises OSError.

    What follows a chunk of a growing file that does not open counts as torn off, and is not part of the text.
    """

    def __init__(self, file: BinaryIO, key: FileKey, begin: int = 0) -> None:
        self._file, self._at, self._open = file, 0, (-1, b"")
        self._index = _Index.of(file, key, begin)

    @property
    def size(self) -> int:
        """Bytes of the text."""
        return self._index.size

    def whole(self) -> int:
        """Up to which byte of the file every chunk opens; it is at least cut off there."""
        for number in range(len(self._index.chunks)):
            if number < len(self._index.chunks):
                self._text(number)
        return self._index.end

    def readable(self) -> bool:
        """As io asks."""
        return True

    def seekable(self) -> bool:
        """As io asks."""
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """As io asks."""
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self.size}[whence]
        self._at = max(0, base + offset)
        return self._at

    def readinto(self, buffer: object) -> int:
        """As io asks: at most the rest of one chunk."""
        target = memoryview(buffer).cast("B")  # type: ignore[arg-type]
        number = self._chunk_at(self._at)
        if number is None:
            return 0
        begin = self._at - self._index.chunks[number].begin
        part = self._text(number)[begin : begin + len(target)]
        target[: len(part)] = part
        self._at += len(part)
        return len(part)

    def close(self) -> None:
        """As io asks."""
        self._file.close()
        super().close()

    def _chunk_at(self, place: int) -> int | None:
        if place >= self.size:
            return None
        return bisect_right(self._index.chunks, place, key=lambda chunk: chunk.begin) - 1

    def _text(self, number: int) -> bytes:
        if self._open[0] != number:
            chunk = self._index.chunks[number]
            self._file.seek(chunk.at)
            sealed = self._file.read(chunk.length + _TAG)
            try:
                self._open = number, chunk.cipher.decrypt(_nonce(chunk.number, chunk.last), sealed, None)
            except InvalidTag:
                if chunk.kind == WHOLE:
                    raise damaged() from None
                self._index.cut(number)
                return b""
        return self._open[1]
