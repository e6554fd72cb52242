import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from privtune.shared.codec import check_probe, decode, encode, probe, row_bytes
from privtune.shared.errors import FrameCorrupt, NonFinite

VECTORS = ["fp32", "bf16"]
finite = st.floats(-(2.0**99), 2.0**99, width=32)


@given(arrays(np.float32, array_shapes(min_dims=2, max_dims=2, max_side=17), elements=finite))
def test_fp32_is_exact(h_ND):
    np.testing.assert_array_equal(decode(encode(h_ND, "fp32"), *h_ND.shape, "fp32"), h_ND)


@given(arrays(np.float32, array_shapes(min_dims=2, max_dims=2, max_side=17), elements=finite))
def test_bf16_rounds_as_torch_does(h_ND):
    expected = torch.from_numpy(h_ND.copy()).bfloat16().float().numpy()
    np.testing.assert_array_equal(decode(encode(h_ND, "bf16"), *h_ND.shape, "bf16"), expected)


@pytest.mark.parametrize("codec", VECTORS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_non_finite_is_refused_on_both_sides(codec, bad):
    h_ND = np.zeros((2, 3), dtype=np.float32)
    h_ND[1, 2] = bad
    with pytest.raises(NonFinite):
        encode(h_ND, codec)
    raw = h_ND.tobytes() if codec == "fp32" else torch.from_numpy(h_ND).bfloat16().view(torch.int16).numpy().tobytes()
    with pytest.raises(NonFinite):
        decode(raw, 2, 3, codec)


@pytest.mark.parametrize(("codec", "most"), [("ids8", 255), ("ids16", 65535)])
def test_ids_are_exact(codec, most):
    ids_N1 = np.array([[0], [7], [most]], dtype=np.float32)
    raw = encode(ids_N1, codec)
    assert len(raw) == 3 * (1 if codec == "ids8" else 2)
    np.testing.assert_array_equal(decode(raw, 3, 1, codec), ids_N1)


@given(arrays(np.float32, array_shapes(min_dims=2, max_dims=2, max_side=17), elements=finite))
def test_int8_is_within_half_a_step_of_each_rows_largest(h_ND):
    raw = encode(h_ND, "int8")
    assert len(raw) == len(h_ND) * row_bytes(h_ND.shape[1], "int8") == h_ND.size + 4 * len(h_ND)
    step_N1 = np.abs(h_ND).max(axis=1, keepdims=True) / 127
    found_ND = decode(raw, *h_ND.shape, "int8")
    assert found_ND.dtype == np.float32
    assert (np.abs(found_ND - h_ND) <= 0.5001 * step_N1 + 1e-36).all()


def test_int8_scales_that_are_not_finite_are_refused():
    raw = np.array([np.inf], dtype="<f4").tobytes() + b"\1\1\1"
    with pytest.raises(NonFinite):
        decode(raw, 1, 3, "int8")


@pytest.mark.parametrize("codec", ["fp32", "bf16", "int8", "ids8"])
def test_no_rows_of_any_width_are_no_rows(codec):
    """What a hostile side may say costs nothing and raises nothing."""
    assert decode(b"", 0, 2**32 - 1, codec).shape == (0, 2**32 - 1)


def test_wrong_size_is_refused():
    with pytest.raises(FrameCorrupt, match="needs 24 bytes, not 23"):
        decode(b"x" * 23, 2, 3, "fp32")


@pytest.mark.parametrize("codec", VECTORS)
def test_probe_tells_encodings_apart(codec):
    other = "bf16" if codec == "fp32" else "fp32"
    assert check_probe(encode(probe(), codec), codec)
    assert not check_probe(encode(probe(), other), codec)
    # bf16 by truncation instead of rounding is a different encoding: the probe must notice.
    truncated = (probe().view("<u4") >> np.uint32(16)).astype("<u2").tobytes()
    assert codec == "fp32" or not check_probe(truncated, codec)
