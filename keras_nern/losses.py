"""Losses for training a representation.

Let W be the original weights and W^ the predicted ones, a_l and a^_l the feature maps of
convolution l in the original and the rebuilt network, and z and z^ their logits (Ashkenazi et al.,
ICLR 2023, section 3.1):

    reconstruction        sqrt( sum (W - W^)^2 / #W )                  over all layers
    logits distillation   KL( softmax(z / T) || softmax(z^ / T) ) T^2  mean over images
    feature maps          sum_l | a_l / |a_l| - a^_l / |a^_l| |^2      mean over images

A further loss, which is not in the paper, approximates the weighted sum of the two distillation
losses near the original without running the network, from the factors A_l and G_l of each layer
(see `network.curvature`):

    curvature             sum_l 1/2 tr(G_l D_l^T A_l D_l),  D = W - W^

All losses are computed in float32, independent of the dtype of the networks.
"""

from collections.abc import Sequence
from typing import Any

from keras import ops

from keras_nern.utils.types import Tensor

# Squared norms and mean squares are at least this, so that divisions and square roots are finite.
EPSILON = 1e-12


def reconstruction_loss(original: Tensor, predicted: Tensor, mask: Tensor) -> Tensor:
    """Root mean square error of the weights.

    Args:
        original: tensor `(blocks, B)`.
        predicted: tensor `(blocks, B)`.
        mask: tensor `(blocks, B)`, by which the squared errors are weighted: 0 for entries that
            carry no weight, and 1 or the weight of their layer for the others.

    Returns:
        A scalar in the units of the weights. Its gradient at a perfect fit is 0.

    Source: Ashkenazi et al., ICLR 2023, equation 1.
    """
    squares = ops.sum(mask * ops.square(original - predicted))
    # The gradient of a square root is infinite at 0.
    return ops.sqrt(ops.maximum(squares / ops.sum(mask), EPSILON))


def relative_error(original: Tensor, predicted: Tensor, mask: Tensor) -> Tensor:
    """Squared error of the weights, relative to the sum of their squares.

    Args:
        original: tensor `(blocks, B)`.
        predicted: tensor `(blocks, B)`.
        mask: tensor `(blocks, B)`, 1 for entries that carry a weight, else 0.

    Returns:
        The scalar sum (W - W^)^2 / sum W^2: 0 for a perfect fit, 1 for all zeros.
    """
    error = ops.sum(mask * ops.square(original - predicted))
    return error / ops.maximum(ops.sum(mask * ops.square(original)), EPSILON)


def logits_distillation_loss(
    teacher: Tensor,
    student: Tensor,
    temperature: float = 1.0,
    sample_weight: Tensor | None = None,
) -> Tensor:
    """Kullback-Leibler divergence of the rebuilt network from the original.

    Args:
        teacher: logits of the original `(batch, classes)`.
        student: logits of the rebuilt network `(batch, classes)`.
        temperature: T, by which both logits are divided. The loss is multiplied by T^2, which
            keeps the size of its gradients. Defaults to `1.0`.
        sample_weight: weights of the images `(batch,)`, by which their divergences are multiplied
            before the mean, as in the losses of Keras. Defaults to `None`, which stands for 1.

    Returns:
        A scalar in nats, the mean over the batch.

    Source: Hinton et al., "Distilling the Knowledge in a Neural Network", 2015,
    arXiv 1503.02531; Ashkenazi et al., ICLR 2023, equation 2.
    """
    teacher = ops.log_softmax(ops.cast(teacher, "float32") / temperature)
    student = ops.log_softmax(ops.cast(student, "float32") / temperature)
    divergence = ops.sum(ops.exp(teacher) * (teacher - student), axis=-1)
    return _weighted_mean(divergence, sample_weight) * temperature**2


def feature_map_distillation_loss(
    teacher: Sequence[Tensor], student: Sequence[Tensor], sample_weight: Tensor | None = None
) -> Tensor:
    """Squared distance of the normalized feature maps, summed over layers.

    Args:
        teacher: list of the original's feature maps, each `(batch, ...)`.
        student: list of the rebuilt network's feature maps, of the same shapes.
        sample_weight: weights of the images `(batch,)`, as for `logits_distillation_loss`.
            Defaults to `None`.

    Returns:
        A scalar, without weights between 0 and 4 times the number of layers, the mean over the
        batch; 0 for empty lists.

    Source: Ashkenazi et al., ICLR 2023, equation 3.
    """
    distances = feature_map_distances(teacher, student, sample_weight)
    return sum(distances, ops.zeros((), "float32"))


def feature_map_distances(
    teacher: Sequence[Tensor], student: Sequence[Tensor], sample_weight: Tensor | None = None
) -> list[Tensor]:
    """The terms of `feature_map_distillation_loss`, a scalar for each layer.

    Args:
        teacher, student, sample_weight: as for `feature_map_distillation_loss`.

    Returns:
        A list of scalars.
    """
    return [
        _weighted_mean(ops.sum(ops.square(_unit(original) - _unit(rebuilt)), -1), sample_weight)
        for original, rebuilt in zip(teacher, student, strict=True)
    ]


def curvature_loss(
    original: Sequence[Tensor], predicted: Sequence[Tensor], factors: Sequence[Any]
) -> Tensor:
    """Second-order approximation of the weighted distillation losses.

    Args:
        original: list of kernels.
        predicted: list of kernels of the same shapes.
        factors: list of `network.curvature.Factors`, with tensors or `None`.

    Returns:
        A scalar; 0 for a perfect fit.

    Source: Martens and Grosse, ICML 2015, arXiv 1503.05671.
    """
    return sum(curvature_costs(original, predicted, factors), ops.zeros((), "float32"))


def curvature_costs(
    original: Sequence[Tensor], predicted: Sequence[Tensor], factors: Sequence[Any]
) -> list[Tensor]:
    """The terms of `curvature_loss`, a scalar for each kernel.

    Args:
        original, predicted, factors: as for `curvature_loss`.

    Returns:
        A list of scalars.
    """
    return [
        curvature_cost(ops.cast(kernel, "float32") - guess, *factor)
        for kernel, guess, factor in zip(original, predicted, factors, strict=True)
    ]


def curvature_cost(
    error: Tensor,
    inputs: Any,
    outputs: Any,
    diagonal: Tensor | None = None,
    positions: Tensor | None = None,
) -> Tensor:
    """1/2 tr(G D^T A D): what an error of one kernel costs.

    Args:
        error: D, a tensor of the kernel's shape.
        inputs, outputs, diagonal, positions: the fields of `network.curvature.Factors`, tensors or
            `None`.

    Returns:
        A scalar tensor; 0 if all factors are `None`.
    """
    if inputs is None:
        return ops.zeros((), "float32") if diagonal is None else 0.5 * ops.sum(diagonal * error**2)
    groups, patch, _ = inputs.shape
    places = 1 if positions is None else positions.shape[-1]
    matrix = ops.reshape(error, (places, patch, groups, -1))
    matrix = ops.transpose(matrix, (2, 0, 1, 3))  # (groups, places, patch, filters of the group)
    product = ops.matmul(ops.matmul(inputs[:, None], matrix), outputs[:, None])
    if positions is not None:
        rows = ops.reshape(product, (groups, places, -1))
        product = ops.reshape(ops.matmul(positions, rows), matrix.shape)
    # The gradient of the quadratic form is A D G, which the value needs anyway.
    value = ops.sum(matrix * ops.stop_gradient(product))
    return value - 0.5 * ops.stop_gradient(value)


def _weighted_mean(values: Tensor, weights: Tensor | None) -> Tensor:
    """The mean of values `(batch, ...)`, each multiplied by the weight of its image."""
    if weights is None:
        return ops.mean(values)
    weights = ops.cast(ops.reshape(weights, (-1, *[1] * (len(values.shape) - 1))), "float32")
    return ops.mean(weights * values)


def _unit(feature_map: Tensor) -> Tensor:
    flat = ops.cast(feature_map, "float32")
    flat = ops.reshape(flat, (ops.shape(flat)[0], -1))
    squares = ops.sum(ops.square(flat), axis=-1, keepdims=True)
    return flat * ops.rsqrt(ops.maximum(squares, EPSILON))
