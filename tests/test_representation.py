"""The slots of a predictor, and the blocks and kernels in them."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_nern
from keras_nern.training.sampling import (
    AllKernels,
    MagnitudeSampling,
    UniformSampling,
    cumulative_magnitude,
)

ORDERS = [None, "in_filter", "cross_filter"]
# of 52 blocks in layers of 4, 24 and 24; no run ends where a layer does
EXPERTS = [1, 3, 5]


def _representation(base, experts, permutation=None):
    nern = keras_nern.NeRNModel(base, 4, 3, permutation=permutation, experts=experts)
    return nern._representation


def _block_of_slots(representation):
    """The block in each slot, by a search through the coordinates of all blocks."""
    if representation.runs is None:
        return list(range(52))
    columns = {0: 1, 1: 4, 2: 4}
    coordinates = representation.permutation.coordinates().tolist()
    ranks = [(0, 4, 28)[layer] + f * columns[layer] + c for layer, f, c in coordinates]
    return [ranks.index(rank) for rank in representation.runs.ranks()]


def _first_slots(representation, ranks):
    """The first slot of the block of each rank."""
    if representation.runs is None:
        return ranks
    every = representation.runs.ranks().tolist()
    return [every.index(rank) for rank in ranks]


@pytest.mark.parametrize("experts", EXPERTS)
@pytest.mark.parametrize("permutation", ORDERS)
def test_a_kernel_alone_equals_that_of_all(base, permutation, experts):
    representation = _representation(base, experts, permutation)
    for index, kernel in enumerate(representation.kernels()):
        alone = representation.kernel(index)
        assert alone.shape == representation.blocks.kernels[index].variable.shape
        np.testing.assert_allclose(alone, kernel, atol=1e-6)


@pytest.mark.parametrize("experts", EXPERTS)
@pytest.mark.parametrize("permutation", ORDERS)
def test_every_slot_has_the_block_of_its_rank(base, permutation, experts):
    representation = _representation(base, experts, permutation)
    expected = _block_of_slots(representation)
    np.testing.assert_array_equal(representation.block_of_slots(), expected)
    # sorting the rows of slots by block puts each block's number at its place
    rows = np.array(expected, "float32")[:, None]
    np.testing.assert_array_equal(representation.in_block_order(rows)[:, 0], np.arange(52))


@pytest.mark.parametrize("experts", EXPERTS)
def test_inputs_of_statistics_belong_to_layers(base, experts):
    representation = _representation(base, experts, "cross_filter")
    inputs = representation.sample_inputs()
    layers = representation.input_layers(inputs)
    expected = np.searchsorted([4, 28], _block_of_slots(representation), side="right")
    np.testing.assert_array_equal(layers.ravel(), expected)
    if experts > 1:
        lengths = representation.predictor.run_lengths
        assert len(set(lengths)) > 1
        # past its end, a run starts over
        expected = [[slot % length for slot in range(max(lengths))] for length in lengths]
        assert layers.shape == inputs.shape == (experts, max(lengths))
        np.testing.assert_array_equal(inputs, expected)


@pytest.mark.parametrize("experts", EXPERTS)
@pytest.mark.parametrize("permutation", ORDERS)
def test_one_slot_of_each_block_has_its_norm(base, permutation, experts):
    representation = _representation(base, experts, permutation)
    blocks, norms = _block_of_slots(representation), representation.blocks.norms()
    expected = [0 if block in blocks[:slot] else norms[block] for slot, block in enumerate(blocks)]
    np.testing.assert_array_equal(
        representation.norms_of_slots(representation.block_of_slots()), expected
    )
    assert np.count_nonzero(expected) == 52


class _Own:
    """A sampling as users write one, which knows no runs."""

    by_magnitude = False

    def sample(self, count, seed, cumulative=None):
        assert count == 52
        self.cumulative = cumulative
        return keras.ops.convert_to_tensor(np.array([51, 3, 3, 20], "int32"))


@pytest.mark.parametrize("experts", EXPERTS)
def test_a_sampling_without_runs_draws_blocks_in_their_order(base, experts):
    representation = _representation(base, experts, "cross_filter")
    cumulative = cumulative_magnitude(
        representation.norms_of_slots(representation.block_of_slots())
    )
    own = _Own()
    representation.draw(own, None, keras.ops.convert_to_tensor(cumulative))
    blocks = range(52) if experts == 1 else np.argsort(representation._block_ranks())
    expected = cumulative_magnitude(representation.blocks.norms()[blocks])
    np.testing.assert_allclose(own.cumulative, expected, rtol=1e-6)


@pytest.mark.parametrize("experts", EXPERTS)
@pytest.mark.parametrize(
    "sampling", [AllKernels(), UniformSampling(20), MagnitudeSampling(20, 0.5), _Own()]
)
def test_predicts_the_slots_that_are_drawn(base, experts, sampling):
    representation = _representation(base, experts, "cross_filter")
    every = representation.predict_all().numpy()
    assert every.shape == (representation.num_slots, 9)
    count = representation.num_slots
    cumulative = keras.ops.convert_to_tensor(np.linspace(0, 1, count + 1)[1:].astype("float32"))
    drawn, by_run = representation.draw(sampling, keras.random.SeedGenerator(0), cumulative)
    predicted, means = representation.predict(drawn, by_run)
    if isinstance(sampling, _Own):
        assert not by_run
        assert drawn.numpy().tolist() == _first_slots(representation, [51, 3, 3, 20])
    elif type(sampling) is AllKernels:
        assert drawn is None
        drawn = np.arange(count)
    else:
        assert by_run == (experts > 1)
        assert len(drawn) == {1: 20, 3: 21, 5: 20}[experts]
    np.testing.assert_allclose(predicted, every[drawn], atol=1e-6)
    assert len(means) == (3 if experts == 1 else 0)


@pytest.mark.parametrize("experts", EXPERTS)
def test_only_drawn_slots_get_the_gradients_of_a_whole_network(base, experts):
    nern = keras_nern.NeRNModel(base, 4, 3, permutation="cross_filter", experts=experts)
    representation = nern._representation
    cotangent = np.random.default_rng(0).normal(size=(52, 9)).astype("float32")
    ranks = [0, 9, 9, 17, 30, 30, 30, 51]  # some repeatedly
    drawn = np.array(_first_slots(representation, ranks), "int32")
    variables = nern.trainable_variables
    with tf.GradientTape() as tape:
        predicted, _ = representation.predict(drawn)
        blocks = nern._objective._all_blocks(drawn, predicted)
        value = tf.reduce_sum(blocks * cotangent)
    found = tape.gradient(value, variables)
    expected = representation.in_block_order(representation.predict_all())
    np.testing.assert_allclose(blocks, expected, atol=1e-6)
    # the oracle computes all slots, and stops the gradients of those that were not drawn
    with tf.GradientTape() as tape:
        rows, _ = representation.predict(None)
        mask = np.isin(np.arange(representation.num_slots), drawn)[:, None]
        rows = tf.where(mask, rows, tf.stop_gradient(rows))
        slots = [_block_of_slots(representation).index(block) for block in range(52)]
        value = tf.reduce_sum(tf.gather(rows, slots) * cotangent)
    for a, b in zip(found, tape.gradient(value, variables), strict=True):
        assert np.any(b)
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


# A step takes the same number of operations, however many experts there are.


def _operations(function):
    """The types of all operations of a traced function, those of its functions included."""
    definition = function.graph.as_graph_def()
    nodes = [*definition.node]
    for one in definition.library.function:
        nodes += one.node_def
    return sorted(node.op for node in nodes)


@pytest.mark.parametrize("phase", ["reconstruction", "distillation"])
@pytest.mark.parametrize("sampling", ["all", "drawn"])
def test_the_graph_of_a_step_does_not_grow_with_the_experts(base, images, phase, sampling):
    found = []
    for experts in (2, 50):
        nern = keras_nern.NeRNModel(base, 4, 3, permutation="cross_filter", experts=experts)
        if sampling == "drawn":
            nern.compile(
                kernel_sampling=MagnitudeSampling(50), distillation_sampling=UniformSampling(50)
            )
        nern._objective.refresh_targets(nern._settings)
        nern.phase = phase
        step = tf.function(nern.train_step)
        found.append(_operations(step.get_concrete_function((tf.constant(images),))))
    assert len(found[0]) > 100
    assert found[0] == found[1]
    assert not {"While", "StatelessWhile", "Case"} & set(found[1])
