"""The coding of floats, levels and orders as bytes.

*Floats* are written in byte planes: the first bytes of all numbers, then the second bytes and so
on. The last plane holds signs and exponents and is repetitive, so zstandard compresses it well.

*Levels*, the integers of quantized kernels, are written by a range coder, which spends -log2(p)
bits on a symbol of probability p. The probabilities are adaptive: levels are coded in chunks, and
the levels of all earlier chunks of the layer are counted to predict the next one, so no table is
stored (Cleary and Witten, "Data Compression Using Adaptive Coding and Partial String Matching",
IEEE Transactions on Communications, 1984).

*Orders* of n blocks are written as the n - 1 swaps that turn the identity into the order. The i-th
swap has i + 1 possible values. Sequences of swaps and orders correspond one to one (Knuth, *The Art
of Computer Programming*, volume 2, section 3.4.2, algorithm P), so an order takes log2(n!) bits.

The range coder is constriction's (Bamler, "Understanding Entropy Coding With Asymmetric Numeral
Systems (ANS): a Statistician's Perspective", 2022, arXiv 2201.01741). docs/format.md specifies its
streams for readers without constriction.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import ml_dtypes  # adds bfloat16 to NumPy; Keras requires it
import numpy as np
from numpy.typing import ArrayLike

from keras_nern.permutations.orders import invert
from keras_nern.permutations.permutation import Permutation
from keras_nern.predictor.quantization import BITS, largest_level
from keras_nern.predictor.residual import LARGEST_LEVEL
from keras_nern.utils.optional import require

LEVEL = 19  # zstandard's compression level
FLOATS = ("float32", "float16")
KEPT_FLOATS = (*FLOATS, "bfloat16")
PRECISIONS = (*FLOATS, *(f"int{bits}" for bits in BITS))
WINDOW = 2**27  # largest window of a zstandard frame, in bytes
PRECISION = 24  # bits of a probability in the range coder
FIRST_CHUNK = 64  # levels in the first chunks; later ones have 1/8 of the number of levels before
LARGEST_DIGIT = 2**20  # larger digits are coded in two parts
LOW = 2**10  # number of values of the lower part

Shape = tuple[int, ...]


def pack_floats(values: ArrayLike, dtype: str) -> bytes:
    """Encodes numbers of one type.

    Args:
        values: array.
        dtype: NumPy's name of the type to write.

    Returns:
        A zstandard frame of the planes.

    Raises:
        ValueError: if a finite number is too large for the type.
        ImportError: if zstandard is not installed.
    """
    lost = count_too_large(values, dtype)
    if lost:
        raise ValueError(f"Expected numbers that {dtype} can hold. Received: {lost} larger ones")
    array = np.asarray(values).ravel().astype(np.dtype(dtype).newbyteorder("<"))
    planes = array.view("uint8").reshape(-1, array.itemsize).T
    return pack(planes.tobytes())


def count_too_large(values: ArrayLike, dtype: str) -> int:
    """Counts the finite numbers that are too large for the NumPy type `dtype`."""
    values = np.asarray(values)
    with np.errstate(over="ignore"):
        kept = np.isfinite(values.astype(dtype))
    return int(np.isfinite(values.astype("float64")).sum() - kept.sum())


def largest_number(dtype: str) -> float:
    """The largest number that a type of floats can hold."""
    return float(ml_dtypes.finfo(dtype).max)


def unpack_floats(data: bytes, count: int, dtype: str) -> np.ndarray:
    """Decodes what `pack_floats` wrote: an array `(count,)`, float32 if `dtype` is bfloat16.

    Raises:
        ValueError: if the data contains another number of values.
        ImportError: if zstandard is not installed.
    """
    kind = np.dtype(dtype).newbyteorder("<")
    planes = unpack(data, count * kind.itemsize, exactly=True)
    array = np.frombuffer(planes, "uint8").reshape(kind.itemsize, count).T
    values = np.ascontiguousarray(array).view(kind).ravel()
    return values.astype("float32") if dtype == "bfloat16" else values


def stored_type(dtype: str, precision: str) -> str:
    """The type in which weights are written.

    Args:
        dtype: Keras's name of the weights' type.
        precision: `"float32"`, which is exact, `"float16"` or `"bfloat16"`.

    Returns:
        NumPy's name of a type.
    """
    if dtype == "bool":
        return "uint8"
    if precision != "float32" and dtype in ("bfloat16", "float32", "float64"):
        return precision
    return "float32" if dtype == "bfloat16" else dtype


def bias_type(precision: str) -> str:
    """The type in which a predictor's biases are written."""
    return precision if precision in FLOATS else "float32"


def pack(data: bytes) -> bytes:
    """Compresses bytes into a zstandard frame that records their number."""
    return require("zstandard", "compact").ZstdCompressor(level=LEVEL).compress(data)


def unpack(data: bytes, max_bytes: int, exactly: bool = False) -> bytes:
    """Decompresses what `pack` returned.

    Args:
        data: a zstandard frame.
        max_bytes: largest size of the result, checked before memory is allocated.
        exactly: whether the result must have that size. Defaults to `False`.

    Raises:
        ValueError: if the data is damaged or has another size.
        ImportError: if zstandard is not installed.
    """
    zstandard = require("zstandard", "compact")
    try:
        size = zstandard.frame_content_size(data)
        if size < 0 or size > max_bytes or (exactly and size != max_bytes):
            bound = "" if exactly else "at most "
            raise ValueError(f"it unpacks to {size:,} bytes instead of {bound}{max_bytes:,}")
        decompressor = zstandard.ZstdDecompressor(max_window_size=WINDOW)
        return decompressor.decompress(data, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise ValueError(f"zstandard cannot read it: {error}") from error


def encode_levels(kernels: Sequence[np.ndarray], bits: int) -> bytes:
    """Encodes the levels of quantized kernels.

    Args:
        kernels: list of integer arrays, entries in [-Q, Q], Q = 2^(bits - 1) - 1.
        bits: 2 to 8.

    Returns:
        The bytes of the range coder.

    Raises:
        ValueError: if `bits` is out of range or a level is outside [-Q, Q].
        ImportError: if constriction is not installed.

    Example:

    >>> data = encode_levels([np.zeros((1000, 100), "int8")], bits=4)
    >>> len(data)  # of 100,000 levels
    44
    """
    stream = require("constriction", "compact").stream
    encoder = stream.queue.RangeEncoder()
    top = largest_level(bits)
    for levels in kernels:
        _encode_levels(encoder, stream, levels, top)
    return _bytes(encoder)


def _encode_levels(encoder: Any, stream: Any, levels: np.ndarray, top: int) -> None:
    symbols = np.asarray(levels, "int32").ravel() + top
    if symbols.size and not 0 <= symbols.min() <= symbols.max() <= 2 * top:
        raise ValueError(f"Levels must be in [{-top}, {top}]. Received: {levels!r}")
    counts = _Counts(2 * top + 1)
    for start, stop in _chunks(symbols.size):
        chunk = symbols[start:stop]
        encoder.encode(chunk, counts.model(stream))
        counts.add(chunk)


def decode_levels(data: bytes, shapes: Sequence[Shape], bits: int) -> list[np.ndarray]:
    """Decodes what `encode_levels` wrote.

    Args:
        data: the bytes.
        shapes: shapes of the kernels.
        bits: 2 to 8.

    Returns:
        A list of int8 arrays.

    Raises:
        ValueError: if `bits` is out of range or the data is damaged.
        ImportError: if constriction is not installed.
    """
    stream = require("constriction", "compact").stream
    decoder = stream.queue.RangeDecoder(_words(data))
    top = largest_level(bits)
    kernels = [_decode_levels(decoder, stream, shape, top) for shape in shapes]
    _check_end(decoder)
    return kernels


def _decode_levels(decoder: Any, stream: Any, shape: Shape, top: int) -> np.ndarray:
    symbols = np.empty(int(np.prod(shape)), "int32")
    counts = _Counts(2 * top + 1)
    for start, stop in _chunks(symbols.size):
        chunk = _decoded(decoder, counts.model(stream), stop - start)
        symbols[start:stop] = chunk
        counts.add(chunk)
    return (symbols - top).reshape(shape).astype("int8")


def encode_integers(arrays: Sequence[np.ndarray]) -> bytes:
    """Encodes arrays of integers from -127 to 127, each with a range of its own.

    Args:
        arrays: list of integer arrays. Each is preceded by its largest absolute value, and
            nothing follows a 0.

    Returns:
        The bytes of the range coder.

    Raises:
        ValueError: if an integer is outside [-127, 127].
        ImportError: if constriction is not installed.
    """
    stream = require("constriction", "compact").stream
    encoder = stream.queue.RangeEncoder()
    for array in arrays:
        top = int(np.abs(array.astype("int64")).max(initial=0))
        if top > LARGEST_LEVEL:
            raise ValueError(
                f"Integers must be in [{-LARGEST_LEVEL}, {LARGEST_LEVEL}]. Received: {top}"
            )
        encoder.encode(np.array([top], "int32"), stream.model.Uniform(LARGEST_LEVEL + 1))
        if top:
            _encode_levels(encoder, stream, array, top)
    return _bytes(encoder)


def decode_integers(data: bytes, shapes: Sequence[Shape]) -> list[np.ndarray]:
    """Decodes what `encode_integers` wrote: a list of int8 arrays of these shapes.

    Raises:
        ValueError: if the data is damaged.
        ImportError: if constriction is not installed.
    """
    stream = require("constriction", "compact").stream
    decoder = stream.queue.RangeDecoder(_words(data))
    arrays = []
    for shape in shapes:
        (top,) = _decoded(decoder, stream.model.Uniform(LARGEST_LEVEL + 1), 1)
        zeros = np.zeros(shape, "int8")
        arrays.append(_decode_levels(decoder, stream, shape, int(top)) if top else zeros)
    _check_end(decoder)
    return arrays


class _Counts:
    """Counts of symbols, which determine the probabilities of the next ones."""

    def __init__(self, size: int) -> None:
        self.counts = np.ones(size, "int64")

    def add(self, symbols: np.ndarray) -> None:
        self.counts += 2 * np.bincount(symbols, minlength=len(self.counts))

    def model(self, stream: Any) -> Any:
        """Frequencies of at least 1 in proportion to the counts, with the sum 2^24."""
        free = 2**PRECISION - len(self.counts)
        shares = self.counts * free // self.counts.sum()
        shares[np.argmax(self.counts)] += free - shares.sum()
        # Categorical gives each symbol a frequency of 1 and distributes the rest by these shares,
        # which are integers and are not rounded.
        return stream.model.Categorical(shares.astype("float64"), perfect=False)


def _chunks(size: int) -> Iterator[tuple[int, int]]:
    start = 0
    while start < size:
        stop = min(size, start + max(FIRST_CHUNK, start // 8))
        yield start, stop
        start = stop


def encode_orders(permutation: Permutation) -> bytes:
    """Encodes the orders of a permutation.

    Args:
        permutation: a `Permutation` whose kind is not `None`.

    Returns:
        The bytes of the range coder, close to `permutation.bits` bits.

    Raises:
        ImportError: if constriction is not installed.
    """
    stream = require("constriction", "compact").stream
    encoder = stream.queue.RangeEncoder()
    for order, (filters, columns) in zip(permutation.orders, permutation.grids, strict=True):
        if permutation.kind == "in_filter":
            rows = order.reshape(filters, columns)
            within, order = rows % columns, rows[:, 0] // columns
            for row in within:
                _encode_order(encoder, stream, row)
        _encode_order(encoder, stream, order)
    return _bytes(encoder)


def decode_orders(data: bytes, grids: Sequence[Shape], kind: str) -> Permutation:
    """Decodes what `encode_orders` wrote.

    Args:
        data: the bytes.
        grids: `(filters, columns)` of each layer.
        kind: `"in_filter"` or `"cross_filter"`.

    Returns:
        A `Permutation`.

    Raises:
        ValueError: if the data is damaged or does not contain orders of these grids.
        ImportError: if constriction is not installed.
    """
    stream = require("constriction", "compact").stream
    words = _words(data)
    blocks = sum(filters * columns for filters, columns in grids)
    if blocks - len(grids) > 32 * len(words):  # a swap takes at least a bit
        raise ValueError(f"{len(data):,} bytes are too few for the order of {blocks:,} blocks")
    decoder = stream.queue.RangeDecoder(words)
    orders = []
    for filters, columns in grids:
        if kind == "in_filter":
            within = [_decode_order(decoder, stream, columns) for _ in range(filters)]
            by_filter = _decode_order(decoder, stream, filters)
            orders.append((by_filter[:, None] * columns + np.stack(within)).ravel())
        else:
            orders.append(_decode_order(decoder, stream, filters * columns))
    _check_end(decoder)
    return Permutation(grids, orders, kind)


def _encode_order(encoder: Any, stream: Any, order: np.ndarray) -> None:
    if len(order) < 2:
        return
    current, place = order.tolist(), invert(order).tolist()
    swaps = [0] * len(current)
    for i in range(len(current) - 1, 0, -1):  # moves block i to place i
        swaps[i] = j = place[i]
        moved = current[i]
        current[j], place[moved] = moved, j
    digits = np.array(swaps[1:], "int32")
    highs, is_large = _ranges(len(order))
    high = np.where(is_large, digits // LOW, digits).astype("int32")
    encoder.encode(high, stream.model.Uniform(), highs)
    if is_large.any():
        low = (digits[is_large] % LOW).astype("int32")
        encoder.encode(low, stream.model.Uniform(LOW))


def _decode_order(decoder: Any, stream: Any, size: int) -> np.ndarray:
    if size < 2:
        return np.arange(size)
    highs, is_large = _ranges(size)
    digits = _decoded(decoder, stream.model.Uniform(), highs)
    if is_large.any():
        low = _decoded(decoder, stream.model.Uniform(LOW), int(is_large.sum()))
        digits[is_large] = digits[is_large] * LOW + low
        if (digits > np.arange(1, size)).any():
            raise ValueError("it swaps a block with one that does not exist")
    order = list(range(size))
    for i, j in enumerate(digits.tolist(), start=1):
        order[i], order[j] = order[j], order[i]
    return np.array(order)


def _ranges(size: int) -> tuple[np.ndarray, np.ndarray]:
    """The number of values of each swap's (first) digit, and which swaps have two digits."""
    if size > LOW * LARGEST_DIGIT:
        raise ValueError(f"Expected at most {LOW * LARGEST_DIGIT:,} blocks. Received: {size:,}")
    ranges = np.arange(2, size + 1, dtype="int32")
    is_large = ranges > LARGEST_DIGIT
    return np.where(is_large, -(-ranges // LOW), ranges).astype("int32"), is_large


def _bytes(encoder: Any) -> bytes:
    return encoder.get_compressed().astype("<u4").tobytes()


def _words(data: bytes) -> np.ndarray:
    if len(data) % 4:
        raise ValueError(f"{len(data):,} bytes are not a whole number of 4-byte words")
    return np.frombuffer(data, "<u4").astype("uint32")


def _decoded(decoder: Any, model: Any, amount: int | np.ndarray) -> np.ndarray:
    try:
        return decoder.decode(model, amount)
    except AssertionError as error:  # raised by constriction
        raise ValueError(f"the range coder cannot read it: {error}") from error


def _check_end(decoder: Any) -> None:
    if not decoder.maybe_exhausted():
        raise ValueError("the range coder has words left over")
