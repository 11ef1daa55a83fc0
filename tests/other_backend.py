"""Uses a representation on another Keras backend, in a process that test_backends.py starts.

    python other_backend.py FOLDER

Reads nern.keras, the compressed small.keras, local.keras with local predictors, its compact file
local.nern, residual.nern with integers alone, and images.npy from FOLDER. Writes the results to
FOLDER/{backend}.npz, and the errors of unsupported methods to FOLDER/{backend}.json.
"""

import json
import pathlib
import sys

import keras
import numpy as np

import keras_nern


def results(nern, small, images):
    """The arrays, by name, that must be the same on every backend."""
    ops = keras.ops
    original = {w.path: w for w in nern.base.weights}
    rebuilt = nern.reconstruct()
    teacher, student = nern.base(images, training=False), rebuilt(images, training=False)
    permutation = keras_nern.Permutation.from_model(nern.base, "cross_filter")
    regularizer = keras_nern.SmoothnessRegularizer(filters=0.1, channels=0.2)
    shape = (2, 3)
    arrays = {
        "coordinates": nern.coordinates(),
        "features": keras_nern.PositionalEncoding()(nern.coordinates()),
        "blocks": nern.predictor(nern.coordinates()),
        "compressed": small.predictor(nern.coordinates()),
        "called": nern(images),
        "rebuilt": student,
        "relative error": nern.relative_error(),
        "logits": keras_nern.losses.logits_distillation_loss(teacher, student),
        "maps": keras_nern.losses.feature_map_distillation_loss([teacher], [student]),
        "reconstruction": keras_nern.losses.reconstruction_loss(
            ops.ones(shape), ops.zeros(shape), ops.ones(shape)
        ),
        "smoothness": regularizer(next(w for name, w in original.items() if "kernel" in name)),
        "bits": permutation.bits,
        **{f"order {i}": order for i, order in enumerate(permutation.orders)},
        **{f"kernel {name}": kernel for name, kernel in nern.predict_kernels().items()},
    }
    return {name: ops.convert_to_numpy(array) for name, array in arrays.items()}


def local_results(local, path, images):
    """The arrays, by name, of local predictors and of the classifier in their compact file."""
    rebuilt = keras_nern.load(path)
    arrays = {
        "local called": local(images),
        "local loaded": rebuilt(images),
        "local relative error": local.relative_error(),
        **{f"local kernel {name}": kernel for name, kernel in local.predict_kernels().items()},
        **{f"loaded {i}": weight for i, weight in enumerate(rebuilt.weights)},
    }
    return {name: keras.ops.convert_to_numpy(array) for name, array in arrays.items()}


def residual_results(path):
    """The arrays, by name, of the classifier in a compact file of integers."""
    weights = keras_nern.load(path).weights
    return {f"residual {i}": keras.ops.convert_to_numpy(one) for i, one in enumerate(weights)}


def errors(nern, images):
    """The error messages of the methods that need TensorFlow."""
    messages = {}
    for name in ("fit", "evaluate", "predict", "gather_curvature"):
        try:
            getattr(nern, name)(images)
        except RuntimeError as error:
            messages[name] = str(error)
    return messages


def main(folder):
    """Computes and writes the results."""
    nern = keras.models.load_model(folder / "nern.keras")
    small = keras.models.load_model(folder / "small.keras")
    local = keras.models.load_model(folder / "local.keras")
    images = np.load(folder / "images.npy")
    backend = keras.backend.backend()
    arrays = results(nern, small, images) | local_results(local, folder / "local.nern", images)
    arrays |= residual_results(folder / "residual.nern")
    np.savez(folder / f"{backend}.npz", **arrays)
    # Levels may differ between backends: a level that is rounded differently changes later ones.
    for one in (nern, local):
        assert keras_nern.compress(one, bits=8).relative_error() < one.relative_error() + 0.01
    (folder / f"{backend}.json").write_text(json.dumps(errors(nern, images)))


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
