"""The curvature of the distillation loss: what an error of the kernels costs, to second order.

Near the original weights, the distillation loss is a quadratic form of the error. Its matrix is the
Gauss-Newton matrix. For each layer it is approximated by a Kronecker product of two small matrices
(Martens and Grosse, "Optimizing Neural Networks with Kronecker-factored Approximate Curvature",
ICML 2015, arXiv 1503.05671; for convolutions Grosse and Martens, ICML 2016, arXiv 1602.01407).
Let D be the error of a kernel as a matrix (patch, filters), A = E x x^T the second moment of the
patches x of the layer's input, and G = sum over positions of E g g^T the second moment of the
gradients g at its output. Then

    loss  ~  Q = sum over layers of 1/2 tr(G D^T A D).

The gradients g are those of random probes whose second moment is the Gauss-Newton matrix:

* For the divergence of the logits z at temperature T, the probe is softmax(z / T) - e_c, for a
  class c drawn from softmax(z / T).
* For a feature map a, which distillation divides by its norm, the probe is
  sqrt(2) (v - u u^T v) / |a|, with u = a / |a| and a standard normal v.

Probes are multiplied by the square roots of the losses' weights and summed, so one backward pass
serves for all of them. They are independent and have mean 0, so that products of different probes
cancel on average.

If A would have more than `MAX_FACTOR` rows, it is approximated by a Kronecker product itself, of
the second moments A_c over the channels and A_s over the positions of a patch:
A ~ (A_s x A_c) / tr A.

Layers whose patches are not known (transposed and separable convolutions), and those with more than
`MAX_FACTOR` channels or filters, get the diagonal of the Gauss-Newton matrix: mean squares of the
probes' gradients with respect to the kernel.
"""

import math
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from keras_nern.network.kernels import Kernel, kernels_of, walk_layers
from keras_nern.network.original import ForwardOutputs, OriginalNetwork
from keras_nern.network.recording import Call
from keras_nern.utils.types import Tensor

PIXELS_AT_ONCE = 2**16  # 64 images of 32 x 32, one of 224 x 224
ROWS_PER_INPUT = 24  # patches per entry of a patch that A and G use, of all images together
MIN_ROWS = 8_192  # ... and at least
MIN_NORM = 1e-6  # of a feature map that is probed
ENTRIES_AT_ONCE = 2**26  # of patches, 256 MB
MAX_FACTOR = 6_144  # rows of A, G and the parts of A, 151 MB

_PLAIN = (keras.layers.Conv1D, keras.layers.Conv2D, keras.layers.Conv3D, keras.layers.Dense)
_DEPTHWISE = (keras.layers.DepthwiseConv1D, keras.layers.DepthwiseConv2D)


class Factors(NamedTuple):
    """The curvature of one kernel: A and G, or a diagonal.

    Attributes:
        inputs: A, float32 `(groups, patch, patch)`, or A_c, `(groups, channels, channels)`, with
            the channels of one group; or `None`.
        outputs: G, float32 `(groups, filters, filters)`, with the filters of one group; or `None`.
        diagonal: float32 array of the kernel's shape, or `None`.
        positions: A_s / tr A, float32 `(groups, S, S)` for the S positions of a patch, or `None`.
    """

    inputs: np.ndarray | None = None
    outputs: np.ndarray | None = None
    diagonal: np.ndarray | None = None
    positions: np.ndarray | None = None


def gather_factors(
    original: OriginalNetwork,
    batches: Iterable,
    images: int,
    logits_weight: float,
    feature_map_weight: float,
    temperature: float,
    seed: int = 0,
) -> list[Factors]:
    """Gathers the curvature of all kernels.

    Args:
        original: the network.
        batches: an iterable of inputs.
        images: number of images in all batches, to choose how many patches of each are used.
        logits_weight, feature_map_weight, temperature: of the distillation loss.
        seed: seed of the probes. Defaults to `0`.

    Returns:
        A list with one `Factors` per kernel.

    Raises:
        ValueError: if `batches` is empty.
    """
    kernels = original.blocks.kernels
    factored = _factored(original)
    sums = [_Sums(kernel) for kernel in kernels]
    random = np.random.default_rng(seed)
    generator = keras.random.SeedGenerator(seed)
    count = 0
    for inputs in _in_parts(batches):
        size = len(keras.tree.flatten(inputs)[0])
        values = [tf.identity(kernel.variable.value) for kernel in kernels]
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(values)
            outputs, calls = original.record(inputs, values)
            calls = [call for call in calls if id(call.operation) in factored and not call.in_loop]
            probed = sum(
                keras.ops.sum(keras.ops.cast(tensor, "float32") * probe)
                for tensor, probe in probes(
                    outputs, logits_weight, feature_map_weight, temperature, generator
                )
            )
        found = tape.gradient(probed, [values, [call.output for call in calls]])
        for call, gradient in zip(calls, found[1], strict=True):
            if gradient is not None:
                index, kernel = factored[id(call.operation)]
                share = size / max(size, images)
                for rows in _rows(call, gradient, kernel, share, random):
                    sums[index].add(*rows)
        for total, gradient in zip(sums, found[0], strict=True):
            if gradient is not None and not total.rows:
                total.add_square(keras.ops.convert_to_numpy(gradient).astype("float64") ** 2)
        count += size
    if not count:
        raise ValueError("Expected at least one batch of inputs. Received: none")
    return [total.factors(count) for total in sums]


def _factored(original: OriginalNetwork) -> dict[int, tuple[int, Kernel]]:
    """A dict from ids of layers to the number of their kernel, and the kernel with that layer.

    Several layers may share a kernel.
    """
    variables = [kernel.variable for kernel in original.blocks.kernels]
    indices = {id(variable): index for index, variable in enumerate(variables)}
    found = {id(one.layer): (i, one) for i, one in enumerate(original.blocks.kernels)}
    for path, layer in walk_layers(original.base):
        for kernel in kernels_of(path, layer) if layer.built else []:
            if id(kernel.variable) in indices:
                found[id(layer)] = indices[id(kernel.variable)], kernel
    return {
        key: (index, kernel)
        for key, (index, kernel) in found.items()
        if isinstance(kernel.layer, (*_PLAIN, *_DEPTHWISE))
        and max(_channels(kernel), _group_filters(kernel)) <= MAX_FACTOR
    }


def probes(
    outputs: ForwardOutputs,
    logits_weight: float,
    feature_map_weight: float,
    temperature: float,
    seed: keras.random.SeedGenerator,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yields pairs of a logits tensor or feature map and the probe at it, see the module."""
    if logits_weight:
        for logits in outputs.logits:
            logits = keras.ops.cast(logits, "float32")
            scaled = keras.ops.stop_gradient(logits) / temperature
            flat = keras.ops.reshape(scaled, (-1, scaled.shape[-1]))
            drawn = keras.random.categorical(flat, 1, seed=seed)[:, 0]
            labels = keras.ops.one_hot(drawn, flat.shape[-1], dtype="float32")
            probe = keras.ops.softmax(flat) - labels
            positions = math.prod(scaled.shape[1:-1])  # the loss is a mean over them
            weight = math.sqrt(logits_weight / positions)
            yield logits, weight * keras.ops.reshape(probe, scaled.shape)
    if feature_map_weight:
        for mapped in outputs.maps:
            fixed = keras.ops.cast(keras.ops.stop_gradient(mapped), "float32")
            flat = keras.ops.reshape(fixed, (fixed.shape[0], -1))
            norm = keras.ops.sqrt(keras.ops.sum(flat**2, axis=-1, keepdims=True))
            # A map of zeros, as of a black image, has no direction, and its curvature no bound.
            inverse = keras.ops.where(norm > MIN_NORM, 1 / keras.ops.maximum(norm, MIN_NORM), 0.0)
            unit = flat * inverse
            probe = keras.random.normal(flat.shape, dtype="float32", seed=seed)
            probe = probe - unit * keras.ops.sum(unit * probe, axis=-1, keepdims=True)
            probe = probe * (math.sqrt(2 * feature_map_weight) * inverse)
            yield mapped, keras.ops.reshape(probe, fixed.shape)


def removal_cost(
    kernel: Kernel,
    inputs: Any = None,
    outputs: Any = None,
    diagonal: Any = None,
    positions: Any = None,
) -> np.ndarray:
    """What the removal of each filter's channel costs: 1/2 w^T H w for its S weights w.

    Args:
        kernel: the kernel.
        inputs, outputs, diagonal, positions: its `Factors`.

    Returns:
        float64 array `(filters, channels)`; zeros if all factors are `None`.
    """
    w = kernel.by_channel(kernel.values()).astype("float64")  # (filters, channels, S)
    if inputs is None:
        if diagonal is None:
            return np.zeros(w.shape[:2])
        h = kernel.by_channel(keras.ops.convert_to_numpy(diagonal)).astype("float64")
        return 0.5 * (h * w**2).sum(axis=-1)
    a, g = (keras.ops.convert_to_numpy(one).astype("float64") for one in (inputs, outputs))
    groups, spatial = len(a), kernel.spatial_size
    own = np.einsum("gff->gf", g)  # (groups, filters of the group)
    if _is_depthwise(kernel):  # one group for each channel; w is (multiplier, channels, S)
        return 0.5 * own.T * np.einsum("mcs,cst,mct->mc", w, a, w)
    channels = kernel.channels
    if positions is None:
        a = a.reshape(groups, spatial, channels, spatial, channels)
        a = np.einsum("gsctc->gcst", a)  # (groups, channels, S, S)
    else:
        a = np.einsum("gcc,gst->gcst", a, keras.ops.convert_to_numpy(positions))
    w = w.reshape(groups, -1, channels, spatial)
    cost = 0.5 * own[:, :, None] * np.einsum("gfcs,gcst,gfct->gfc", w, a, w)
    return cost.reshape(kernel.filters, channels)


class _Sums:
    """Sums over the images of one kernel."""

    def __init__(self, kernel: Kernel) -> None:
        self.channels = _channels(kernel) if _patch_size(kernel) > MAX_FACTOR else None
        self.inputs: Any = 0.0
        self.outputs: Any = 0.0
        self.positions: Any = 0.0
        self.rows = 0
        self.squares: Any = None

    def add(self, patches: Tensor, gradients: Tensor, positions: int) -> None:
        """Adds rows `(groups, rows, ...)`, each of which stands for others of `positions` rows."""
        groups, rows, _ = patches.shape
        if self.channels is None:
            self.inputs += _product(patches)
        else:
            split = keras.ops.reshape(patches, (groups, rows, -1, self.channels))
            self.inputs += _product(keras.ops.reshape(split, (groups, -1, self.channels)))
            split = keras.ops.transpose(split, (0, 1, 3, 2))
            self.positions += _product(keras.ops.reshape(split, (groups, -1, split.shape[-1])))
        self.outputs += _product(gradients) * (positions / rows)
        self.rows += rows

    def add_square(self, square: np.ndarray) -> None:
        self.squares = square if self.squares is None else self.squares + square

    def factors(self, count: int) -> Factors:
        if self.rows:
            inputs, outputs = self.inputs / self.rows, self.outputs / count
            found = Factors(inputs.astype("float32"), outputs.astype("float32"))
            if self.channels is None:
                return found
            trace = np.einsum("gcc->g", self.inputs)[:, None, None]
            positions = self.positions / np.where(trace > 0, trace, 1.0)
            return found._replace(positions=positions.astype("float32"))
        if self.squares is not None:
            return Factors(diagonal=(self.squares / count).astype("float32"))
        return Factors()


def _product(rows: Tensor) -> np.ndarray:
    product = keras.ops.matmul(keras.ops.transpose(rows, (0, 2, 1)), rows)
    return keras.ops.convert_to_numpy(product).astype("float64")


def _in_parts(batches: Iterable) -> Iterator:
    """Splits batches into parts of about `PIXELS_AT_ONCE` pixels, and of at least one image.

    All activations of a part are in memory at once.
    """
    for batch in batches:
        arrays = keras.tree.flatten(batch)
        count = max(1, PIXELS_AT_ONCE // max(1, *(math.prod(one.shape[1:-1]) for one in arrays)))
        for start in range(0, len(arrays[0]), count):
            yield keras.tree.map_structure(lambda one, i=start, n=count: one[i : i + n], batch)


def _channels(kernel: Kernel) -> int:
    """Channels of a patch of one group."""
    return 1 if _is_depthwise(kernel) else kernel.channels


def _patch_size(kernel: Kernel) -> int:
    return kernel.spatial_size * _channels(kernel)


def _group_filters(kernel: Kernel) -> int:
    """Filters of one group."""
    if _is_depthwise(kernel):
        return kernel.layer.depth_multiplier
    return kernel.filters // getattr(kernel.layer, "groups", 1)


def _is_depthwise(kernel: Kernel) -> bool:
    return isinstance(kernel.layer, _DEPTHWISE)


def _rows(
    call: Call, gradient: Tensor, kernel: Kernel, share: float, random: np.random.Generator
) -> Iterator[tuple[Tensor, Tensor, int]]:
    """Patches `(groups, rows, patch)` and gradients `(groups, rows, filters)` at some positions.

    Images are taken a few at a time, so that their patches need bounded memory.

    Args:
        call: a call of the kernel's layer.
        gradient: gradient at its output.
        kernel: the kernel.
        share: share of all images in this call.
        random: draws the positions.

    Yields:
        `(patches, gradients, positions)`, with the number of positions that these images have.
    """
    layer = kernel.layer
    inputs = keras.ops.cast(call.inputs[0], "float32")
    gradient = keras.ops.cast(gradient, "float32")
    gradient = _before_activation(layer, call, gradient)
    if not isinstance(layer, keras.layers.Dense) and layer.data_format == "channels_first":
        inputs, gradient = (keras.ops.moveaxis(one, 1, -1) for one in (inputs, gradient))
    groups = inputs.shape[-1] if _is_depthwise(kernel) else getattr(layer, "groups", 1)
    count = inputs.shape[0]
    per_image = math.prod(gradient.shape[1:-1]) * kernel.spatial_size * inputs.shape[-1]
    at_once = max(1, ENTRIES_AT_ONCE // per_image)
    factor = min(_patch_size(kernel), MAX_FACTOR)
    rows_wanted = share * max(MIN_ROWS, ROWS_PER_INPUT * factor)
    for start in range(0, count, at_once):
        images, at_output = (one[start : start + at_once] for one in (inputs, gradient))
        at_output = keras.ops.reshape(at_output, (-1, groups, gradient.shape[-1] // groups))
        positions = at_output.shape[0]
        patches = _patches(images, kernel)  # (positions, spatial, channels of all groups)
        wanted = math.ceil(rows_wanted * images.shape[0] / count)
        if wanted < positions:
            chosen = random.choice(positions, wanted, replace=False)
            patches, at_output = (keras.ops.take(x, chosen, axis=0) for x in (patches, at_output))
        shape = (patches.shape[0], kernel.spatial_size, groups, -1)
        patches = keras.ops.transpose(keras.ops.reshape(patches, shape), (2, 0, 1, 3))
        patches = keras.ops.reshape(patches, (groups, patches.shape[1], -1))
        yield patches, keras.ops.transpose(at_output, (1, 0, 2)), positions


def _before_activation(layer: keras.layers.Layer, call: Call, gradient: Tensor) -> Tensor:
    """The gradient before a layer's own activation."""
    activation = layer.activation
    if activation is None or activation is keras.activations.linear:
        return gradient
    layer.activation = keras.activations.linear
    try:
        with keras.StatelessScope():
            before = layer(call.inputs[0])  # casts inputs and variables, unlike `layer.call`
    finally:
        layer.activation = activation
    with tf.GradientTape() as tape:
        tape.watch(before)
        after = activation(before)
    return tape.gradient(after, before, keras.ops.cast(gradient, after.dtype))


def _patches(inputs: Tensor, kernel: Kernel) -> Tensor:
    """The patches of channels-last inputs: `(positions, S, channels)`.

    `keras.ops.image.extract_patches` (Keras 3.15) is a convolution with an identity kernel, which
    has (S x channels) x S x channels entries.
    """
    layer = kernel.layer
    channels = inputs.shape[-1]
    if isinstance(layer, keras.layers.Dense):
        return keras.ops.reshape(inputs, (-1, 1, channels))
    rank = len(layer.kernel_size)
    strides = layer.strides if isinstance(layer.strides, tuple) else (layer.strides,) * rank
    padding, steps = [(0, 0)], []  # of each axis; stride, dilation and outputs
    for side, size, stride, dilation in zip(
        inputs.shape[1:-1], layer.kernel_size, strides, layer.dilation_rate, strict=True
    ):
        reach = dilation * (size - 1)
        before = after = 0
        if layer.padding == "causal":
            before = reach
        elif layer.padding == "same":
            total = max((math.ceil(side / stride) - 1) * stride + reach + 1 - side, 0)
            before, after = total // 2, total - total // 2
        padding.append((before, after))
        count = (side + before + after - reach - 1) // stride + 1
        steps.append((stride, dilation, count))
    inputs = keras.ops.pad(inputs, [*padding, (0, 0)])
    parts = []
    for offsets in np.ndindex(*layer.kernel_size):
        places = tuple(
            slice(offset * dilation, offset * dilation + (count - 1) * stride + 1, stride)
            for offset, (stride, dilation, count) in zip(offsets, steps, strict=True)
        )
        parts.append(keras.ops.reshape(inputs[(slice(None), *places)], (-1, channels)))
    return keras.ops.stack(parts, axis=1)
