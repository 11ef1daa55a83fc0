import re

import keras
import numpy as np
import pytest

from keras_nern.network.selection import find_kernels


def _model():
    stem = keras.Sequential(
        [
            keras.Input((8, 8, 3)),
            keras.layers.Conv2D(4, 3, name="conv1"),
            keras.layers.BatchNormalization(name="bn"),
        ],
        name="stem",
    )
    return keras.Sequential(
        [
            stem,
            keras.layers.Conv2D(5, 1, name="conv1"),
            keras.layers.SeparableConv2D(6, 3, name="separable"),
            keras.layers.Flatten(),
            keras.layers.Dense(2, name="head"),
        ]
    )


ALL = ["stem/conv1", "conv1", "separable/depthwise_kernel", "separable/pointwise_kernel"]


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        ({}, ALL),
        ({"include_dense": True}, [*ALL, "head"]),
        ({"include": "stem/conv1"}, ALL[:1]),
        ({"include": "conv1"}, ALL[:2]),  # a name selects all layers of that name
        ({"include": re.compile("^stem")}, ALL[:1]),
        ({"include": lambda layer: layer.name == "separable"}, ALL[2:]),
        ({"include": ["separable", re.compile("stem")]}, [ALL[0], *ALL[2:]]),
        ({"exclude": "separable"}, ALL[:2]),
        ({"exclude": [re.compile("stem"), lambda layer: layer.name == "separable"]}, ALL[1:2]),
        ({"include": "conv1", "exclude": "stem/conv1"}, ALL[1:2]),
        ({"include": "head", "include_dense": True}, ["head"]),
        ({"include": []}, []),
    ],
)
def test_selects_layers(arguments, names):
    kernels, _ = find_kernels(_model(), **arguments)
    assert [kernel.name for kernel in kernels] == names


def test_lists_skipped_layers_with_reasons():
    _, skipped = find_kernels(_model(), include=["stem/conv1", "separable"], exclude="separable")
    assert [(one.name, one.num_weights, one.reason) for one in skipped] == [
        ("stem/bn", 16, "not a convolution"),
        ("conv1", 25, "not in include"),
        ("separable", 9 * 5 + 5 * 6 + 6, "in exclude"),
        ("head", 6 * 16 * 2 + 2, "Dense, and include_dense is False"),
    ]


def test_a_shared_kernel_is_listed_once():
    first = keras.layers.Conv2D(3, 3, name="first")

    class Tied(keras.layers.Conv2D):
        def build(self, input_shape):
            self._kernel = first._kernel
            self.bias = self.add_weight(shape=(3,), name="bias")
            self.built = True

    inputs = keras.Input((9, 9, 3))
    model = keras.Model(inputs, Tied(3, 3, name="second")(first(inputs)))
    kernels, skipped = find_kernels(model)
    assert [kernel.name for kernel in kernels] == ["first"]
    # its kernel of 81 weights is represented, its bias of 3 weights is skipped
    assert [(one.name, one.num_weights, one.reason) for one in skipped] == [
        ("second", 3, "it shares the kernel of first")
    ]


def test_frozen_layers_are_represented():
    model = _model()
    model.trainable = False
    assert [kernel.name for kernel in find_kernels(model)[0]] == ALL


def test_quantized_layers_are_skipped():
    model = _model()
    model.get_layer("head").quantize("int8")
    kernels, skipped = find_kernels(model, include_dense=True)
    assert [kernel.name for kernel in kernels] == ALL
    assert (skipped[-1].name, skipped[-1].reason) == (
        "head",
        "its kernel is not a floating-point variable",
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"include": "conv7"}, r"include must name layers .*Received: \['conv7'\]"),
        ({"exclude": ["conv1", "bn"]}, r"exclude must name layers .*Received: \['bn'\]"),
        ({"include": "head"}, r"\(Dense layers only with include_dense=True\).*\['head'\]"),
        ({"include": 3}, r"include must be a layer or its name, a compiled .* Received: 3"),
        ({"exclude": ["conv1", np.ones(2)]}, r"exclude must be a layer or its name"),
    ],
)
def test_raises_for_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        find_kernels(_model(), **arguments)


def test_selects_layer_objects():
    model = _model()
    stem = model.get_layer("stem")
    kernels, _ = find_kernels(model, include=[stem.get_layer("conv1"), "separable"])
    assert [kernel.name for kernel in kernels] == ["stem/conv1", *ALL[2:]]
    kernels, _ = find_kernels(model, exclude=model.get_layer("conv1"))
    assert [kernel.name for kernel in kernels] == ["stem/conv1", *ALL[2:]]
    with pytest.raises(ValueError, match=r"include must name layers that.*Received: \[<BatchNorm"):
        find_kernels(model, include=stem.get_layer("bn"))
