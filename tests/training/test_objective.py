import numpy as np
import pytest

import keras_nern


@pytest.mark.parametrize("permutation", [None, "cross_filter"])
def test_kernels_are_drawn_by_their_own_norms(base, permutation):
    """With local predictors as well, which number kernels by slots."""
    for experts in (1, 3):
        nern = keras_nern.NeRNModel(base, 4, 3, permutation=permutation, experts=experts)
        nern.kernel_sampling = keras_nern.MagnitudeSampling(20)
        nern._objective.refresh_targets(nern._settings)
        representation, blocks = nern._representation, nern._original.blocks
        order = representation.block_of_slots()
        values, _ = blocks.take(blocks.weights(), order)
        norms = np.zeros(len(order))
        _, first = np.unique(order, return_index=True)  # the first slot of each block
        norms[first] = np.linalg.norm(values, axis=1)[first]
        drawn = np.diff(nern._objective._cumulative.numpy(), prepend=0)
        np.testing.assert_allclose(drawn, norms / norms.sum(), atol=1e-6)
