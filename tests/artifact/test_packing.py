import numpy as np
import pytest
import zstandard

from keras_nern.artifact import codec


@pytest.fixture(autouse=True)
def _seeded():
    """In place of that of conftest.py: nothing here draws from Keras."""


@pytest.mark.parametrize(
    ("dtype", "planes"),
    [
        ("float32", "0000 0000 8000 3fc0"),  # 1 is 3f800000, -2 is c0000000
        ("float16", "0000 3cc0"),  # 3c00 and c000
        ("int16", "01fe 00ff"),  # 0001 and fffe
    ],
)
def test_floats_in_planes(dtype, planes):
    data = codec.pack_floats(np.array([1.0, -2.0]), dtype)
    assert zstandard.decompress(data) == bytes.fromhex(planes)
    np.testing.assert_array_equal(codec.unpack_floats(data, 2, dtype), [1, -2])


def test_no_floats_at_all():
    assert codec.unpack_floats(codec.pack_floats([], "float32"), 0, "float32").shape == (0,)


def test_planes_take_fewer_bytes_than_floats():
    values = np.random.default_rng(0).normal(size=5000).astype("float32")
    assert len(codec.pack_floats(values, "float32")) < 0.9 * values.nbytes


def test_refuses_floats_too_large_for_their_type():
    with pytest.raises(ValueError, match=r"numbers that float16 can hold\. Received: 1 larger"):
        codec.pack_floats(np.array([1.0, 70_000.0, np.inf]), "float16")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (zstandard.compress(bytes(9)), "9 packed bytes where 8 are expected"),
        (zstandard.compress(bytes(10**9)), "1,000,000,000 packed bytes where 8 are expected"),
        (zstandard.compress(bytes(8))[:-1], "zstandard cannot read it"),
        (zstandard.compress(bytes(8)) + b"x", "zstandard cannot read it"),
        (b"no frame", "zstandard cannot read it"),
        (b"", "zstandard cannot read it"),
        (
            zstandard.ZstdCompressor(write_content_size=False).compress(bytes(8)),
            "-1 packed bytes where 8 are expected",
        ),
    ],
)
def test_refuses_other_frames(data, message):
    with pytest.raises(ValueError, match=message):
        codec.unpack_floats(data, 2, "float32")


@pytest.mark.parametrize(
    ("dtype", "precision", "stored"),
    [
        ("float32", "float32", "float32"),
        ("float64", "float32", "float64"),
        ("bfloat16", "float32", "float32"),
        ("float16", "float32", "float16"),
        ("float64", "float16", "float16"),
        ("bfloat16", "float16", "float16"),
        ("int64", "float16", "int64"),
        ("bool", "float32", "uint8"),
    ],
)
def test_types_that_weights_are_written_in(dtype, precision, stored):
    assert codec.stored_type(dtype, precision) == stored
