"""Builds the predictor of a network's blocks: a single one, local ones, or none."""

from collections.abc import Sequence
from typing import Any

import keras

from keras_nern.predictor.local import LocalPredictor
from keras_nern.predictor.null import NullPredictor
from keras_nern.predictor.predictor import KernelPredictor, Predictor
from keras_nern.predictor.runs import run_lengths
from keras_nern.predictor.size import DEFAULT_FEATURES, choose_shape
from keras_nern.utils import checks


def build_predictor(
    layer_sizes: Sequence[int],
    num_weights: int,
    block_length: int,
    other_bytes: float = 0.0,
    **arguments: Any,
) -> Predictor | NullPredictor:
    """Builds a predictor.

    Args:
        layer_sizes: number of blocks of each layer.
        num_weights: number of weights to represent.
        block_length: B, weights per block.
        other_bytes: as for `size.choose_shape`. Defaults to `0.0`.
        **arguments: arguments of `NeRNModel`; those of `size.choose_shape` and of the predictors
            are used.

    Returns:
        A built `KernelPredictor`, a `LocalPredictor` for several experts, or a `NullPredictor` for
        none or a size of 0.

    Raises:
        ValueError: if an argument is out of range, or if `encoding` is given for several experts.
    """
    arguments = {**arguments, "block_length": block_length}
    if _is_null(**checks.accepted(_is_null, arguments)):
        null = NullPredictor(block_length, name="predictor")
        null.build((None, 3))
        return null
    encoding, experts = arguments.get("encoding"), arguments.get("experts", "auto")
    features = DEFAULT_FEATURES
    if encoding is not None:
        if experts not in ("auto", 1):
            raise ValueError(
                "experts must be 1 with an encoding, because local predictors encode places of "
                f"runs, not coordinates. Received: experts={experts!r}, encoding={encoding!r}"
            )
        arguments["experts"] = 1
        if isinstance(encoding, keras.layers.Layer):  # KernelPredictor refuses anything else
            features = encoding(keras.KerasTensor((None, 3), "int32")).shape[-1]
    shape = choose_shape(
        sum(layer_sizes),
        num_weights,
        features=features,
        other_bytes=other_bytes,
        **checks.accepted(choose_shape, arguments),
    )
    arguments |= shape._asdict()
    kind: type[Predictor] = KernelPredictor
    if shape.experts > 1:
        kind = LocalPredictor
        arguments["run_lengths"] = run_lengths(layer_sizes, shape.experts)
    predictor = kind(**checks.accepted(kind, arguments), name="predictor")
    predictor.build((None, 3))
    predictor.compress()
    return predictor


def _is_null(
    experts: int | str = "auto",
    size: float | str | None = None,
    hidden_size: int | None = None,
    encoding: Any = None,
) -> bool:
    """Whether the arguments ask for no predictor, by `experts=0` or `size=0`."""
    zero = {"experts": experts, "size": size}
    zero = {
        name: value for name, value in zero.items() if type(value) in (int, float) and not value
    }
    if not zero:
        return False
    given = {"hidden_size": hidden_size, "encoding": encoding}
    others = {name: one for name, one in given.items() if one is not None}
    if others:
        received = ", ".join(f"{name}={one!r}" for name, one in {**zero, **others}.items())
        raise ValueError(
            "hidden_size and encoding belong to a predictor, and experts=0 or size=0 stands for "
            f"none. Received: {received}"
        )
    return True
