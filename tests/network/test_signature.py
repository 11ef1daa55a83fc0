import keras
import numpy as np
import pytest

from keras_nern.network.original import OriginalNetwork
from keras_nern.network.signature import Signature

# Keras warns of dicts whose keys are not the names of the tensors.
pytestmark = pytest.mark.filterwarnings("ignore:When providing `inputs` as a dict")

layers = keras.layers
RNG = np.random.default_rng(0)
VALUES = {
    "image": RNG.normal(size=(2, 6, 6, 1)).astype("float32"),
    "mask": RNG.normal(size=(2, 6, 6, 1)).astype("float32"),
}


def _base(inputs="list", outputs="list"):
    """Two inputs of one shape, whose order matters, and two outputs."""
    mask, image = (keras.Input((6, 6, 1), name=name) for name in ("mask", "image"))
    x = layers.Conv2D(2, 3)(image) - 2.0 * layers.Conv2D(2, 3)(mask)
    x = layers.GlobalAveragePooling2D()(x)
    small, large = layers.Dense(3, name="small")(x), layers.Dense(5, name="large")(x)
    takes = {"list": [mask, image], "dict": {"z": mask, "a": image}, "nested": [[mask], image]}
    returns = {"list": [small, large], "dict": {"s": small, "l": large}}
    return keras.Model(takes[inputs], returns[outputs])


def test_names_and_shapes_are_in_the_order_of_keras_tree():
    shape = (6, 6, 1)
    assert Signature.of(_base()) == Signature(
        {"mask": shape, "image": shape}, {"small": (3,), "large": (5,)}, "list"
    )
    assert Signature.of(_base("dict", "dict")) == Signature(
        {"a": shape, "z": shape}, {"l": (5,), "s": (3,)}, "dict"
    )
    nested = Signature.of(_base("nested"))
    assert nested.inputs is None
    assert nested.outputs == {"small": (3,), "large": (5,)}


def test_a_sequential_model_names_its_output_by_its_last_layer():
    model = keras.Sequential([keras.Input((4,), name="x"), layers.Dense(2, name="head")])
    assert Signature.of(model) == Signature({"x": (4,)}, {"head": (2,)})
    for one in ([model.inputs[0]], model.inputs[0]):
        functional = keras.Model(one, model.outputs[0])
        assert Signature.of(functional).inputs == {"x": (4,)}


def test_outputs_of_one_layer_have_different_names():
    x, dense = keras.Input((4,), name="x"), layers.Dense(3, name="head")
    model = keras.Model(x, [dense(x), dense(2.0 * x)])
    assert Signature.of(model).outputs == {"head": (3,), "head_1": (3,)}


class _Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.conv, self.head = layers.Conv2D(2, 3), layers.Dense(3, activation="sigmoid")

    def call(self, x):
        x = x["image"] if isinstance(x, dict) else x
        x = keras.ops.mean(self.conv(x), axis=(1, 2))
        return {"b": self.head(x), "a": self.head(x[:, ::-1])}


def test_a_subclassed_model_knows_neither_and_is_tried_out():
    model = _Subclassed()
    model(VALUES["image"])
    assert Signature.of(model) == Signature()
    assert Signature.of(model).arguments(VALUES) is VALUES
    original = OriginalNetwork(model)
    assert original.label_shapes is None
    assert original.try_out({"image": VALUES["image"]}) == {"a": (3, 2), "b": (3, 2)}


@pytest.mark.parametrize("structure", ["list", "dict"])
def test_inputs_reach_the_network_by_name(structure):
    base = _base(structure)
    original = OriginalNetwork(base)
    values = [VALUES["mask"], VALUES["image"]]
    names = ("mask", "image") if structure == "list" else ("z", "a")
    given = dict(zip(names, values, strict=True))
    expected = base(given if structure == "dict" else values)
    for one in (given, dict(reversed(given.items()))):
        for a, b in zip(original.functional_call(one), expected, strict=True):
            np.testing.assert_array_equal(a, b)
    swapped = dict(zip(names, values[::-1], strict=True))
    assert np.abs(original.functional_call(swapped)[0] - expected[0]).max() > 1e-3
    with pytest.raises(ValueError, match=r"x must (have|be a dict of) inputs named"):
        original.functional_call(VALUES["mask"] if structure == "dict" else {"image": values[1]})


def test_several_inputs_of_a_model_that_takes_a_dict_must_be_named():
    signature = Signature.of(_base("dict"))
    message = r"x must be a dict of inputs named \['a', 'z'\], .*Received: inputs of type list"
    with pytest.raises(ValueError, match=message):
        signature.arguments(list(VALUES.values()))


def test_a_single_input_may_be_named_or_not():
    image = keras.Input((6, 6, 1), name="image")
    x = VALUES["image"]
    for structure, expected in ((image, x), ([image], [x]), ({"k": image}, {"k": x})):
        signature = Signature.of(keras.Model(structure, layers.Flatten()(image)))
        name = "k" if isinstance(structure, dict) else "image"
        found = signature.arguments({name: x})
        assert type(found) is type(expected)
        assert keras.tree.flatten(found)[0] is x
        assert keras.tree.flatten(signature.arguments(x))[0] is x


def test_label_shapes_are_those_of_the_logits():
    image = keras.Input((6, 6, 1))
    x = layers.GlobalAveragePooling2D()(layers.Conv2D(2, 3)(image))

    def shapes(units, activation):
        head = layers.Dense(units, activation, name="head")(x)
        return OriginalNetwork(keras.Model(image, head)).label_shapes["head"]

    assert shapes(4, None) == shapes(4, "softmax") == (4,)
    assert shapes(1, None) == shapes(1, "sigmoid") == (2,)
    assert shapes(4, "sigmoid") == (4, 2)
