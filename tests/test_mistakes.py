"""Mistakes: a wrong value of each public argument raises an error that names the argument.

The wrong values follow from the kind of the argument. Nothing is trained, and nothing changes.
"""

import inspect
import re

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_nern
from keras_nern import callbacks, models, plots, tuner

layers = keras.layers
NAN, INF = float("nan"), float("inf")


# Kinds of arguments, as lists of wrong values.


def whole(minimum, *also, optional=False):
    """An integer of at least `minimum`."""
    wrong = [minimum - 1, 1.5, NAN, "a", [1], True, np.zeros(2), *also]
    return wrong if optional else [None, *wrong]


def real(minimum=None, *also):
    """A finite number of at least `minimum`."""
    below = [] if minimum is None else [minimum - 1e-3, minimum - 1]
    return [*below, NAN, INF, -INF, "a", None, [1.0], 1j, np.zeros(2), *also]


def one_of(*also, optional=True):
    """One of a few names."""
    wrong = ["nonsense", "", 3, 0.5, ["nonsense"], {}, b"nonsense", np.zeros(2), *also]
    return wrong if optional else [None, *wrong]


def flag():
    return ["yes", "", None, 2, 1.0, [], np.zeros(2)]


def path():
    return [None, 3, 0.5, [], ["a"], {}]


def model():
    return [None, "model", 3, [], layers.Dense(2), keras.Model, _unbuilt()]


def _unbuilt():
    return keras.Sequential([layers.Conv2D(2, 3), layers.Flatten()])


class _Shared:
    """What the calls work on, built once."""

    def __init__(self):
        keras.utils.set_random_seed(1)
        inputs = keras.Input((8, 8, 1), name="image")
        x = layers.Conv2D(4, 3, name="stem")(inputs)
        x = layers.BatchNormalization(name="bn")(x)
        x = layers.GlobalAveragePooling2D()(layers.Conv2D(6, 3, name="conv")(x))
        self.base = keras.Model(inputs, layers.Dense(3, name="head")(x), name="tiny")
        self.nern = keras_nern.NeRNModel(self.base, hidden_size=8, num_layers=2)
        self.nern.compile(reconstruction_steps=5, run_eagerly=True)
        self.x = np.random.default_rng(0).normal(size=(6, 8, 8, 1)).astype("float32")
        self.y = np.arange(6) % 3
        self.resnet = models.resnet_cifar(20, input_shape=(8, 8, 1), mean=0.5, std=0.5)
        self.kernel = np.ones((3, 3, 2, 4), "float32")
        self.permutation = keras_nern.Permutation.from_model(self.base)
        self.scores = keras_nern.kernel_importance(self.nern)

        self.before = self.state()

    def state(self):
        """All that a call could change, as arrays and text."""
        variables = [*self.nern.variables, *self.nern.optimizer.variables, *self.base.variables]
        variables += self.resnet.variables
        config = repr(self.nern.get_compile_config())
        regularizers = [repr(variable.regularizer) for variable in self.base.variables]
        return [np.array(variable) for variable in variables], config, regularizers

    def assert_unchanged(self):
        (variables, *others), (before, *others_before) = self.state(), self.before
        assert others == others_before
        assert all(map(np.array_equal, variables, before))


@pytest.fixture(scope="module")
def shared():
    return _Shared()


IMAGES = [
    *("images/", 3, NAN, [], {}, b"", object(), iter([]), range(3)),
    *(np.zeros((0, 8, 8, 1)), np.zeros((6, 9, 8, 1)), np.zeros((6, 8, 8)), np.zeros((8, 8, 1))),
    *(np.full((6, 8, 8, 1), NAN), np.full((6, 8, 8, 1), INF), np.zeros((6, 8, 8, 1), "complex64")),
    *(np.full((6, 8, 8, 1), "a"), {"picture": np.zeros((6, 8, 8, 1))}),
    tf.data.Dataset.from_tensors(np.zeros((9, 8, 1))),
    tf.data.Dataset.from_tensor_slices(np.zeros((0, 8, 8, 1))),
    tf.ragged.constant([[[[1.0]] * 8] * 8] * 6),
    *((_ for _ in ()), (one for one in [np.zeros((2, 9, 8, 1))])),
]
LABELS = [
    *("labels", 3, NAN, [], {}, object(), np.zeros(5), np.zeros((6, 2)), np.zeros((6, 1, 1))),
    *(np.full(6, 3), np.full(6, -1), np.full(6, 0.5), np.full(6, NAN), np.full(6, "cat")),
    {"tail": np.zeros(6)},
]
WEIGHTS = ["a", 3, NAN, {}, object(), np.zeros(5), np.full(6, NAN), np.full(6, "a")]
CALLBACKS = ["a", 3, [None], keras.callbacks.History, [keras.callbacks.History(), "a"]]
SELECTED = ["nonsense", ["nonsense"], 3, 0.5, [3], [None], {}, [layers.Dense(2)], ["stem", 3]]
OF_A_BASE = {"include": SELECTED, "exclude": SELECTED, "include_dense": flag()}
OF_BLOCKS = {"view": one_of(optional=False), "block_size": whole(1, optional=True), **OF_A_BASE}
OF_DATA = {"x": IMAGES, "y": LABELS, "sample_weight": WEIGHTS}
RATE_OR_WEIGHT = real(0.0)

# By call: a function, arguments that are right, and wrong values by argument. Functions take what
# is shared and the arguments. Calls are named by the public name that they belong to.
CALLS = {
    "NeRNModel": (
        lambda shared, **arguments: keras_nern.NeRNModel(**{"base": shared.base, **arguments}),
        {"num_layers": 2},
        {
            "base": model(),
            "hidden_size": whole(1, optional=True),
            "num_layers": whole(2, optional=True),
            "experts": [None, -1, 1.5, "a", [1], True, np.zeros(2), 10**6],
            "size": [-1, NAN, INF, "a", "", "3", "3 XB", "-3 kB", "1 B", 1e-9, [1.0], True, {}],
            "permutation": one_of(keras_nern.Permutation([(1, 2)])),
            "encoding": ["a", 3, [], layers.Dense, keras_nern.PositionalEncoding],
            "normalize": one_of(),
            "metric": one_of(optional=False),
            "feature_maps": one_of("additions", optional=False),
            "permutation_method": one_of(optional=False),
            **OF_BLOCKS,
            "bits": whole(2, 9, optional=True),
            "pruned": flag(),
            "residual": flag(),
            "output_activation": one_of("relu", optional=False),
            "teacher": [3, [], layers.Dense(2), "no-such-file.keras"],
        },
    ),
    "NeRNModel.compile": (
        lambda shared, **arguments: shared.nern.compile(**arguments),
        {},
        {
            "optimizer": [None, "nonsense", 3, [], object(), keras.optimizers.Adam],
            "loss": ["mse", 3, []],
            "loss_weights": [[1.0], 3],
            "reconstruction_steps": whole(0),
            "curvature_steps": whole(0),
            **dict.fromkeys(
                (
                    *("reconstruction_learning_rate", "curvature_learning_rate"),
                    *("distillation_learning_rate", "reconstruction_weight"),
                    *("logits_weight", "feature_map_weight"),
                ),
                RATE_OR_WEIGHT,
            ),
            "temperature": real(0.0, 0, 0.0),
            "kernel_sampling": ["most", 3, None, [], object(), np.zeros(2)],
            "distillation_sampling": ["most", 3, None, [], object(), np.zeros(2)],
            "gradient_centering": ["off", 3, None, [], np.zeros(2)],
            "metrics": ["accuracy", 3],
            "weighted_metrics": ["accuracy", 3],
            "steps_per_execution": whole(1),
            "learning_rate": [0.1],
        },
    ),
    "NeRNModel.fit": (
        lambda shared, **arguments: shared.nern.fit(**{"x": shared.x, "y": shared.y, **arguments}),
        {"verbose": 0},
        {
            **OF_DATA,
            "batch_size": whole(1, optional=True),
            "epochs": whole(0),
            "verbose": one_of(-1, optional=False),
            "callbacks": CALLBACKS,
            "validation_split": [1.0, 0.99, *real(0.0)[:6], "a", [0.5]],
            "validation_data": [(one, np.zeros(6)) for one in IMAGES[3:14]]
            + [(np.zeros((6, 8, 8, 1)), one) for one in LABELS]
            + [(), (1, 2, 3, 4), "a", 3],
            "shuffle": one_of(),
            "class_weight": ["a", 3, [1.0], {}, {"a": 1.0}, {-1: 1.0}, {0: -1.0}, {0: "a"}],
            "initial_epoch": whole(0),
            "steps_per_epoch": whole(1, optional=True),
            "validation_steps": whole(1, optional=True),
            "validation_batch_size": whole(1, optional=True),
            "validation_freq": [
                *(one for one in whole(1) if not isinstance(one, list)),
                [0],
                ["a"],
            ],
        },
    ),
    "NeRNModel.evaluate": (
        lambda shared, **arguments: shared.nern.evaluate(
            **{"x": shared.x, "y": shared.y, **arguments}
        ),
        {"verbose": 0},
        {
            "x": [None, *IMAGES],
            "y": LABELS,
            "sample_weight": WEIGHTS,
            "batch_size": whole(1, optional=True),
            "verbose": one_of(-1, optional=False),
            "steps": whole(1, optional=True),
            "callbacks": CALLBACKS,
            "return_dict": flag(),
        },
    ),
    "NeRNModel.gather_curvature": (
        lambda shared, **arguments: shared.nern.gather_curvature(**{"x": shared.x, **arguments}),
        {},
        {
            "x": [None, *IMAGES],
            "images": whole(1),
            "batch_size": whole(1),
            "verbose": one_of(-1, optional=False),
        },
    ),
    "NeRNModel.predict_kernels": (
        lambda shared, **arguments: shared.nern.predict_kernels(**arguments),
        {},
        {"layers": ["a", "", 3, 0.5, ["stem", "a"], [3], [None], {"a": 3}, np.zeros(2)]},
    ),
    "NeRNModel.scale_losses": (
        lambda shared, **arguments: shared.nern.scale_losses(**arguments),
        {},
        {"logits_loss": real(0.0), "reconstruction_loss": real(0.0), "loss": [1.0]},
    ),
    "NeRNModel.export": (
        lambda shared, **arguments: shared.nern.export(**arguments),
        {"filepath": "a.nern"},
        {
            "filepath": path(),
            "format": one_of(optional=False),
            "precision": one_of("int9", "int1", "float64", optional=False),
            "kept_precision": one_of("int8", "auto", optional=False),
            "max_bytes": [3],
        },
    ),
    "NeRNModel.save": (
        lambda shared, **arguments: shared.nern.save(**arguments),
        {"filepath": "a.keras"},
        {"filepath": [*path(), "a.h5", "a.hdf5", "a.npz", "a"], "overwrite": flag()},
    ),
    "NeRNModel.save_weights": (
        lambda shared, **arguments: shared.nern.save_weights(**arguments),
        {"filepath": "a.weights.h5"},
        {"filepath": [*path(), "a.h5", "a.keras"], "overwrite": flag()},
    ),
    "NeRNModel.load_weights": (
        lambda shared, **arguments: shared.nern.load_weights(**arguments),
        {"filepath": "a.weights.h5"},
        {"filepath": path()},
    ),
    "compress": (
        lambda shared, **arguments: keras_nern.compress(**{"nern": shared.nern, **arguments}),
        {},
        {
            "nern": model(),
            "bits": whole(2, 9),
            "sparsity": [1.0, 0, 0.0, *real(0.0)],
        },
    ),
    "compress by bytes": (
        lambda shared, **arguments: keras_nern.compress(shared.nern, **arguments),
        {"max_bytes": "10 kB", "verbose": 0},
        {
            "max_bytes": [None, -1, NAN, INF, "a", "", "3 XB", 0, [1.0], True, {}],
            "data": [None, *IMAGES],
            "verbose": one_of(-1, optional=False),
        },
    ),
    "compress by a drop": (
        lambda shared, **arguments: keras_nern.compress(
            shared.nern, **{"data": shared.x, "validation_data": (shared.x, shared.y), **arguments}
        ),
        {"max_drop": 1.0, "verbose": 0},
        {
            "max_drop": real(0.0),
            "validation_data": [
                *(None, np.zeros((6, 8, 8, 1)), (np.zeros((6, 8, 8, 1)), None)),
                *((np.zeros((6, 8, 8, 1)), wrong) for wrong in LABELS[:11]),
                *((wrong, np.zeros(6)) for wrong in IMAGES[3:14]),
            ],
        },
    ),
    "load": (
        lambda shared, **arguments: keras_nern.load(**arguments),
        {"path": "a.nern"},
        {
            "path": path(),
            "custom_objects": ["a", 3, [], object()],
            "max_bytes": whole(1),
            "residual": flag(),
        },
    ),
    "Permutation": (
        lambda shared, **arguments: keras_nern.Permutation(**arguments),
        {"grids": [(2, 3)]},
        {
            "grids": ["a", 3, None, [], [(0, 3)], [(2.0, 3.0)], [(2, 3, 1)], [("a", "b")], {}],
            "orders": ["a", 3, {}, [], [[0, 1]], [[0, 0, 1, 2, 3, 4]], [np.zeros(6)], [["a"] * 6]],
            "kind": one_of(),
            "method": one_of(),
            "metric": one_of(),
        },
    ),
    "Permutation.from_model": (
        lambda shared, **arguments: keras_nern.Permutation.from_model(
            **{"model": shared.base, **arguments}
        ),
        {},
        {
            "model": model(),
            "kind": one_of(),
            "method": one_of(optional=False),
            "metric": one_of(optional=False),
            "verbose": one_of(optional=False),
            **OF_BLOCKS,
        },
    ),
    "Permutation.from_positions": (
        lambda shared, **arguments: keras_nern.Permutation.from_positions(**arguments),
        {"positions": np.arange(6), "grids": [(2, 3)]},
        {
            "positions": ["a", 3, None, [], np.zeros(6), np.arange(5), [0.5] * 6, ["a"] * 6],
            "grids": ["a", 3, None, [], [(0, 3)], [(2.0, 3.0)], [(2, 3, 1)], [("a", "b")], {}],
            "kind": one_of(),
            "method": one_of(),
            "metric": one_of(),
        },
    ),
    "Permutation.check_grids": (
        lambda shared, **arguments: shared.permutation.check_grids(**arguments),
        {},
        {"grids": ["a", 3, None, [], [(2, 3)], [3], {}]},
    ),
    "Permutation.check_method": (
        lambda shared, **arguments: keras_nern.Permutation.check_method(**arguments),
        {"grids": [(300, 300)], "kind": "cross_filter", "method": "greedy"},
        {
            "grids": ["a", 3, None, [], [3], {}],
            "kind": one_of(),
            "method": one_of("fast_tsp", optional=False),
        },
    ),
    "Permutation.save": (
        lambda shared, **arguments: shared.permutation.save(**arguments),
        {},
        {"path": path()},
    ),
    "Permutation.load": (
        lambda shared, **arguments: keras_nern.Permutation.load(**arguments),
        {},
        {"path": path()},
    ),
    "PositionalEncoding": (
        lambda shared, **arguments: keras_nern.PositionalEncoding(**arguments),
        {},
        {"num_frequencies": whole(1), "base": real(0.0, 0, 2, 3.0)},
    ),
    "KernelPredictor": (
        lambda shared, **arguments: keras_nern.KernelPredictor(**arguments),
        {"hidden_size": 4},
        {
            "hidden_size": whole(1),
            "num_layers": whole(2),
            "block_length": whole(1),
            "encoding": ["a", 3, [], layers.Dense],
            "bits": whole(2, 9, optional=True),
            "pruned": flag(),
        },
    ),
    "LocalPredictor": (
        lambda shared, **arguments: keras_nern.LocalPredictor(**arguments),
        {"run_lengths": [5, 2, 3], "hidden_size": 4},
        {
            "run_lengths": [None, "a", 5, {}, [], [5], np.zeros(2), *([5, n] for n in whole(1))],
            "hidden_size": whole(1),
            "num_layers": whole(2),
            "block_length": whole(1),
            "bits": whole(2, 9, optional=True),
            "pruned": flag(),
        },
    ),
    "KernelPredictor.compress": (
        lambda shared, **arguments: shared.nern.predictor.compress(**arguments),
        {},
        {"sparsity": [1.0, *real(0.0)]},
    ),
    "SmoothnessRegularizer": (
        lambda shared, **arguments: keras_nern.SmoothnessRegularizer(**arguments),
        {},
        {
            "filters": real(0.0),
            "channels": real(0.0),
            "reduction": one_of(optional=False),
            "distance": one_of(optional=False),
        },
    ),
    "add_regularizer": (
        lambda shared, **arguments: keras_nern.add_regularizer(
            **{"model": shared.base, **arguments}
        ),
        {},
        {
            "model": model(),
            "regularizer": ["nonsense", 3, [], object()],
            "layers": [*SELECTED, "head", [], re.compile("nonsense"), lambda layer: False],
        },
    ),
    "smoothness_report": (
        lambda shared, **arguments: keras_nern.smoothness_report(
            **{"model": shared.base, **arguments}
        ),
        {},
        {
            "model": model(),
            "kinds": [*one_of(), None, keras_nern.Permutation([(1, 2)]), ["in_filter", 3]],
            "methods": [*one_of(), None, ["greedy", 3]],
            "metric": one_of(optional=False),
            "verbose": one_of(optional=False),
            **OF_BLOCKS,
        },
    ),
    "kernel_importance": (
        lambda shared, **arguments: keras_nern.kernel_importance(
            **{"nern": shared.nern, **arguments}
        ),
        {},
        {"nern": model(), "measure": one_of(optional=False), "seed": whole(0)},
    ),
    "prune": (
        lambda shared, **arguments: keras_nern.prune(
            **{"base": shared.base, "scores": shared.scores, "sparsity": 0.5, **arguments}
        ),
        {},
        {
            "base": model(),
            "scores": [
                *(None, "a", 3, [], {}, {"nonsense": np.ones((4, 1))}, {"stem": np.ones((1, 4))}),
                *({"stem": np.full((4, 1), NAN)}, {"stem": "a"}, {"stem": np.ones((4, 1)) * 1j}),
                {3: np.ones((4, 1))},
            ],
            "sparsity": [1.5, *real(0.0)],
            "per_layer": flag(),
        },
    ),
    "NoiseDataset": (
        lambda shared, **arguments: keras_nern.NoiseDataset(**{"base": shared.base, **arguments}),
        {"kind": "gaussian"},
        {
            "base": model(),
            "kind": one_of(optional=False),
            "batch_size": whole(1),
            "steps": whole(1),
            "limits": [(1, 0), (0,), (0, 1, 2), "ab", 3, None, (NAN, 1), (0, INF), ("a", "b"), []],
            "mean": ["a", None, NAN, INF, [1, 2], [[1]], {}, 1j],
            "stddev": [-1, "a", None, NAN, INF, [1, 2], [[1]], {}, 1j],
            "image_size": ["ab", 3, (0, 4), (4, 0), (1.5, 2), (4,), (4, 4, 4), ("a", "b"), {}],
            "seed": whole(0),
        },
    ),
    "UniformSampling": (
        lambda shared, **arguments: keras_nern.UniformSampling(**arguments),
        {},
        {"batch_size": whole(1)},
    ),
    "MagnitudeSampling": (
        lambda shared, **arguments: keras_nern.MagnitudeSampling(**arguments),
        {},
        {"batch_size": whole(1), "share": [1.5, *real(0.0)]},
    ),
    "callbacks.EvaluateRebuilt": (
        lambda shared, **arguments: callbacks.EvaluateRebuilt(**{"x": shared.x, **arguments}),
        {},
        {
            "x": [(one for one in [])],
            "frequency": whole(1),
            "batch_siz": [3],
            "return_dict": [True],
        },
    ),
    "callbacks.EvaluateRebuilt in fit": (
        lambda shared, **arguments: shared.nern.fit(
            shared.x,
            verbose=0,
            callbacks=[callbacks.EvaluateRebuilt(**{"x": shared.x, "y": shared.y, **arguments})],
        ),
        {},
        {
            "x": [None, *(one for one in IMAGES if not inspect.isgenerator(one))],
            "y": LABELS,
            "batch_size": whole(1, optional=True),
            "steps": whole(1, optional=True),
            "sample_weight": WEIGHTS,
        },
    ),
    "callbacks.LossWarmup": (
        lambda shared, **arguments: callbacks.LossWarmup(**arguments),
        {"steps": 3},
        {
            "steps": whole(1),
            "losses": ["logits_loss", "nonsense", 3, None, [3], ["loss"], ["curvature_loss"]],
        },
    ),
    "callbacks.SwitchPhase": (
        lambda shared, **arguments: callbacks.SwitchPhase(**arguments),
        {"relative_error": 0.1},
        {"relative_error": real(0.0), "frequency": whole(1)},
    ),
    "KernelSummaries": (
        lambda shared, **arguments: keras_nern.KernelSummaries(**arguments),
        {"log_dir": "logs"},
        {
            "log_dir": path(),
            "frequency": [*whole(1), "step"],
            "layers": ["stem", 3, [3]],
            "limit": whole(1),
        },
    ),
    "KernelSummaries in fit": (
        lambda shared, **arguments: shared.nern.fit(
            shared.x, verbose=0, callbacks=[keras_nern.KernelSummaries("logs", **arguments)]
        ),
        {},
        {"layers": [["nonsense"], ["stem", "head"]]},
    ),
    "models.resnet_cifar": (
        lambda shared, **arguments: models.resnet_cifar(**arguments),
        {},
        {
            "depth": one_of(18, 20.5, optional=False),
            "classes": whole(1),
            "shortcut": one_of(optional=False),
            "input_shape": ["a", 3, None, (), (32, 32), (0, 8, 3), (1.5, 8, 3), (8, 8, 3, 1), {}],
            "mean": ["a", None, NAN, [1, 2], {}, 1j],
            "std": ["a", None, NAN, 0, -1.0, [1, 2], [0.1, 0, 0.1], {}, 1j],
            "name": [3, [], 0.5],
        },
    ),
    "models.load": (
        lambda shared, **arguments: models.load(**arguments),
        {},
        {"name": one_of(optional=False)},
    ),
    "models.load_torch_weights": (
        lambda shared, **arguments: models.load_torch_weights(
            **{"model": shared.resnet, "state": {}, **arguments}
        ),
        {},
        {
            "model": model(),
            "state": [None, 3, [], {}, {"a": np.zeros(3)}, {3: np.zeros(3)}, 0.5],
        },
    ),
    "plots.plot_kernels": (
        lambda shared, **arguments: plots.plot_kernels(
            **{"original": shared.kernel, "predicted": shared.kernel, **arguments}
        ),
        {},
        {
            "original": [
                "a",
                3,
                None,
                [],
                np.ones(3),
                np.ones((3, 3, 4, 2)),
                np.ones((2,) * 6),
                {},
            ],
            "predicted": ["a", 3, None, [], np.ones(3), np.ones((3, 3, 4, 2)), {}],
            "limit": whole(1),
        },
    ),
    "plots.plot_grids": (
        lambda shared, **arguments: plots.plot_grids(
            **{"kernels": {"a": shared.kernel}, **arguments}
        ),
        {},
        {
            "kernels": [None, "a", 3, [], {}, {"a": np.ones(3)}, {"a": "b"}, {"a": None}],
            "orders": [
                *("a", 3, [1], {"b": np.arange(8)}, {"a": np.arange(7)}, {"a": "b"}, {"a": None}),
                *({"a": np.zeros(8, int)}, {"a": np.arange(8) + 1}, {"a": np.arange(8.0) / 2}),
            ],
            "limit": whole(1),
        },
    ),
    "plots.plot_images": (
        lambda shared, **arguments: plots.plot_images(**{"images": shared.x, **arguments}),
        {},
        {
            "images": [
                *("a", 3, None, [], {}, np.zeros((8, 8, 1)), np.zeros((0, 8, 8, 1))),
                *(np.zeros((2, 8, 8, 2)), np.full((2, 8, 8, 1), "a"), np.full((2, 8, 8, 1), 1j)),
            ],
            "titles": [3, ["a"], {}],
            "limit": whole(1),
        },
    ),
    "plots.plot_layer_errors": (
        lambda shared, **arguments: plots.plot_layer_errors(**{"nern": shared.nern, **arguments}),
        {},
        {"nern": model(), "measure": one_of(optional=False)},
    ),
    "plots.plot_history": (
        lambda shared, **arguments: plots.plot_history(**arguments),
        {},
        {"history": [None, "a", 3, {}, [], [3], [{}], [{"phase": "a"}], keras.callbacks.History()]},
    ),
    "plots.plot_importance": (
        lambda shared, **arguments: plots.plot_importance(**arguments),
        {},
        {"scores": [None, "a", 3, [], {}, {"a": np.ones(3)}, {"a": "b"}, {"a": np.ones((0, 2))}]},
    ),
    "plots.plot_pareto_front": (
        lambda shared, **arguments: plots.plot_pareto_front(**arguments),
        {},
        {"front": [None, "a", 3, [], {}]},
    ),
    "tuner.NeRNHyperModel": (
        lambda shared, **arguments: tuner.NeRNHyperModel(
            **{"base": shared.base, "max_bytes": 10_000, **arguments}
        ),
        {},
        {
            "base": model(),
            "max_bytes": [1, *real(0.0)],
            "hidden_size": [
                *whole(1, [], [None], [4, 4], optional=True)[:4],
                [0],
                ["a"],
                [],
                [4, 4],
            ],
            "permutation": [*one_of(), [], ["in_filter", 3], [keras_nern.Permutation([(1, 2)])]],
            "bits": [1, 9, "a", 1.5, [], [9], [4, 4]],
            "num_layers": [1, "a", 1.5, [], [1], [3, 3]],
            "experts": [0, "a", None, 1.5, [], [0], ["auto", None], [3, 3], 10**6],
            "num_frequencies": [0, "a", 1.5, [], [0], [4, 4], [4, None]],
            "encoding_base": [0, 2, "a", NAN, [], [2], [0.5, 0.5], [0.5, None]],
            "narrowest": whole(1, 101),
            "compile_arguments": [
                "a",
                3,
                [1],
                {"nonsense": 3},
                {"loss": "mse"},
                {"temperature": 0},
            ],
            "encoding": [keras_nern.PositionalEncoding()],
            "pruned": [True],
            "size": [0.4, "3 kB"],
            "normalize": one_of(),
            "metric": one_of(optional=False),
            "nonsense": [3],
            **OF_BLOCKS,
        },
    ),
    "tuner.pareto_front": (
        lambda shared, **arguments: tuner.pareto_front(**arguments),
        {},
        {"tuner": [None, "a", 3, [], object()]},
    ),
}


# Arguments that any value suits, or that Keras or keras-tuner checks.
UNCHECKED = {"title", "name", "tunable", "zipped", "max_shard_size"}


def _resolved(call):
    """The function or class that a call is named by."""
    found = keras_nern
    for name in call.partition(" ")[0].split("."):
        found = getattr(found, name)
    return found


def _is_of(module, value):
    """Whether a function or class is public in a module, rather than imported for its use."""
    if module in (keras_nern, tuner):  # whose names are all public
        return True
    return value.__module__ == module.__name__


def _parameters(function):
    parameters = inspect.signature(function).parameters.values()
    variable = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    return {one.name for one in parameters if one.kind not in variable} - {"self"}


def test_every_argument_of_every_public_function_has_mistakes():
    listed = {}
    for call, (_, _, wrong) in CALLS.items():
        listed.setdefault(_resolved(call), set()).update(wrong)
    public = {
        value
        for module in (keras_nern, callbacks, models, plots, tuner)
        for name, value in vars(module).items()
        if callable(value) and not name.startswith("_") and _is_of(module, value)
    }
    for value in public - {keras_nern.AllKernels, models.list_models}:
        assert _parameters(value) - UNCHECKED <= listed.get(value, set()), value
    for function, wrong in listed.items():
        assert _parameters(function) - UNCHECKED <= wrong, function


MISTAKES = [
    pytest.param(function, arguments, argument, values, id=f"{call} {argument}")
    for call, (function, arguments, wrong) in CALLS.items()
    for argument, values in wrong.items()
]


@pytest.mark.parametrize(("function", "arguments", "argument", "values"), MISTAKES)
def test_an_error_names_the_argument(
    shared, tmp_path, monkeypatch, function, arguments, argument, values
):
    monkeypatch.chdir(tmp_path)
    named = re.compile(rf"\b{argument.removesuffix('s')}s?\b")
    for value in values:
        given = repr(value)[:80]
        try:
            function(shared, **{**arguments, argument: value})
        except (ValueError, TypeError) as error:
            text = str(error)
        else:
            text = "was accepted"
        assert named.search(text), f"{argument}={given}: {text}"
    assert not list(tmp_path.iterdir())
    shared.assert_unchanged()
