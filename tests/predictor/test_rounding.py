import math

import numpy as np
import pytest

from keras_nern.predictor import rounding
from keras_nern.predictor.gptq import damped
from keras_nern.predictor.residual import step_sizes_of
from keras_nern.predictor.rounding import BIT_COST, KernelRounder


def problem(groups=1, patch=6, filters=4, seed=0):
    rng = np.random.default_rng(seed)
    samples = rng.normal(size=(groups, 50, patch)) @ rng.normal(size=(groups, patch, patch))
    gradients = rng.normal(size=(groups, 50, filters)) * rng.uniform(0.5, 2, filters)
    inputs = np.einsum("gnp,gnq->gpq", samples, samples) / 50
    outputs = np.einsum("gnf,gne->gfe", gradients, gradients) / 50
    return rng.normal(size=(groups, patch, filters)), inputs, outputs


def cost(error, inputs, outputs):
    """1/2 sum_f G_ff d_f^T A d_f, by groups."""
    return 0.5 * np.einsum("gpf,gpq,gqf,gff->", error, inputs, error, outputs)


def rounded(rounder, spread):
    exponents = rounder.exponents(spread)
    return rounder.round(exponents, spread), step_sizes_of(exponents)


def test_independent_weights_of_equal_cost_get_the_step_size_c():
    weights = np.random.default_rng(0).normal(size=(1, 5, 3))
    rounder = KernelRounder(weights, np.eye(5)[None], np.diag([1.0, 4.0, 16.0])[None])
    c = 0.25 * math.sqrt(1.01)  # damping adds 1 percent to A
    np.testing.assert_array_equal(rounder.exponents(c), [[[-8, -12, -16]]])
    np.testing.assert_allclose(rounder.cost, 1.01 * np.sum(weights**2 * [1, 4, 16]))


def test_every_weight_costs_about_c_squared_over_24():
    weights, inputs, outputs = problem(patch=40, filters=60)
    rounder = KernelRounder(weights, inputs, outputs)
    for c in (0.3, 0.6):
        integers, steps = rounded(rounder, c)
        found = cost(integers * steps - weights, inputs, outputs) / weights.size
        assert found == pytest.approx(c**2 / 24, rel=0.25)


@pytest.mark.parametrize("groups", [1, 3])
def test_second_derivatives_are_those_of_the_cost(groups):
    weights, inputs, outputs = problem(groups)
    found = KernelRounder(weights, inputs, outputs).second_derivatives
    inputs = np.stack([damped(one, 0.01) for one in inputs])
    for place in np.ndindex(weights.shape):
        error = np.zeros(weights.shape)
        error[place] = 1
        assert found[place] == pytest.approx(2 * cost(error, inputs, outputs), rel=1e-5), place


def test_second_derivatives_of_positions_and_of_a_diagonal_are_in_their_places():
    rng = np.random.default_rng(0)
    channels, positions, g = (rng.uniform(1, 2, size) for size in (3, 4, 2))
    factors = [np.diag(one)[None] for one in (channels, g)]
    rounder = KernelRounder(np.ones((1, 12, 2)), *factors, None, np.diag(positions)[None])
    expected = np.einsum("s,c,f->scf", positions, channels + 0.01 * channels.mean(), g)
    np.testing.assert_allclose(rounder.second_derivatives, expected.reshape(1, 12, 2), rtol=1e-5)
    diagonal = rng.uniform(1, 2, (2, 3, 4))
    rounder = KernelRounder(np.ones((2, 3, 4)), diagonal=diagonal)
    np.testing.assert_allclose(rounder.second_derivatives, diagonal, rtol=1e-5)


@pytest.mark.parametrize("groups", [1, 3])
def test_rows_that_are_left_compensate_for_errors(groups, monkeypatch):
    # The oracle solves for the rows that are left: min 1/2 d^T A d, given the rounded rows.
    weights, inputs, outputs = problem(groups)
    rounder = KernelRounder(weights, inputs, outputs)
    exponents = rounder.exponents(0.1)
    monkeypatch.setattr(rounding, "BIT_COST", 0.0)
    monkeypatch.setattr(rounding, "REFINEMENTS", 0)
    found = rounder.round(exponents, 0.1)
    assert np.abs(found).max() < 127
    monkeypatch.setattr(rounding, "ROWS_AT_ONCE", 2)
    np.testing.assert_array_equal(rounder.round(exponents, 0.1), found)
    steps = step_sizes_of(exponents)
    for group in range(groups):
        covariance = damped(inputs[group], 0.01)
        done, values = [], np.zeros_like(weights[group])
        order = np.argsort(-np.diag(covariance), kind="stable")
        for index in order:
            left = [i for i in order if i not in done]
            errors = (values - weights[group])[done]
            cross = covariance[np.ix_(left, done)]
            change = np.linalg.solve(covariance[np.ix_(left, left)], cross @ errors)
            moved = (weights[group][left] - change)[left.index(index)]
            values[index] = np.rint(moved / steps[group, 0]) * steps[group, 0]
            done.append(index)
        np.testing.assert_allclose(found[group] * steps[group], values, atol=1e-9)


def test_an_integer_is_the_cheapest_by_cost_and_bits():
    generator = np.random.default_rng(0)
    weights = generator.laplace(size=(1, 30, 8))
    outputs = np.diag(generator.uniform(1, 2, 8))[None]
    rounder = KernelRounder(weights, np.eye(30)[None], outputs)
    c = 1.0
    integers, steps = rounded(rounder, c)
    nearest = np.rint(weights / steps)
    bits = np.zeros(255)
    for _ in range(4):  # with the bits of the integers of the pass before
        chosen = np.empty(integers.shape, "int64")
        for place, weight in np.ndenumerate(weights):
            h = 0.5 * outputs[0, place[2], place[2]] * 1.01
            options = range(-10, 11)
            costs = [
                h * (weight - q * steps[0, 0, place[2]]) ** 2 + BIT_COST * c**2 * bits[q + 127]
                for q in options
            ]
            chosen[place] = options[int(np.argmin(costs))]
        counts = np.bincount(chosen.ravel() + 127, minlength=255) + 0.5
        bits = -np.log2(counts / counts.sum())
    np.testing.assert_array_equal(integers, chosen)
    assert np.abs(integers).sum() < np.abs(nearest).sum()


@pytest.mark.parametrize("groups", [1, 3])
def test_no_other_choice_of_one_integer_costs_less_after_refinement(groups, monkeypatch):
    weights, inputs, outputs = problem(groups, patch=40, filters=8)
    rounder = KernelRounder(weights, inputs, outputs)
    exponents = rounder.exponents(0.5)
    damped_inputs = np.stack([damped(one, 0.01) for one in inputs])
    monkeypatch.setattr(rounding, "BIT_COST", 0.0)

    def total(integers):
        return cost(integers * step_sizes_of(exponents) - weights, damped_inputs, outputs)

    costs = []
    for passes in (0, 2, 50):
        monkeypatch.setattr(rounding, "REFINEMENTS", passes)
        found = rounder.round(exponents, 0.5).astype("int64")
        costs.append(total(found))
    assert costs[0] > costs[1] >= costs[2]
    for place in np.ndindex(found.shape):
        for change in (-1, 1):
            other = found.copy()
            other[place] += change
            assert total(other) >= costs[2]
    monkeypatch.setattr(rounding, "ROWS_AT_ONCE", 2)
    np.testing.assert_array_equal(rounder.round(exponents, 0.5), found)


def test_bits_fall_and_cost_rises_with_c():
    weights, inputs, outputs = problem(patch=40, filters=60)
    rounder = KernelRounder(weights, inputs, outputs)
    sizes, costs = [], []
    for c in (0.01, 0.1, 1.0, 10.0):
        integers, steps = rounded(rounder, c)
        sizes.append(np.abs(integers.astype("int64")).sum())
        costs.append(cost(integers * steps - weights, inputs, outputs))
    assert sizes == sorted(sizes, reverse=True)
    assert costs == sorted(costs)


def test_integers_stay_within_eight_bits():
    weights, inputs, outputs = problem()
    integers, steps = rounded(KernelRounder(weights, inputs, outputs), 1e-12)
    assert np.abs(integers).max() <= 127
    assert np.abs(integers * steps - weights).max() < 0.02 * np.abs(weights).max()


def test_a_diagonal_rounds_each_weight_for_itself():
    weights = np.random.default_rng(0).normal(size=(2, 5, 3))
    diagonal = np.random.default_rng(1).uniform(1, 2, weights.shape)
    rounder = KernelRounder(weights, diagonal=diagonal)
    exponents = rounder.exponents(1e-3)
    steps = step_sizes_of(exponents)
    expected = 1e-3 / np.sqrt(diagonal.mean(axis=1, keepdims=True))
    largest = np.abs(weights).max(axis=1, keepdims=True) / 127
    at_least = np.maximum(expected, largest)
    assert np.all((steps > 0.91 * at_least) & (steps < 1.19 * at_least))
    np.testing.assert_array_equal(rounder.round(exponents, 1e-3), np.rint(weights / steps))


def test_factors_of_channels_and_positions_round_each_position_for_itself(monkeypatch):
    monkeypatch.setattr(rounding, "BIT_COST", 0.0)
    weights, inputs, outputs = problem(patch=4)
    shares = np.array([0.2, 0.8])
    both = np.concatenate([weights, 2 * weights], axis=1)  # (1, 2 positions x 4 channels, filters)
    rounder = KernelRounder(both, inputs, outputs, positions=np.diag(shares)[None])
    exponents = rounder.exponents(1e-3)
    found = rounder.round(exponents, 1e-3)
    for place, part in enumerate((weights, 2 * weights)):
        alone = KernelRounder(part, inputs, outputs)
        expected = alone.round(exponents, 1e-3)
        np.testing.assert_array_equal(found[:, 4 * place : 4 * place + 4], expected)


def test_a_kernel_without_curvature_is_rounded_by_its_mean_square():
    weights = np.random.default_rng(0).normal(size=(1, 50, 3))
    rounder = KernelRounder(100 * weights)
    assert rounder.cost == pytest.approx(1.0)
    integers, steps = rounded(rounder, 0.02)
    assert np.mean((integers * steps - 100 * weights) ** 2) < 0.02 * np.mean((100 * weights) ** 2)
    zeros = KernelRounder(np.zeros((1, 5, 3)))
    assert not rounded(zeros, 0.02)[0].any()


def test_filters_that_never_matter_do_not_divide_by_zero():
    weights, inputs, _ = problem()
    for outputs in (np.zeros((1, 4, 4)), np.diag([1.0, 0, 1, 1])[None]):
        integers, steps = rounded(KernelRounder(weights, inputs, outputs), 1e-2)
        assert np.isfinite(integers * steps).all()
    integers, steps = rounded(KernelRounder(weights, np.zeros((1, 6, 6)), outputs), 1e-2)
    assert np.isfinite(integers * steps).all()
