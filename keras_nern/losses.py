"""Losses for training a representation.

Let W be the original weights and W^ the predicted ones, a_l and a^_l the feature maps of
convolution l in the original and the rebuilt network, and z and z^ their logits (Ashkenazi et al.,
ICLR 2023, section 3.1):

    reconstruction        sqrt( sum (W - W^)^2 / #W )                  over all layers
    logits distillation   KL( softmax(z / T) || softmax(z^ / T) ) T^2  mean over images
    feature maps          sum_l | a_l / |a_l| - a^_l / |a^_l| |^2      mean over images

A further loss, which is not in the paper, computes the error of each layer's outputs without
running the network, from the second moments C_l of the layer's inputs (see `network.moments`):

    layer outputs         sum_l tr(D_l^T C_l D_l) / tr(W_l^T C_l W_l),  D = W - W^

All losses are computed in float32, independent of the dtype of the networks.
"""

from collections.abc import Sequence

from keras import ops

from keras_nern.utils.types import Tensor

# Squared norms and mean squares are at least this, so that divisions and square roots are finite.
EPSILON = 1e-12


def reconstruction_loss(original: Tensor, predicted: Tensor, mask: Tensor) -> Tensor:
    """Root mean square error of the weights.

    Args:
        original: tensor `(blocks, B)`.
        predicted: tensor `(blocks, B)`.
        mask: tensor `(blocks, B)`, 1 for entries that carry a weight, else 0.

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


def logits_distillation_loss(teacher: Tensor, student: Tensor, temperature: float = 1.0) -> Tensor:
    """Kullback-Leibler divergence of the rebuilt network from the original.

    Args:
        teacher: logits of the original `(batch, classes)`.
        student: logits of the rebuilt network `(batch, classes)`.
        temperature: T, by which both logits are divided. The loss is multiplied by T^2, which
            keeps the size of its gradients. Defaults to `1.0`.

    Returns:
        A scalar in nats, the mean over the batch.

    Source: Hinton et al., "Distilling the Knowledge in a Neural Network", 2015,
    arXiv 1503.02531; Ashkenazi et al., ICLR 2023, equation 2.
    """
    teacher = ops.log_softmax(ops.cast(teacher, "float32") / temperature)
    student = ops.log_softmax(ops.cast(student, "float32") / temperature)
    divergence = ops.sum(ops.exp(teacher) * (teacher - student), axis=-1)
    return ops.mean(divergence) * temperature**2


def feature_map_distillation_loss(teacher: Sequence[Tensor], student: Sequence[Tensor]) -> Tensor:
    """Squared distance of the normalized feature maps, summed over layers.

    Args:
        teacher: list of the original's feature maps, each `(batch, ...)`.
        student: list of the rebuilt network's feature maps, of the same shapes.

    Returns:
        A scalar between 0 and 4 times the number of layers, the mean over the batch; 0 for empty
        lists.

    Source: Ashkenazi et al., ICLR 2023, equation 3.
    """
    return sum(feature_map_distances(teacher, student), ops.zeros((), "float32"))


def feature_map_distances(teacher: Sequence[Tensor], student: Sequence[Tensor]) -> list[Tensor]:
    """The terms of `feature_map_distillation_loss`, a scalar for each layer.

    Args:
        teacher, student: as for `feature_map_distillation_loss`.

    Returns:
        A list of scalars.
    """
    return [
        ops.mean(ops.sum(ops.square(_unit(original) - _unit(rebuilt)), axis=-1))
        for original, rebuilt in zip(teacher, student, strict=True)
    ]


def layer_output_loss(
    original: Sequence[Tensor],
    predicted: Sequence[Tensor],
    moments: Sequence[Tensor | None],
    scales: Sequence[Tensor],
) -> Tensor:
    """Relative squared error of each layer's outputs for the original inputs, summed over layers.

    Args:
        original: list of kernels, each `(kh, kw, cin, cout)`.
        predicted: list of kernels of the same shapes.
        moments: second moments of each kernel's inputs, see `network.moments`; `None` to skip a
            layer.
        scales: scale of each kernel's outputs, `(cout,)`.

    Returns:
        A scalar: 0 for a perfect fit, the number of layers with moments for all zeros.
    """
    total = ops.zeros((), "float32")
    for kernel, guess, moment, scale in zip(original, predicted, moments, scales, strict=True):
        if moment is not None:
            whole = output_error(kernel, moment, scale)
            total += output_error(kernel - guess, moment, scale) / ops.maximum(whole, EPSILON)
    return total


def output_error(error: Tensor, moments: Tensor, scale: Tensor) -> Tensor:
    """tr(S D^T C D S): mean squared change of a layer's scaled outputs, summed over filters.

    Args:
        error: D, `(kh, kw, cin, cout)`.
        moments: C, `(groups, kh kw cin, kh kw cin)`.
        scale: the diagonal of S, `(cout,)`.

    Returns:
        A scalar tensor.
    """
    groups, patch, _ = moments.shape
    matrix = ops.reshape(error * scale, (patch, groups, -1))
    matrix = ops.transpose(matrix, (1, 0, 2))  # (groups, patch, filters of the group)
    return ops.sum(matrix * ops.matmul(moments, matrix))


def _unit(feature_map: Tensor) -> Tensor:
    flat = ops.cast(feature_map, "float32")
    flat = ops.reshape(flat, (ops.shape(flat)[0], -1))
    squares = ops.sum(ops.square(flat), axis=-1, keepdims=True)
    return flat * ops.rsqrt(ops.maximum(squares, EPSILON))
