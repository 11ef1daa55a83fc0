"""Builds the predictor of a network's blocks: a single one, or local ones."""

from typing import Any

import keras

from keras_nern.predictor.local import LocalPredictor
from keras_nern.predictor.predictor import KernelPredictor, Predictor
from keras_nern.predictor.runs import Runs
from keras_nern.predictor.size import DEFAULT_FEATURES, choose_shape


def build_predictor(
    num_blocks: int,
    num_weights: int,
    block_length: int,
    experts: int | str = "auto",
    hidden_size: int | None = None,
    num_layers: int | None = None,
    size: float | str | None = None,
    encoding: keras.layers.Layer | None = None,
    bits: int | None = None,
    pruned: bool = False,
    other_bytes: float = 0.0,
) -> Predictor:
    """Builds a predictor.

    Args:
        num_blocks, num_weights: number of blocks and of weights to represent.
        block_length: B, weights per block.
        experts, hidden_size, num_layers, size, encoding, bits, pruned: as for `NeRNModel`.
        other_bytes: as for `size.choose_shape`. Defaults to `0.0`.

    Returns:
        A built `KernelPredictor`, or a `LocalPredictor` for several experts.

    Raises:
        ValueError: if an argument is out of range, or if `encoding` is given for several experts.
    """
    if encoding is not None:
        if experts not in ("auto", 1):
            raise ValueError(
                "experts must be 1 with an encoding, because local predictors encode places of "
                f"runs, not coordinates. Received: experts={experts!r}, encoding={encoding!r}"
            )
        experts = 1
    features = DEFAULT_FEATURES
    if isinstance(encoding, keras.layers.Layer):  # KernelPredictor refuses anything else
        features = encoding(keras.KerasTensor((None, 3), "int32")).shape[-1]
    shape = choose_shape(
        num_blocks,
        num_weights,
        block_length,
        experts,
        hidden_size,
        num_layers,
        size,
        bits,
        features,
        other_bytes,
    )
    common: dict[str, Any] = {"block_length": block_length, "bits": bits, "pruned": pruned}
    common["name"] = "predictor"
    predictor: Predictor
    if shape.experts == 1:
        predictor = KernelPredictor(
            shape.hidden_size, shape.num_layers, encoding=encoding, **common
        )
        predictor.build((None, 3))
    else:
        runs = Runs(num_blocks, shape.experts)
        predictor = LocalPredictor(
            shape.experts, shape.hidden_size, runs.length, shape.num_layers, **common
        )
        predictor.build()
    predictor.compress()
    return predictor
