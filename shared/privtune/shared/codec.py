"""Encodes float32 matrices for the wire and decodes them, in numpy without per-element Python work.

Ids of a public table are matrices of width 1 with whole numbers, which float32 holds exactly.

Encoding comes after the noise, so it is post-processing and can only lose information.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from privtune.shared.errors import FrameCorrupt, NonFinite

FloatArray = npt.NDArray[np.float32]

_BYTES_PER_ELEMENT = {"fp32": 4, "bf16": 2, "ids8": 1, "ids16": 2, "int8": 1}
_SCALE_BYTES, _MOST = 4, np.float32(127)  # in int8: fp32 before a row's elements, and the largest of these
_IDS = {"ids8": "u1", "ids16": "<u2"}
_PROBE_ROWS, _PROBE_WIDTH = 4, 16


def row_bytes(width: int, codec: str) -> int:
    """Encoded size of a row of `width` elements."""
    return width * _BYTES_PER_ELEMENT[codec] + (_SCALE_BYTES if codec == "int8" else 0)


def encode(h_ND: FloatArray, codec: str) -> bytes:
    """Encode an (N, D) float32 matrix, row-major and little-endian.

    bf16 rounds to nearest, ties to even; int8 to 127ths of a row's largest; ids8 and ids16 take whole numbers up to 255
    and 65,535. Raises NonFinite for NaN or infinity, which would spoil the other side.
    """
    if not np.isfinite(h_ND).all():
        raise NonFinite("a tensor to be sent contains NaN or infinity; lower --learning-rate or use --precision fp32")
    if codec in _IDS:
        return h_ND.astype(_IDS[codec]).tobytes()
    if codec == "int8":
        scale_N1 = np.abs(h_ND).max(axis=1, keepdims=True, initial=0.0).astype("<f4") / _MOST
        # A row of zeros, or of numbers next to none, has no scale to divide by.
        steps_ND = np.rint(h_ND / np.maximum(scale_N1, np.finfo(np.float32).tiny)).clip(-_MOST, _MOST)
        return np.hstack([scale_N1.view("u1"), steps_ND.astype("i1").view("u1")]).tobytes()
    contiguous = np.ascontiguousarray(h_ND, dtype="<f4")
    if codec == "fp32":
        return contiguous.tobytes()
    bits = contiguous.view("<u4")
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    return rounded.astype("<u2").tobytes()


def decode(payload: bytes | bytearray | memoryview, rows: int, width: int, codec: str) -> FloatArray:
    """Decode bytes into a writable (rows, width) float32 matrix.

    Raises FrameCorrupt when the size is not rows x width, NonFinite for NaN or infinity.
    """
    expected = rows * row_bytes(width, codec)
    if len(payload) != expected:
        raise FrameCorrupt(f"a tensor of {rows} x {width} in {codec} needs {expected} bytes, not {len(payload)}")
    if codec in _IDS:
        return np.frombuffer(payload, dtype=_IDS[codec]).reshape(rows, width).astype(np.float32)
    if codec == "int8":
        h_ND: FloatArray
        raw_NB = np.frombuffer(payload, dtype="u1").reshape(rows, row_bytes(width, codec))
        h_ND = raw_NB[:, _SCALE_BYTES:].view("i1") * raw_NB[:, :_SCALE_BYTES].copy().view("<f4")
    elif codec == "fp32":
        h_ND = np.frombuffer(payload, dtype="<f4").reshape(rows, width).copy()
    else:
        h_ND = (np.frombuffer(payload, dtype="<u2").astype("<u4") << np.uint32(16)).view("<f4").reshape(rows, width)
    if not np.isfinite(h_ND).all():
        raise NonFinite("a received tensor contains NaN or infinity; lower --learning-rate or use --precision fp32")
    return h_ND


def probe() -> FloatArray:
    """The fixed test matrix of the handshake: both signs, nine orders of magnitude, and ties of bf16 rounding."""
    count = _PROBE_ROWS * _PROBE_WIDTH
    exponents = (np.arange(count) % 31 - 15).astype(np.float32)
    mantissas = 1.0 + (np.arange(count) * 97 % 1024).astype(np.float32) / 1024.0
    signs = np.where(np.arange(count) % 2 == 0, 1.0, -1.0).astype(np.float32)
    return (signs * mantissas * np.exp2(exponents)).reshape(_PROBE_ROWS, _PROBE_WIDTH).astype(np.float32)


def check_probe(payload: bytes, codec: str) -> bool:
    """Whether the other side encodes the test matrix to exactly our bytes."""
    return payload == encode(probe(), codec)
