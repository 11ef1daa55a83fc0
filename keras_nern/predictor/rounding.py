"""Rounding of a kernel to integers by what errors cost and what integers take.

Let D be the error of a kernel as a matrix (patch, filters), A the second moment of the patches and
g_f the curvature of filter f, so that an error costs 1/2 sum_f g_f d_f^T A d_f (see
`network.curvature`). Rows of the kernel are rounded one after another, and the rows that are left
compensate for each error, as in GPTQ (Frantar et al., ICLR 2023, arXiv 2210.17323). With the upper
Cholesky factor U of A^-1 = U^T U, rounding row i by the error e_i then costs
sum_f 1/2 g_f (e_if / U_ii)^2.

*Step sizes* spread the cost evenly: a filter's step size is

    s_f = c / sqrt(g_f h),    h = mean of U_ii^-2 over the rows,

so that every weight of every layer costs c^2 / 24 on average. Where all weights cost the same, no
bytes are gained by rounding one filter finer and another coarser (reverse water-filling; Cover and
Thomas, *Elements of Information Theory*, section 10.3.3). The only choice left is c.

*Integers* minimize cost + L bits. The bits of an integer are those of an entropy coder that counts
the integers of the kernel. A finer step reduces the cost of a weight by 2 ln(2) c^2 / 24 per bit,
so L is c^2 times `BIT_COST`: integers and step sizes then buy accuracy at the same price
(rate-distortion optimized quantization; with GPTQ as in CERWU, arXiv 2505.18758).

When all rows are rounded, each integer is chosen again while all others are fixed: coordinate
descent, in `REFINEMENTS` passes.
"""

import math

import numpy as np

from keras_nern.predictor.gptq import DAMPING, damped
from keras_nern.predictor.residual import LARGEST_LEVEL, exponents_of, step_sizes_of

BIT_COST = 2 * math.log(2) / 24
ROWS_AT_ONCE = 64  # whose errors correct the rows after them by one matrix product
SMALLEST_CURVATURE = 1e-4  # of a filter, relative to the mean of its kernel
REFINEMENTS = 2
LEVELS = 2 * LARGEST_LEVEL + 1


class KernelRounder:
    """A kernel to round, with what its errors cost.

    Args:
        weights: array `(groups, patch, filters)`, what the integers approximate.
        inputs: A, `(groups, patch, patch)`; a part of it, `(groups, channels, channels)`, if
            `positions` are given; or `None`.
        outputs: G, `(groups, filters, filters)`, whose diagonal is used; or `None`.
        diagonal: the cost 1/2 h e^2 of an error e of each weight, h `(groups, patch, filters)`,
            in place of `inputs` and `outputs`; or `None`.
        positions: `(groups, S, S)`, whose diagonal weights the positions of a patch, or `None`.

    Without any of them, errors of all weights cost the same, relative to the mean square.
    """

    def __init__(
        self,
        weights: np.ndarray,
        inputs: np.ndarray | None = None,
        outputs: np.ndarray | None = None,
        diagonal: np.ndarray | None = None,
        positions: np.ndarray | None = None,
    ) -> None:
        self._shape = weights.shape
        groups, patch, filters = weights.shape
        if inputs is None:
            if diagonal is None:
                square = float(np.mean(np.square(weights, dtype="float64")))
                diagonal = np.full(weights.shape, 1 / (square or 1.0) / weights.size)
            curvature = np.maximum(diagonal, SMALLEST_CURVATURE * diagonal.mean())
            self._order = np.zeros((groups * patch, 1), "int64")
            self._covariance = self._upper = np.ones((groups * patch, 1, 1))
            self._weights = weights.reshape(groups * patch, 1, filters).astype("float64")
            self._curvature = curvature.reshape(groups * patch, 1, filters).astype("float64")
            per_output = curvature.mean(axis=1, keepdims=True)
        else:
            assert outputs is not None
            g = np.einsum("gff->gf", outputs).astype("float64")
            g = np.maximum(g, SMALLEST_CURVATURE * g.mean() or 1.0)[:, None, :]
            covariances = np.stack([damped(one, DAMPING) for one in inputs])
            order = np.argsort(-np.einsum("gpp->gp", covariances), axis=-1, kind="stable")
            covariances = np.take_along_axis(covariances, order[:, :, None], axis=1)
            covariances = np.take_along_axis(covariances, order[:, None, :], axis=2)
            upper = np.linalg.cholesky(np.linalg.inv(covariances)).transpose(0, 2, 1)
            share = np.ones((groups, 1))
            if positions is not None:  # one problem for each position
                share = np.einsum("gss->gs", positions).astype("float64")
                share = np.maximum(share, SMALLEST_CURVATURE * share.mean())
            places = share.shape[1]
            self._order = np.repeat(order, places, axis=0)
            self._covariance = np.repeat(covariances, places, axis=0)
            self._upper = np.repeat(upper, places, axis=0)
            self._curvature = (g * share[:, :, None]).reshape(groups * places, 1, filters)
            self._weights = weights.reshape(groups * places, -1, filters).astype("float64")
            h = np.mean(np.einsum("gpp->gp", upper) ** -2.0, axis=-1)
            per_output = g * (h * share.mean(axis=1))[:, None, None]
        self._per_output = per_output  # (groups, 1, filters): g_f h

    @property
    def cost(self) -> float:
        """The sum of g_f h w^2 over all weights: how much the kernel's absence costs, roughly."""
        return float((self._per_output * self._weights.reshape(self._shape) ** 2).sum())

    @property
    def second_derivatives(self) -> np.ndarray:
        """The second derivative of the cost with respect to each weight: float32, by weight."""
        diagonal = np.einsum("gpp->gp", self._covariance)[:, :, None]
        return self._unsorted(self._curvature * diagonal).astype("float32")

    def exponents(self, spread: float) -> np.ndarray:
        """The exponents of the step sizes for c = `spread`: int8 `(groups, 1, filters)`."""
        largest = np.abs(self._weights.reshape(self._shape)).max(axis=1, keepdims=True)
        smallest = exponents_of(largest / LARGEST_LEVEL, np.ceil)
        return np.maximum(exponents_of(spread / np.sqrt(self._per_output)), smallest)

    def round(self, exponents: np.ndarray, spread: float) -> np.ndarray:
        """Chooses the integers.

        Args:
            exponents: the result of `exponents`.
            spread: c.

        Returns:
            int8 array `(groups, patch, filters)`.
        """
        step_sizes = step_sizes_of(exponents).astype("float64")[:, 0]
        weights = np.take_along_axis(self._weights, self._order[:, :, None], axis=1)
        step_sizes = np.repeat(step_sizes, len(weights) // len(step_sizes), axis=0)
        price = BIT_COST * spread**2
        integers = self._round(weights, step_sizes, np.zeros(LEVELS))  # to the nearest
        integers = self._round(weights, step_sizes, price * _bits(integers))
        for _ in range(REFINEMENTS):
            integers = self._refine(weights, step_sizes, price * _bits(integers), integers)
        return self._unsorted(integers).astype("int8")

    def _unsorted(self, rows: np.ndarray) -> np.ndarray:
        """Puts rows that are in the order of rounding back to the kernel's order and shape."""
        unsorted = np.empty_like(rows)
        np.put_along_axis(unsorted, self._order[:, :, None], rows, axis=1)
        return unsorted.reshape(self._shape)

    def _round(self, weights: np.ndarray, steps: np.ndarray, prices: np.ndarray) -> np.ndarray:
        """Rounds all rows.

        Args:
            weights: `(problems, rows, filters)`, the rows in the order to round them.
            steps: step sizes `(problems, filters)`.
            prices: L times the bits of each integer, `(LEVELS,)`.

        Returns:
            int64 array of the shape of `weights`.
        """
        weights = weights.copy()
        rows = weights.shape[1]
        integers = np.empty(weights.shape, "int64")
        for start in range(0, rows, ROWS_AT_ONCE):
            stop = min(rows, start + ROWS_AT_ONCE)
            errors = np.empty((len(weights), stop - start, weights.shape[2]))
            for i in range(start, stop):
                row, pivot = weights[:, i], self._upper[:, i, i, None]
                h = 0.5 * self._curvature[:, 0] * (steps / pivot) ** 2
                integers[:, i] = _cheapest(row / steps, h, prices)
                error = errors[:, i - start] = (row - integers[:, i] * steps) / pivot
                weights[:, i + 1 : stop] -= (
                    self._upper[:, i, i + 1 : stop, None] * error[:, None, :]
                )
            later = self._upper[:, start:stop, stop:].transpose(0, 2, 1)
            weights[:, stop:] -= later @ errors
        return integers

    def _refine(
        self, weights: np.ndarray, steps: np.ndarray, prices: np.ndarray, integers: np.ndarray
    ) -> np.ndarray:
        """Chooses each of the integers that `_round` returned again, see there for the others."""
        integers = integers.copy()
        errors = weights - integers * steps[:, None]
        slopes = self._covariance @ errors
        rows = weights.shape[1]
        for start in range(0, rows, ROWS_AT_ONCE):
            stop = min(rows, start + ROWS_AT_ONCE)
            changes = np.empty_like(errors[:, start:stop])
            for i in range(start, stop):
                pivot = self._covariance[:, i, i, None]
                best = integers[:, i] + slopes[:, i] / (pivot * steps)
                h = 0.5 * self._curvature[:, 0] * pivot * steps**2
                chosen = _cheapest(best, h, prices)
                change = changes[:, i - start] = (integers[:, i] - chosen) * steps
                integers[:, i] = chosen
                slopes[:, i + 1 : stop] += (
                    self._covariance[:, i + 1 : stop, i, None] * change[:, None, :]
                )
            slopes[:, stop:] += self._covariance[:, stop:, start:stop] @ changes
        return integers


def _bits(integers: np.ndarray) -> np.ndarray:
    """The bits of each level for a coder that counts these integers: float64 `(LEVELS,)`."""
    counts = np.bincount(integers.ravel() + LARGEST_LEVEL, minlength=LEVELS) + 0.5
    return -np.log2(counts / counts.sum())


def _cheapest(values: np.ndarray, curvature: np.ndarray, prices: np.ndarray) -> np.ndarray:
    """The integers q that minimize h (x - q)^2 + price(q), among those toward 0 and 0 itself."""
    nearest = np.clip(np.rint(values), -LARGEST_LEVEL, LARGEST_LEVEL).astype("int64")
    sign = np.sign(nearest)
    candidates = np.stack([nearest, nearest - sign, nearest - 2 * sign, np.zeros_like(nearest)])
    candidates *= candidates * sign >= 0  # not beyond 0
    costs = curvature * (values - candidates) ** 2 + prices[candidates + LARGEST_LEVEL]
    return np.take_along_axis(candidates, np.argmin(costs, axis=0)[None], axis=0)[0]
