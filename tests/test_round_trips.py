"""Every base of `bases` is wrapped, fitted, rebuilt, saved, exported, and loaded elsewhere."""

import pickle

import bases
import keras
import numpy as np
import processes
import pytest

import keras_nern
from keras_nern.network.kernels import walk_layers
from keras_nern.utils.backend import to_int

REFUSED = {**bases.REFUSED_WHEN_WRAPPED, **bases.REFUSED_BY_FIT}
# One or two of each kind; the others are slow.
DEFAULT = (
    *("SeparableConv2D", "SpectralNormalization", "Normalization", "MultiHeadAttention"),
    *("stateful LSTM", "TimeDistributed of unknown length", "TextVectorization", "StringLookup"),
    *("int8", "LoRA", "nested and compiled", "tied inside"),
    *("nested structures", "only training reaches", "subclassed of a dict"),
    *("own variables", "assets", "assigned in every call", "training within"),
    *("raw variable", "tied outside", "unsaved state"),
)
TRACED = ("float8",)  # Keras (3.15) has no gradient of it in eager execution

pytestmark = pytest.mark.filterwarnings(
    "ignore:`build\\(\\)` was called on layer"  # Keras warns of layers that are never called
)


def _names(names, default=DEFAULT):
    slow = pytest.mark.slow
    return [name if name in default else pytest.param(name, marks=slow) for name in names]


# Loads the two files of each folder that it is told of, and writes their outputs.
LOADER = """
import pathlib, pickle, sys, warnings
import keras, bases, keras_nern
warnings.filterwarnings("ignore", message="`build\\\\(\\\\)` was called on layer")
load = {
    "base.keras": lambda path: keras.models.load_model(path, safe_mode=False),
    "base.nern": keras_nern.load,
}
for line in sys.stdin:
    folder = pathlib.Path(line.strip())
    batch = pickle.loads((folder / "batch.pickle").read_bytes())
    batch = keras.tree.map_structure(keras.ops.convert_to_tensor, batch)
    found = {}
    for path in folder.glob("base.*"):
        try:
            outputs = load[path.name](path)(batch, training=False)
            found[path.name] = keras.tree.map_structure(keras.ops.convert_to_numpy, outputs)
        except Exception as error:
            found[path.name] = repr(error)
    (folder / "outputs.pickle").write_bytes(pickle.dumps(found))
    print("done", flush=True)
"""


@pytest.fixture(scope="module")
def elsewhere():
    """A function from a folder to the outputs of its files, loaded in another process."""
    loader = processes.start(LOADER, piped=True)

    def load(folder):
        print(folder, file=loader.stdin, flush=True)
        assert loader.stdout.readline() == "done\n"
        return pickle.loads((folder / "outputs.pickle").read_bytes())

    yield load
    loader.communicate()


def _made(name):
    keras.utils.set_random_seed(1)
    base, inputs = bases.BASES[name]()
    return base, keras.tree.map_structure(keras.ops.convert_to_tensor, inputs)


def _wrapped(base, eagerly=True):
    nern = keras_nern.NeRNModel(base, hidden_size=8, num_layers=2)
    nern.compile("sgd", reconstruction_steps=3, run_eagerly=eagerly)
    return nern


def _state(base):
    """Bytes of all variables: weights, seeds, metrics, optimizers and recurrent states."""
    models = [one for _, one in [("", base), *walk_layers(base)] if isinstance(one, keras.Model)]
    optimizers = [one.optimizer.variables for one in models if getattr(one, "optimizer", None)]
    states = [getattr(layer, "states", None) or [] for _, layer in walk_layers(base)]
    variables = [base.variables, base.metrics_variables, optimizers, states]
    return [keras.ops.convert_to_numpy(v).tobytes() for v in keras.tree.flatten(variables)]


def _assert_same(outputs, expected, **tolerance):
    pairs = zip(keras.tree.flatten(outputs), keras.tree.flatten(expected), strict=True)
    for one, other in pairs:
        np.testing.assert_allclose(*map(keras.ops.convert_to_numpy, (one, other)), **tolerance)


@pytest.mark.parametrize("name", _names([name for name in bases.BASES if name not in REFUSED]))
def test_a_base_goes_round(name, elsewhere, tmp_path):
    base, inputs = _made(name)
    batch = keras.tree.map_structure(lambda one: one[: bases.BATCH], inputs)
    before = _state(base)
    nern = _wrapped(base, eagerly=name not in TRACED)
    history = nern.fit(inputs, batch_size=bases.BATCH, verbose=0)
    assert to_int(nern.reconstruction_iterations) == to_int(nern.phase_iterations) == 3
    assert np.isfinite(history.history["loss"]).all()
    nern.evaluate(inputs, batch_size=bases.BATCH, verbose=0)
    nern.predict(inputs, batch_size=bases.BATCH, verbose=0)
    outputs = nern(batch)
    _assert_same(nern.reconstruct()(batch, training=False), outputs, rtol=1e-4, atol=1e-5)

    original = nern._original
    copy = original.rebuilt([kernel.variable for kernel in original.blocks.kernels])
    _assert_same(copy(batch, training=False), original.functional_call(batch), rtol=0)

    nern.save(tmp_path / "base.keras")
    if name in bases.REFUSED_BY_EXPORT:
        with pytest.raises(ValueError, match=bases.REFUSED_BY_EXPORT[name]):
            nern.export(tmp_path / "base.nern")
    else:
        nern.export(tmp_path / "base.nern")
    assert _state(base) == before
    numpy = keras.tree.map_structure(keras.ops.convert_to_numpy, batch)
    (tmp_path / "batch.pickle").write_bytes(pickle.dumps(numpy))
    for loaded in elsewhere(tmp_path).values():
        if name in bases.RANDOM and not isinstance(loaded, str):
            continue
        _assert_same(loaded, outputs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "name",
    _names(
        [name for name in bases.BASES if name not in {**REFUSED, **bases.REFUSED_BY_EXPORT}],
        default=("SeparableConv2D", "LoRA", "nested and compiled", "tied inside"),
    ),
)
def test_integers_and_vectors_of_a_base_go_round(name, tmp_path):
    base, inputs = _made(name)
    batch = keras.tree.map_structure(lambda one: one[: bases.BATCH], inputs)
    before = _state(base)
    nern = keras_nern.NeRNModel(base, size=0)
    nern.gather_curvature(inputs, batch_size=bases.BATCH, verbose=0)
    small = keras_nern.compress(nern, max_bytes="1 MB", verbose=0)
    generator = np.random.default_rng(3)
    for vector in small.residual_layer.vectors:
        vector.assign(generator.normal(size=vector.shape))
    outputs = small(batch)
    _assert_same(small.reconstruct()(batch, training=False), outputs, rtol=1e-4, atol=1e-5)
    small.export(tmp_path / "base.nern")
    if name not in bases.RANDOM:
        loaded = keras_nern.load(tmp_path / "base.nern")
        _assert_same(loaded(batch, training=False), outputs, rtol=1e-4, atol=1e-5)
    assert _state(base) == before


def test_layers_given_as_include_and_exclude_are_not_trained(tmp_path):
    base, inputs = _made("lists of layers")
    before = _state(base)
    include = [base.branches[0], base.branches[1][1], base.conv]
    nern = keras_nern.NeRNModel(base, 8, num_layers=2, include=include, exclude=base.conv)
    nern.compile("sgd", reconstruction_steps=3, run_eagerly=True)
    own = {id(variable) for variable in base.variables}
    assert not any(id(variable) in own for variable in nern.variables)
    nern.fit(inputs, verbose=0)
    assert _state(base) == before
    assert len(nern.predict_kernels()) == 2
    nern.save(tmp_path / "nern.keras")
    loaded = keras.models.load_model(tmp_path / "nern.keras")
    _assert_same(loaded(inputs), nern(inputs), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["LoRA", "int8"])
def test_loading_weights_leaves_the_base_as_it_was(name, tmp_path):
    base, _ = _made(name)
    before, nern = _state(base), _wrapped(base)
    nern.save_weights(tmp_path / "nern.weights.h5")
    for _ in range(2):
        nern.load_weights(tmp_path / "nern.weights.h5")
        assert _state(base) == before


@pytest.mark.parametrize("name", _names(REFUSED))
def test_a_base_that_cannot_go_round_is_refused(name, tmp_path):
    base, inputs = _made(name)
    before = _state(base)
    if name in bases.REFUSED_WHEN_WRAPPED:
        with pytest.raises(ValueError, match=REFUSED[name]):
            _wrapped(base)
    else:
        nern = _wrapped(base)
        for attempt in (
            lambda: nern.fit(inputs, verbose=0),
            nern.reconstruct,
            lambda: nern.save(tmp_path / "base.keras"),
        ):
            with pytest.raises(ValueError, match=REFUSED[name]):
                attempt()
        if name != "LoRA on int8":  # whose matrices a compact file stores as they are
            with pytest.raises(ValueError, match="Received: "):
                nern.export(tmp_path / "base.nern")
        assert to_int(nern.reconstruction_iterations) == 0
        assert not list(tmp_path.iterdir())
    assert _state(base) == before
