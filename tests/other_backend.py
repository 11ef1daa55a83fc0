"""What a process on another Keras backend makes of a representation, for test_backends.py.

    python other_backend.py FOLDER

Reads FOLDER/nern.keras, FOLDER/small.keras, which is compressed, and FOLDER/images.npy; writes
FOLDER/{backend}.npz and the errors of what is not supported there to FOLDER/{backend}.json.
"""

import json
import pathlib
import sys

import keras
import numpy as np

import keras_nern


def results(nern, small, images):
    """Arrays by name: all that has to be the same on every backend."""
    ops = keras.ops
    original = {w.path: w for w in nern.base.weights}
    kernels = nern.predict_kernels()
    rebuilt = nern.reconstruct()
    teacher, student = nern.base(images, training=False), rebuilt(images, training=False)
    encoding = keras_nern.PositionalEncoding()
    permutation = keras_nern.Permutation.from_model(nern.base, "cross_filter")
    regularizer = keras_nern.SmoothnessRegularizer(filters=0.1, channels=0.2)
    shape = (2, 3)
    arrays = {
        "coordinates": nern.coordinates(),
        "features": encoding(nern.coordinates()),
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
        **{f"kernel {name}": kernel for name, kernel in kernels.items()},
    }
    return {name: ops.convert_to_numpy(array) for name, array in arrays.items()}


def refusals(nern, images):
    """Texts of the errors of what only TensorFlow's trainer does."""
    texts = {}
    for name in ("fit", "evaluate", "predict", "gather_second_moments"):
        try:
            getattr(nern, name)(images)
        except RuntimeError as error:
            texts[name] = str(error)
    return texts


def main(folder):
    """Computes and writes."""
    nern = keras.models.load_model(folder / "nern.keras")
    images = np.load(folder / "images.npy")
    small = keras.models.load_model(folder / "small.keras")
    backend = keras.backend.backend()
    np.savez(folder / f"{backend}.npz", **results(nern, small, images))
    # not to the same levels everywhere: where one is rounded up or down, others follow
    assert keras_nern.compress(nern, bits=8).relative_error() < nern.relative_error() + 0.01
    (folder / f"{backend}.json").write_text(json.dumps(refusals(nern, images)))


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
