"""The original network: read, run with other kernels, never changed.

Everything NeRN needs of the classifier goes through here: its kernels as the
regression's targets, its feature maps and logits as the teacher's, and the same
network run with predicted kernels as the student. The student is the original inside
a `keras.StatelessScope` that stands the predicted tensors in for the kernel
variables, so gradients reach the predictor and no variable is ever assigned.

Where its feature maps are found is told in `graph`.
"""

import hashlib

import keras
import numpy as np

from keras_nern.graph import find_feature_maps, output_activation
from keras_nern.kernels import (
    block_mask,
    block_size,
    blocks_to_kernel,
    find_convolutions,
    kernel_to_blocks,
    walk_layers,
)
from keras_nern.losses import logits_of


class Original:
    """A built classifier and its convolutions.

    Args:
        base: a built functional or Sequential `keras.Model` with one input, one
            output `(batch, classes)` and at least one `Conv2D`.
        feature_maps: which to observe, of `graph.FEATURE_MAPS`. Defaults to
            `"convolutions"`.

    Attributes:
        base: the same object.
        convolutions: list of `kernels.Convolution`.
        kernel_size: k, the side of the common block.
        masks: float32 `(layers, k * k)`, 1 where a layer's blocks carry weights.

    Raises:
        ValueError: where `base` is no such model, or its kernels hold NaN or infinity;
            for unknown feature maps, or where there are no additions to take them at.
    """

    def __init__(self, base, feature_maps="convolutions"):
        _check_classifier(base)
        self.base = base
        self.convolutions = find_convolutions(base)
        _check_kernels(base, self.convolutions)
        self.kernel_size = block_size(self.convolutions)
        self.masks = np.stack([block_mask(shape, self.kernel_size) for shape in self.shapes])
        maps = find_feature_maps(base, self.convolutions, feature_maps)
        self._observer = keras.Model(base.inputs[0], {"maps": maps, "outputs": base.outputs[0]})
        self._activation = output_activation(base)

    @property
    def shapes(self):
        """The kernel shapes, each `(kh, kw, cin, cout)`."""
        return [conv.shape for conv in self.convolutions]

    @property
    def image_shape(self):
        """`(height, width, channels)`, `None` where any size will do."""
        return tuple(self.base.inputs[0].shape[1:])

    @property
    def num_kernels(self):
        """Kernels in all layers together."""
        return sum(conv.num_kernels for conv in self.convolutions)

    @property
    def computes_in_float16(self):
        """Whether any layer does: its gradients may then be too small to be told from 0."""
        return any(layer.compute_dtype == "float16" for _, layer in walk_layers(self.base))

    def layer_scales(self):
        """The standard deviation of each layer's weights.

        Returns:
            float32 array `(layers,)`; 1 where all weights of a layer are equal.
        """
        deviations = np.array([np.std(conv.layer.kernel.numpy()) for conv in self.convolutions])
        return np.where(deviations > 0, deviations, 1.0).astype("float32")

    def blocks(self):
        """The current kernels of all layers as float32 rows `(kernels, k * k)`."""
        return np.concatenate(
            [
                kernel_to_blocks(conv.layer.kernel.numpy(), self.kernel_size)
                for conv in self.convolutions
            ]
        ).astype("float32")

    def kernels(self):
        """The kernel variables, each `(kh, kw, cin, cout)`."""
        return [conv.layer.kernel for conv in self.convolutions]

    def split(self, blocks):
        """Turns rows `(kernels, k * k)` into one kernel tensor per layer."""
        kernels, start = [], 0
        for conv in self.convolutions:
            stop = start + conv.num_kernels
            kernels.append(blocks_to_kernel(blocks[start:stop], conv.shape))
            start = stop
        return kernels

    def observe(self, images, kernels=None):
        """Runs the network in inference mode, with its own kernels or with others.

        Args:
            images: `(batch, height, width, channels)`.
            kernels: one tensor per layer, or `None` for its own. Defaults to `None`.

        Returns:
            `(feature maps, outputs)`: a list of tensors, and `(batch, classes)`.
        """
        if kernels is None:
            seen = self._observer(images, training=False)
        else:
            with keras.StatelessScope(state_mapping=self._stand_ins(kernels)):
                seen = self._observer(images, training=False)
        return seen["maps"], seen["outputs"]

    def classify(self, images, kernels):
        """As `observe`, the outputs alone: the network runs no further than these."""
        with keras.StatelessScope(state_mapping=self._stand_ins(kernels)):
            return self.base(images, training=False)

    def _stand_ins(self, kernels):
        return [
            (conv.layer.kernel, keras.ops.cast(kernel, conv.layer.kernel.dtype))
            for conv, kernel in zip(self.convolutions, kernels, strict=True)
        ]

    def logits(self, outputs):
        """The outputs as logits, see `losses.logits_of`."""
        return logits_of(outputs, self._activation)

    def predicted_class(self, outputs):
        """The class of each image `(batch,)`; of a single output, 1 for the positive."""
        return keras.ops.argmax(self.logits(outputs), axis=-1)

    def architecture(self):
        """The base's class and config, serialised, without how it was compiled."""
        config = keras.saving.serialize_keras_object(self.base)
        config.pop("compile_config", None)
        return config

    def copy(self):
        """A model of the base's class and config with variables and values of its own."""
        layers = [self.base, *(layer for _, layer in walk_layers(self.base))]
        copy = keras.saving.deserialize_keras_object(
            self.architecture(),
            custom_objects={type(layer).__name__: type(layer) for layer in layers},
            safe_mode=False,  # any Lambda in it is one that this process made or trusted
        )
        copy.set_weights(self.base.get_weights())
        return copy

    def digest(self):
        """SHA-256 of all weights, as 32 uint8."""
        sha = hashlib.sha256()
        for value in self.base.get_weights():
            sha.update(np.ascontiguousarray(value).tobytes())
        return np.frombuffer(sha.digest(), "uint8")


def _check_classifier(base):
    expected = "base must be a built functional or Sequential keras.Model"
    if not isinstance(base, keras.Model):
        raise ValueError(f"{expected}. Received: {base!r} of type {type(base).__name__}")
    if not base.built:
        raise ValueError(
            f"{expected}. Received: {base.name!r}, which is not built: give it a keras.Input, "
            "or call it on a batch of images first."
        )
    inputs, outputs = getattr(base, "inputs", None), getattr(base, "outputs", None)
    if not inputs or not outputs:
        raise ValueError(f"{expected}. Received: a subclassed {type(base).__name__}")
    if len(inputs) != 1 or len(outputs) != 1:
        raise ValueError(
            f"{expected} with one input and one output. Received: {len(inputs)} inputs and "
            f"{len(outputs)} outputs"
        )
    if len(outputs[0].shape) != 2:
        raise ValueError(
            f"{expected} that gives (batch, classes). Received: an output of shape "
            f"{outputs[0].shape}"
        )


def _check_kernels(base, convolutions):
    if not convolutions:
        raise ValueError(
            "base must have at least one Conv2D layer. Received: "
            f"{base.name!r} with layers {[type(layer).__name__ for layer in base.layers]}"
        )
    for weight in base.weights:
        bad = int(np.sum(~np.isfinite(np.asarray(weight.numpy(), "float64"))))
        if bad:
            raise ValueError(
                "base must have finite weights. Received: "
                f"{weight.path!r} with {bad} of {np.prod(weight.shape)} entries NaN or infinite"
            )
