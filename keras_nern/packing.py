"""How floats become bytes, and in which types.

Numbers are written in planes, the first bytes of all, then the second bytes and so on, and
packed by zstandard, which sees that the last plane, of signs and exponents, repeats itself.
"""

import numpy as np
from numpy.typing import ArrayLike

from keras_nern.container import needed
from keras_nern.quantization import BITS

LEVEL = 19  # of zstandard
FLOATS = ("float32", "float16")
PRECISIONS = (*FLOATS, *(f"int{bits}" for bits in BITS))
WINDOW = 2**27  # bytes that a zstandard frame may refer back over


def pack_floats(values: ArrayLike, dtype: str) -> bytes:
    """Writes numbers of one type.

    Args:
        values: array.
        dtype: NumPy's name of the type to write them in.

    Returns:
        bytes: a zstandard frame of the planes.

    Raises:
        ValueError: where a finite number is too large for the type.
        ImportError: where zstandard is not installed.
    """
    lost = too_large(values, dtype)
    if lost:
        raise ValueError(f"Expected numbers that {dtype} can hold. Received: {lost} larger ones")
    array = np.asarray(values).ravel().astype(np.dtype(dtype).newbyteorder("<"))
    planes = array.view("uint8").reshape(-1, array.itemsize).T
    return pack(planes.tobytes())


def too_large(values: ArrayLike, dtype: str) -> int:
    """How many finite numbers are too large for a type, of NumPy's name `dtype`."""
    values = np.asarray(values)
    with np.errstate(over="ignore"):
        kept = np.isfinite(values.astype(dtype))
    return int(np.isfinite(values.astype("float64")).sum() - kept.sum())


def unpack_floats(data: bytes, count: int, dtype: str) -> np.ndarray:
    """Reads what `pack_floats` wrote: an array `(count,)`.

    Raises:
        ValueError: where there are not as many.
        ImportError: where zstandard is not installed.
    """
    kind = np.dtype(dtype).newbyteorder("<")
    planes = unpack(data, count * kind.itemsize, exactly=True)
    array = np.frombuffer(planes, "uint8").reshape(kind.itemsize, count).T
    return np.ascontiguousarray(array).view(kind).ravel()


def stored_type(dtype: str, precision: str) -> str:
    """The type in which weights of a type are written.

    Args:
        dtype: Keras's name of the weights' type.
        precision: `"float32"`, which changes no number, or `"float16"`.

    Returns:
        NumPy's name of a type.
    """
    if dtype == "bool":
        return "uint8"
    if precision == "float16" and dtype in ("bfloat16", "float32", "float64"):
        return "float16"
    return "float32" if dtype == "bfloat16" else dtype


def bias_type(precision: str) -> str:
    """The type in which a predictor's biases are written."""
    return precision if precision in FLOATS else "float32"


def pack(data: bytes) -> bytes:
    """Packs bytes into a zstandard frame that says how many they are."""
    return needed("zstandard").ZstdCompressor(level=LEVEL).compress(data)


def unpack(data: bytes, most: int, exactly: bool = False) -> bytes:
    """Unpacks what `pack` packed, where it is at most, or exactly, so many bytes.

    Raises:
        ValueError: where it is not.
        ImportError: where zstandard is not installed.
    """
    zstandard = needed("zstandard")
    try:
        size = zstandard.frame_content_size(data)
        if size < 0 or size > most or (exactly and size != most):
            bound = "" if exactly else "at most "
            raise ValueError(f"{size:,} packed bytes where {bound}{most:,} are expected")
        decompressor = zstandard.ZstdDecompressor(max_window_size=WINDOW)
        return decompressor.decompress(data, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise ValueError(f"zstandard cannot read it: {error}") from error
