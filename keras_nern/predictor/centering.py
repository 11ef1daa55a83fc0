"""Gradient centering: updates of a layer's kernel that leave its mean output unchanged.

Let m be the mean of the inputs x of a Dense layer y = W^T x + b. It is far from 0 if the inputs are
outputs of a ReLU or slow cosines of the encoding. A change of W then mostly shifts y by the same
vector for every kernel. The loss is steep in that direction, which limits the learning rate of all
other directions, especially with Muon, whose updates have the same size in every direction. In the
centered form of the same function,

    y = W^T (x - m) + c,    c = b + W^T m,

W does not affect the mean output. If G and g are the gradients of W and b in the original form, the
gradient of W in the centered form is G - m g^T. When W is updated to W + D, D^T m is subtracted
from b, so that c changes by its own gradient only. No extra weights are needed: m is computed from
the coordinates of each step (Schraudolph, "Centering Neural Network Gradient Factors", in "Neural
Networks: Tricks of the Trade", 1998).

A new predictor starts with c = 0 in its hidden layers, which centers the inputs of each ReLU.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import keras
import tensorflow as tf

from keras_nern.predictor.predictor import KernelPredictor
from keras_nern.utils.types import Tensor


def center_biases(predictor: KernelPredictor, coordinates: Tensor) -> None:
    """Sets the biases of the hidden layers so that the mean input of each ReLU is 0.

    Args:
        predictor: a built `KernelPredictor`.
        coordinates: int tensor `(n, 3)`; all coordinates or a large sample.
    """
    x = predictor.encoding(coordinates)
    for layer in predictor.hidden:
        layer.bias.assign(-keras.ops.matmul(keras.ops.mean(x, axis=0), layer.effective_kernel))
        x = layer(x)


def apply_centered_gradients(
    optimizer: keras.optimizers.Optimizer,
    gradients: Iterable[Tensor],
    variables: Sequence[keras.Variable],
    predictor: KernelPredictor,
    means: Sequence[Tensor],
) -> None:
    """Applies gradients with the predictor's Dense layers in their centered form.

    A layer whose kernel or bias is frozen is updated in its original form.

    Args:
        optimizer: a Keras optimizer.
        gradients: gradients of `variables`, in the same order.
        variables: the trainable variables, including those of the predictor.
        predictor: a `KernelPredictor`.
        means: the mean input of each Dense layer, tensors `(width,)`.
    """
    gradients = list(gradients)
    indices = {id(variable): i for i, variable in enumerate(variables)}
    centered = [
        (layer, mean)
        for layer, mean in zip(predictor.layers, means, strict=True)
        if id(layer.kernel) in indices and id(layer.bias) in indices
    ]
    before = []
    for layer, mean in centered:
        kernel, bias = indices[id(layer.kernel)], indices[id(layer.bias)]
        gradients[kernel] = gradients[kernel] - mean[:, None] * gradients[bias][None, :]
        before.append(tf.identity(layer.effective_kernel))
    optimizer.apply_gradients(zip(gradients, variables, strict=True))
    for (layer, mean), kernel in zip(centered, before, strict=True):
        _subtract(layer.bias, keras.ops.matmul(mean, layer.effective_kernel - kernel))


def _subtract(variable: keras.Variable, value: Tensor) -> None:
    """Subtracts from a variable a value that is equal on all replicas."""

    def update(strategy: Any, value: Tensor) -> None:
        strategy.extended.update(variable.value, lambda v, x: v.assign_sub(x), args=(value,))

    if tf.distribute.has_strategy():
        tf.distribute.get_replica_context().merge_call(update, args=(value,))
    else:
        variable.assign(variable - value)
