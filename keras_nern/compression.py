"""Compression of a representation.

The paper's *meta-compression* compresses the predictor, which is itself a network (Ashkenazi et
al., ICLR 2023, the second application). The smallest weights of each Dense layer are set to zero
and the others are rounded to integers of a few bits (`predictor.quantization`). Weights that are
not yet rounded and the biases compensate for the errors (`predictor.gptq`). A short fit corrects
most of the remaining error: it trains the predictor with the kernels that a compact file stores
(`predictor.compressed_dense`).

A *residual* instead adds integers to the predicted kernels (`predictor.residual`), as many as a
number of bytes or a drop in accuracy allows. The curvature of the distillation losses says what an
error of each weight costs, and the integers spend the bytes where they gain most
(`predictor.rounding`).
"""

from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_nern.artifact import container, writer
from keras_nern.data.inputs import are_arrays, is_pair, unpack_validation
from keras_nern.model import NeRNModel
from keras_nern.predictor.gptq import compress_into
from keras_nern.predictor.rounding import BIT_COST, KernelRounder
from keras_nern.predictor.size import byte_budget
from keras_nern.utils import checks
from keras_nern.utils.progress import Progress, level_of

# c, see `predictor.rounding`, relative to the one whose step sizes equal the weights' mean square:
# from integers of 8 bits to almost only zeros.
FINEST, COARSEST = 2.0**-8, 2.0**3
# The loss of a bit relative to L, see `predictor.rounding`. At 2, training shrinks ResNet20's files
# slightly.
RATE_WEIGHT = 2.0
TRIALS = 12  # bisections of this interval, to within 0.2 percent of c


def compress(
    nern: NeRNModel,
    bits: int | None = None,
    sparsity: float = 0.0,
    max_bytes: float | str | None = None,
    max_drop: float | None = None,
    data: Any = None,
    validation_data: Any = None,
    verbose: int | str = "auto",
) -> NeRNModel:
    """Compresses a representation.

    `bits` and `sparsity` compress the predictor of a trained representation. `max_bytes` or
    `max_drop` add a residual of integers, with which a representation has any accuracy, also one
    without a predictor (`NeRNModel(base, size=0)`). A residual needs the curvature of the base:
    that of `nern.gather_curvature`, or `data`, from which it is gathered.

    Args:
        nern: a `NeRNModel` that is not compressed; it is not changed.
        bits: bits per weight of the predictor's Dense kernels, 2 to 8; `None` for floats. Defaults
            to `None`.
        sparsity: fraction of each of the predictor's kernels to set to zero, in [0, 1). Defaults
            to `0.0`.
        max_bytes: largest compact file, as `export(path, kept_precision="bfloat16")` writes it: a
            number of bytes or a string such as `"100 kB"`. Defaults to `None`.
        max_drop: largest drop in accuracy on `validation_data`, in percentage points, with the
            fewest bytes. Defaults to `None`.
        data: inputs, or (inputs, labels), as for `NeRNModel.gather_curvature`. Defaults to `None`.
        validation_data: (inputs, labels) or a dataset of them, for `max_drop`. Do not report
            accuracy on these images. Defaults to `None`.
        verbose: 0 to show nothing, 1 for the progress, 2 for lines of what has ended; `"auto"` for
            1. Defaults to `"auto"`.

    Returns:
        A `NeRNModel` of the same base, compiled as `nern` is; with a residual, its optimizer and
        learning rates are the default ones. The reconstruction steps of `nern` count as done, so
        `fit(images)` continues with distillation: of the compressed predictor; or of the integers,
        with a loss for their bits, and of scales, offsets and biases of the rebuilt classifier.

    Raises:
        ValueError: if an argument is out of range, if not exactly one kind of compression is asked
            for, if data is missing, if `nern` is already compressed, or if no residual is small or
            accurate enough.

    Example:

    >>> small = keras_nern.compress(nern, bits=7)
    >>> history = small.fit(images, epochs=1)  # with kernels of 7 bits
    >>> small.export("small.nern")
    >>> integers = keras_nern.NeRNModel(base, size=0)
    >>> small = keras_nern.compress(integers, max_bytes="100 kB", data=images)

    Source: Ashkenazi et al., ICLR 2023, arXiv 2212.13554; for the residual see
    `predictor.rounding`.
    """
    if not isinstance(nern, NeRNModel):
        raise ValueError(f"nern must be a NeRNModel. Received: {nern!r}")
    checks.share("sparsity", sparsity, with_one=False)
    checks.one_of("verbose", verbose, ("auto", 0, 1, 2))
    kinds = [bits is not None or bool(sparsity), max_bytes is not None, max_drop is not None]
    if sum(kinds) != 1:
        raise ValueError(
            "Expected bits, a sparsity or both, or one of max_bytes and max_drop. Received: "
            f"bits={bits!r}, sparsity={sparsity!r}, max_bytes={max_bytes!r}, max_drop={max_drop!r}"
        )
    if nern.bits is not None or nern.pruned or nern.residual:
        raise ValueError(
            "nern must be a representation that is not compressed: compress the original model "
            f"again instead. Received: bits={nern.bits!r}, pruned={nern.pruned!r}, "
            f"residual={nern.residual!r}"
        )
    if kinds[0]:
        return _compress_predictor(nern, bits, sparsity)
    level = level_of(verbose)
    if max_drop is None:
        limit = byte_budget("max_bytes", max_bytes)
        return _add_residual(nern, data, level, largest=limit)
    checks.number("max_drop", max_drop, minimum=0)
    if validation_data is None:
        raise _labels_error("None")
    return _add_residual(nern, data, level, max_drop=max_drop, validation_data=validation_data)


def _compress_predictor(nern: NeRNModel, bits: int | None, sparsity: float) -> NeRNModel:
    if nern.experts == 0:
        raise ValueError(
            "bits and sparsity compress a predictor; use max_bytes or max_drop without one. "
            "Received: a NeRNModel without a predictor"
        )
    small = nern._with_predictor(bits=bits, pruned=sparsity > 0)
    inputs = nern._representation.sample_inputs()
    layers = nern._representation.input_layers(inputs)
    compress_into(small.predictor, nern.predictor, inputs, layers, sparsity)
    return small


def _add_residual(
    nern: NeRNModel,
    data: Any,
    verbose: int,
    largest: float | None = None,
    max_drop: float | None = None,
    validation_data: Any = None,
) -> NeRNModel:
    """Adds the coarsest residual with at most `max_drop`, or the finest of `largest` bytes."""
    if validation_data is not None:
        validation_data = _evaluation_arguments(nern, validation_data)
    if data is not None:
        data = nern.check_data(data, name="data")
    elif not nern._objective.has_curvature:
        raise ValueError(
            "A residual needs data, or nern.gather_curvature(data). Received: data=None"
        )
    small = nern._with_predictor(residual=True)
    small.predictor.set_weights(nern.predictor.get_weights())
    if data is None:
        small._objective.take_curvature(nern._objective)
    else:  # by `small`, because `nern` is not changed
        small.gather_curvature(data, verbose=verbose)
    rounding = _Rounding(small)
    if largest is not None:
        parts = writer.encode(**small._to_encode("auto", "bfloat16"))

        def fits() -> tuple[bool, dict[str, float]]:
            size = len(container.dump(parts | writer.residual_parts(small.residual_layer)))
            return size <= largest, {"kB": size / 1000}
    else:

        def fits() -> tuple[bool, dict[str, float]]:
            found = small.evaluate(**validation_data, verbose=0, return_dict=True)
            if "accuracy" not in found:
                raise _labels_error("no labels")
            drop = 100 * (found["base_accuracy"] - found["accuracy"])
            return drop <= max_drop, {"drop": drop}

    found = rounding.search(fits, finest_fits=largest is None, verbose=verbose)
    if found is not None:
        if largest is None:
            raise ValueError(
                f"max_drop must be at least {found['drop']:.2f}, the drop of the finest integers. "
                f"Received: max_drop={max_drop}"
            )
        raise ValueError(
            f"max_bytes must be at least {1000 * found['kB']:,.0f}, the smallest file; "
            f"NeRNModel(base, size=0) has no predictor in it. Received: max_bytes={largest:,.0f}"
        )
    return small


class _Rounding:
    """Rounds the kernels of a representation to the integers of its residual.

    Args:
        small: a `NeRNModel` with a residual, which is set, whose curvature has been gathered.
    """

    def __init__(self, small: NeRNModel) -> None:
        assert small.residual_layer is not None
        self._residual = small.residual_layer
        representation = small._representation
        self._rounders = []
        squares = weights = 0.0
        factors = small._objective.factors()
        for index, (kernel, factor) in enumerate(
            zip(representation.blocks.kernels, factors, strict=True)
        ):
            error = kernel.values() - keras.ops.convert_to_numpy(representation.prediction(index))
            if factor.diagonal is not None:
                factor = factor._replace(diagonal=np.asarray(kernel.matrices(factor.diagonal)))
            rounder = KernelRounder(np.asarray(kernel.matrices(error)), *factor)
            squares += rounder.cost
            weights += kernel.num_weights
            self._rounders.append(rounder)
            self._residual.curvature[index].assign(rounder.second_derivatives)
        self._unit = np.sqrt(squares / weights)

    def set(self, spread: float) -> None:
        """Sets the integers for c = `spread` times the unit."""
        c = spread * self._unit
        exponents = [rounder.exponents(c) for rounder in self._rounders]
        integers = [
            rounder.round(one, c) for rounder, one in zip(self._rounders, exponents, strict=True)
        ]
        self._residual.assign(integers, exponents)
        self._residual.rate_weight.assign(RATE_WEIGHT * BIT_COST * c**2)

    def search(
        self, fits: Callable[[], tuple[bool, dict[str, float]]], finest_fits: bool, verbose: int
    ) -> dict[str, float] | None:
        """Sets the integers at the border between those that fit and those that do not.

        Args:
            fits: whether the integers that are set fit, and values to show.
            finest_fits: whether finer integers fit rather than coarser ones.
            verbose: as for `compress`.

        Returns:
            `None`, or the values of the integers that are most likely to fit, if none do.
        """
        progress = None
        if verbose:
            progress = Progress(TRIALS + 1, "trial", verbose)
            progress.screen.end("Choosing integers:")
        good, bad = (FINEST, COARSEST) if finest_fits else (COARSEST, FINEST)
        self.set(good)
        is_fit, values = fits()
        if not is_fit:
            return values
        for trial in range(TRIALS):
            if progress is not None:
                progress.update(trial + 1, values)
            middle = float(np.sqrt(good * bad))
            self.set(middle)
            is_fit, found = fits()
            if is_fit:
                good, values = middle, found
            else:
                bad = middle
        self.set(good)
        if progress is not None:
            progress.end(TRIALS + 1, values)
        return None


def _evaluation_arguments(nern: NeRNModel, validation_data: Any) -> dict[str, Any]:
    """The arguments of `evaluate` for validation data as `fit` takes them, checked."""
    x, y, weight = unpack_validation(validation_data)
    if isinstance(x, Iterator):
        raise ValueError(
            "validation_data must be data that can be read several times, such as arrays or a "
            f"tf.data.Dataset. Received: {x!r}"
        )
    nern.check_data(x, y, "validation_data", sample_weight=weight)
    labeled = y is not None or is_pair(x, nern._original.signature)
    if not labeled and (are_arrays(x) or isinstance(x, tf.data.Dataset)):
        raise _labels_error("no labels")
    return {"x": x, "y": y, "sample_weight": weight}


def _labels_error(received: str) -> ValueError:
    return ValueError(f"max_drop needs validation_data with labels. Received: {received}")
