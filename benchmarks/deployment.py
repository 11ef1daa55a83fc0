"""Do other runtimes compute the outputs of the rebuilt classifier, and how large are its files?

    pip install ai-edge-litert onnx onnxruntime openvino tf2onnx
    python benchmarks/deployment.py

Represents the ResNet20 of the package by reconstruction alone, rebuilds it from its compact file,
exports it to formats of `keras.Model.export`, and runs each export in its runtime on test images of
CIFAR-10.

Prints the versions; the bytes of the compact file and of a `.keras` file; and per format the bytes
of the export, the largest difference from the outputs of Keras, absolute and as a share of the
largest output, and the share of images that get the same class as in Keras.
"""

import importlib.metadata
import os
import pathlib
import tempfile

import cifar
import keras
import numpy as np
import runs
import tables
import tensorflow as tf

import keras_nern

PACKAGES = ("tensorflow", "keras", "ai-edge-litert", "onnx", "tf2onnx", "onnxruntime", "openvino")


def saved_model(path, images):
    """The outputs of a SavedModel."""
    served = tf.saved_model.load(path)
    return served.serve(images)


def litert(path, images):
    """The outputs of a `.tflite` file in LiteRT."""
    from ai_edge_litert.interpreter import Interpreter

    run = Interpreter(model_path=path).get_signature_runner()
    (name,) = run.get_input_details()
    (outputs,) = run(**{name: images}).values()
    return outputs


def onnx(path, images):
    """The outputs of an ONNX file in ONNX Runtime."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path)
    (outputs,) = session.run(None, {session.get_inputs()[0].name: images})
    return outputs


def openvino(path, images):
    """The outputs of an OpenVINO IR file on the CPU."""
    import openvino

    return openvino.compile_model(path, "CPU")(images)[0]


QUANTIZED = {"optimizations": [tf.lite.Optimize.DEFAULT]}
EXPORTS = {  # format and arguments of `export`, the name of the export, and its runtime
    "SavedModel": ("tf_saved_model", {}, "classifier", saved_model),
    "LiteRT": ("litert", {}, "classifier.tflite", litert),
    "LiteRT, int8 weights": ("litert", QUANTIZED, "classifier.tflite", litert),
    "ONNX": ("onnx", {}, "classifier.onnx", onnx),
    "OpenVINO": ("openvino", {}, "classifier.xml", openvino),
}


def main():
    """Prints the versions and a row per file."""
    parser = runs.parser(__doc__)
    cifar.add_arguments(parser)
    parser.add_argument("--images", type=int, default=1_000, help="number of test images")
    parser.add_argument("--steps", type=int, default=1_000, help="reconstruction steps")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    keras.utils.set_random_seed(options.seed)
    images = cifar.load(options.data_dir, "test")[0][: options.images].astype("float32")
    print(", ".join(f"{name} {importlib.metadata.version(name)}" for name in PACKAGES) + "\n")
    tables.print_header(
        ["file", "bytes", "largest difference", "relative to the largest output", "same class, %"]
    )
    nern = keras_nern.NeRNModel(keras_nern.models.load("resnet20-cifar10"))
    nern.compile(reconstruction_steps=options.steps)
    nern.fit(steps_per_epoch=options.steps, verbose=0)
    with tempfile.TemporaryDirectory() as folder:
        compact, whole = (pathlib.Path(folder) / f"classifier.{end}" for end in ("nern", "keras"))
        nern.export(compact)
        classifier = keras_nern.load(compact)
        classifier.save(whole)
        for path in (compact, whole):
            tables.print_row([f"`{path.suffix}`", f"{path.stat().st_size:,}", "", "", ""])
    print_exports(classifier, images)


def print_exports(classifier, images):
    """Prints a row per format."""
    expected = classifier.predict(images, batch_size=100, verbose=0)
    for name, (format, arguments, file, run) in EXPORTS.items():
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, file)
            classifier.export(path, format=format, verbose=False, **arguments)
            files = (one for one in pathlib.Path(folder).rglob("*") if one.is_file())
            size = sum(one.stat().st_size for one in files)
            outputs = np.asarray(run(path, images))
        off = np.abs(outputs - expected).max()
        relative = off / np.abs(expected).max()
        same = cifar.percent_equal(outputs.argmax(axis=1), expected.argmax(axis=1))
        tables.print_row([name, f"{size:,}", f"{off:.1e}", f"{relative:.1e}", f"{same:.1f}"])


if __name__ == "__main__":
    main()
