import numpy as np
import pytest
from roundtrips import assert_config_round_trip

from keras_nern.predictor.compressed_dense import CompressedDense


def _layer(bits, pruned):
    layer = CompressedDense(5, bits=bits, pruned=pruned, activation="relu")
    layer.build((None, 8))
    layer.bias.assign(np.linspace(-1, 1, 5))
    return layer


@pytest.mark.parametrize(("bits", "pruned"), [(None, False), (None, True), (4, False), (3, True)])
def test_matches_the_formula(bits, pruned):
    layer = _layer(bits, pruned)
    layer.compress(sparsity=0.5)
    kernel = layer.kernel.numpy()
    if pruned:
        mask = layer.mask.numpy()
        assert np.count_nonzero(mask) == 20
        assert np.abs(kernel)[mask == 1].min() >= np.abs(kernel)[mask == 0].max()
        kernel = kernel * mask
    if bits:
        step_sizes = layer.step_sizes.numpy()
        top = 2 ** (bits - 1) - 1
        kernel = np.clip(np.rint(kernel / step_sizes), -top, top) * step_sizes
        np.testing.assert_array_equal(layer.quantized().values(), kernel)
    np.testing.assert_array_equal(layer.effective_kernel, kernel)
    x = np.random.default_rng(2).normal(size=(7, 8)).astype("float32")
    np.testing.assert_allclose(layer(x), np.maximum(x @ kernel + layer.bias, 0), atol=1e-5)
    assert_config_round_trip(layer)


def test_raises_for_a_file_without_masks():
    store = {}
    _layer(4, pruned=False).save_own_variables(store)
    assert set(store) == {"kernel", "bias", "step_sizes"}
    with pytest.raises(ValueError, match=r"a file with \['mask'\] of the layer .*Received: \["):
        _layer(4, pruned=True).load_own_variables(store)


def test_a_float_kernel_has_no_levels():
    with pytest.raises(ValueError, match=r"must be quantized, see compress\. Received: bits=None"):
        _layer(None, pruned=True).quantized()
