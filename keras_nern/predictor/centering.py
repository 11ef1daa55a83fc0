"""Steps that leave a layer's mean output where it is.

A Dense layer y = W^T x + b whose inputs x have a mean m far from 0, as ReLU's outputs and
the encoding's slow cosines have, answers to a change of W first of all by a shift that is
the same for every kernel. The loss is steep along it, so it bounds the learning rate of
everything else, the more so with Muon, whose steps are of one size in all directions. With

    y = W^T (x - m) + c,    c = b + W^T m,

the same function, W no longer shifts the mean. Its gradient in this form is G - m g^T, of
the gradients G of W and g of b in the first; and a step from W to W + D that leaves c to its
own gradient changes b by -D^T m besides. So nothing is added to the predictor: m is taken
anew from the coordinates of each step (Schraudolph, "Centering Neural Network Gradient
Factors", in "Neural Networks: Tricks of the Trade", 1998). A new predictor starts with
c = 0, so that each of its ReLUs bends where the kernels are.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import keras
import tensorflow as tf

from keras_nern.predictor.predictor import KernelPredictor, effective_kernel
from keras_nern.utils.types import Tensor

# Coordinates from which a new predictor's means are best taken.
SAMPLE = 65_536


def centre(predictor: KernelPredictor, coordinates: Tensor) -> None:
    """Sets the biases of the hidden layers so that their outputs have the mean 0.

    Args:
        predictor: a built `KernelPredictor`.
        coordinates: int tensor `(n, 3)`; of very many, `SAMPLE` or so are enough.
    """
    x = predictor.encoding(coordinates)
    for layer in predictor.hidden:
        layer.bias.assign(-keras.ops.matmul(keras.ops.mean(x, axis=0), effective_kernel(layer)))
        x = layer(x)


def apply_centered_gradients(
    optimizer: keras.optimizers.Optimizer,
    gradients: Iterable[Tensor],
    variables: Sequence[keras.Variable],
    predictor: KernelPredictor,
    means: Sequence[Tensor],
) -> None:
    """Takes an optimizer's step with the predictor's layers in their centred form.

    Args:
        optimizer: a Keras optimizer.
        gradients: of `variables`, in the same order.
        variables: those to be changed, the predictor's Dense layers' among them.
        predictor: a `KernelPredictor`.
        means: for each of its layers the mean of its inputs, `(width,)`.
    """
    place = {id(variable): i for i, variable in enumerate(variables)}
    gradients = list(gradients)
    learning = [  # layers that the user has not frozen
        (layer, mean)
        for layer, mean in zip(predictor.layers, means, strict=True)
        if id(layer.kernel) in place and id(layer.bias) in place
    ]
    before = []
    for layer, mean in learning:
        kernel, bias = place[id(layer.kernel)], place[id(layer.bias)]
        gradients[kernel] = gradients[kernel] - mean[:, None] * gradients[bias][None, :]
        before.append(tf.identity(effective_kernel(layer)))
    optimizer.apply_gradients(zip(gradients, variables, strict=True))
    for (layer, mean), kernel in zip(learning, before, strict=True):
        change = effective_kernel(layer) - kernel
        _subtract(layer.bias, keras.ops.matmul(mean, change))


def _subtract(variable: keras.Variable, value: Tensor) -> None:
    """Subtracts from a variable what is the same on all replicas."""

    def update(strategy: Any, value: Tensor) -> None:
        strategy.extended.update(variable.value, lambda v, x: v.assign_sub(x), args=(value,))

    if tf.distribute.has_strategy():
        tf.distribute.get_replica_context().merge_call(update, args=(value,))
    else:
        variable.assign(variable - value)
