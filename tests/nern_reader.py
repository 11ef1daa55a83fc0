"""A reader of the compact file written from docs/format.md in NumPy, without the package."""

import hashlib
import json
import math

import numpy as np
import zstandard
from range_reader import RangeReader


class NernReader:
    """Reads the kernels of a compact file, except those of transposed convolutions.

    Args:
        data: the bytes of the file.
    """

    def __init__(self, data):
        assert hashlib.sha256(data[:-32]).digest() == data[-32:]
        start = 8 + int.from_bytes(data[:8], "little")
        header = json.loads(data[8:start])
        assert header.pop("__metadata__") == {"keras_nern": "1"}
        if "prefix" in header:
            first, end = (start + place for place in header["prefix"]["data_offsets"])
            assert hashlib.sha256(data[:first]).digest() == data[first:end]
        self.parts = {}
        for name, entry in header.items():
            first, end = entry["data_offsets"]
            self.parts[name] = data[start + first : start + end]
        self.config = json.loads(zstandard.decompress(self.parts["config"]))
        self.predictor = self.config["predictor"]
        self.grids = [kernel["grid"] for kernel in self.config["kernels"]]

    def numbers(self, name, dtype):
        """The numbers of a part: an array `(n,)`."""
        planes = np.frombuffer(zstandard.decompress(self.parts[name]), "u1")
        size = np.dtype(dtype).itemsize
        return planes.reshape(size, -1).T.copy().view(f"<{dtype}").ravel().astype("float64")

    def kernels(self):
        """The kernels by the path of their layer."""
        lengths = self.predictor.get("run_lengths")
        if "hidden_size" not in self.predictor:
            count = sum(filters * columns for filters, columns in self.grids)
            blocks = np.zeros((count, self.predictor["block_length"]))
        else:
            blocks = self.single() if lengths is None else self.local(lengths)
        scales = np.ones(len(self.grids))
        if self.config["normalize"]:
            scales = self.numbers("predictor.scales", "f4")
        kernels, first = {}, 0
        for kernel, order, scale in zip(self.config["kernels"], self.orders(), scales, strict=True):
            at_positions = blocks[first : first + len(order)]
            in_order = np.empty_like(at_positions)
            in_order[order] = at_positions
            kernels[kernel["name"]] = scale * self.assembled(kernel, in_order)
            first += len(order)
        if self.config["residual"]:
            self.add_residual(kernels)
        return kernels

    def add_residual(self, kernels):
        """Adds the residual of convolutions of one group."""
        shapes = [kernel["shape"] for kernel in self.config["kernels"]]
        filters = [shape[-1] for shape in shapes]
        exponents = RangeReader(self.parts["residual.exponents"]).integers(sum(filters))
        reader = RangeReader(self.parts["residual.levels"])
        for kernel, shape, count in zip(kernels.values(), shapes, filters, strict=True):
            steps = np.float16([2.0 ** (j / 4) for j in exponents[:count]]).astype("float64")
            exponents = exponents[count:]
            kernel += steps * np.reshape(reader.integers(math.prod(shape)), shape)

    def orders(self):
        """The block at every position of each layer."""
        kind = self.config["permutation"]
        if kind is None:
            return [np.arange(filters * columns) for filters, columns in self.grids]
        reader = RangeReader(self.parts["permutation"])
        orders = []
        for filters, columns in self.grids:
            if kind == "cross_filter":
                orders.append(np.array(reader.order(filters * columns)))
                continue
            within = [reader.order(columns) for _ in range(filters)]
            by_filter = reader.order(filters)
            orders.append(
                np.concatenate(
                    [by_filter[f] * columns + np.array(within[f]) for f in range(filters)]
                )
            )
        return orders

    def dense(self, features, experts):
        """The kernels `(experts, inputs, units)` of each layer."""
        width = self.predictor["hidden_size"]
        widths = [features, *[width] * (self.predictor["num_layers"] - 1)]
        units = [*widths[1:], self.predictor["block_length"]]
        shapes = [(experts, *shape) for shape in zip(widths, units, strict=True)]
        sizes = [math.prod(shape) for shape in shapes]
        precision = self.predictor["precision"]
        if precision.startswith("float"):
            values = self.numbers("predictor.kernels", "f4" if precision == "float32" else "f2")
            parts = np.split(values, np.cumsum(sizes)[:-1])
            return [part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)]
        reader = RangeReader(self.parts["predictor.levels"])
        levels = [reader.levels(size, int(precision[3:])) for size in sizes]
        steps = [(1, 1, shape[2]) if experts == 1 else (experts, 1, 1) for shape in shapes]
        values = self.numbers("predictor.step_sizes", "f2")
        values = np.split(values, np.cumsum([math.prod(step) for step in steps])[:-1])
        return [
            np.reshape(level, shape) * value.reshape(step)
            for level, shape, value, step in zip(levels, shapes, values, steps, strict=True)
        ]

    def single(self):
        """The blocks of a single predictor by layer and position: `(blocks, B)`."""
        encoding = self.predictor["encoding"]["config"]
        frequencies = np.pi * encoding["base"] ** np.arange(encoding["num_frequencies"])
        coordinates = np.array(
            [
                (layer, p // columns, p % columns)
                for layer, (filters, columns) in enumerate(self.grids)
                for p in range(filters * columns)
            ]
        )
        angles = coordinates[:, :, None] * frequencies
        x = np.concatenate([np.sin(angles), np.cos(angles)], axis=2).reshape(len(angles), -1)
        kernels = self.dense(x.shape[1], experts=1)
        is_half = self.predictor["precision"] == "float16"
        biases = self.numbers("predictor.biases", "f2" if is_half else "f4")
        biases = np.split(biases, np.cumsum([kernel.shape[2] for kernel in kernels])[:-1])
        for kernel, bias in zip(kernels, biases, strict=True):
            x = x @ kernel[0] + bias
            if kernel is not kernels[-1]:
                x = np.maximum(x, 0)
        return x

    def local(self, lengths):
        """The blocks of local predictors by rank: `(blocks, B)`."""
        frequencies = [max(lengths) ** (-(i + 1) / 8) / 2 for i in range(8)]
        kernels = self.dense(2 * len(frequencies), len(lengths))
        starts = [sum(lengths[:expert]) for expert in range(len(lengths))]
        blocks = []
        for rank in range(sum(lengths)):
            expert = max(e for e, start in enumerate(starts) if start <= rank)
            place = rank - starts[expert]
            angles = [2 * math.pi * place * frequency for frequency in frequencies]
            x = np.array([*map(math.sin, angles), *map(math.cos, angles)])
            for kernel in kernels:
                x = x @ kernel[expert]
                if kernel is not kernels[-1]:
                    x = np.sin(x)
            blocks.append(x)
        return np.array(blocks)

    def assembled(self, kernel, blocks):
        """A kernel from its blocks `(filters * columns, B)`."""
        (filters, columns), (*spatial, channels, _) = kernel["grid"], kernel["shape"]
        rows = blocks.reshape(filters, columns, -1)
        if self.config["blocks"]["view"] == "crop":
            every = [other["shape"][:-2] for other in self.config["kernels"]]
            rank = max(1, *map(len, every))
            side = max(1, *(length for one in every for length in one))
            rows = rows.reshape(filters, columns, *[side] * rank)
            for axis, length in enumerate([1] * (rank - len(spatial)) + spatial, start=2):
                first = (side - length) // 2
                rows = rows.take(range(first, first + length), axis=axis)
        rows = rows.reshape(filters, -1)[:, : channels * math.prod(spatial)]
        by_channel = rows.reshape(filters, channels, *spatial)
        return np.moveaxis(by_channel, (1, 0), (-2, -1))
