"""Which networks of keras.applications can be represented, and at what cost?

    python benchmarks/coverage.py

Builds one network of every family, or with --all every network, with weights=None at its smallest
input size. Each is represented, trained for a few steps of reconstruction and of distillation, and
rebuilt. As a check, the original kernels are then copied into the rebuilt network, whose outputs
must equal the base's bit by bit. Every network runs in a process of its own.

Prints the number of represented kernels, their blocks, the share of all weights that they hold, the
mean seconds of a step in each phase (without the first step, which traces the graph), the peak
memory of the process and whether the outputs were equal ("exact").
"""

import inspect
import json
import statistics

import keras
import measure
import numpy as np
import runs
import tables

import keras_nern
from keras_nern.network.blocks import Blocks

SMALLEST = {"InceptionV3": 75, "InceptionResNetV2": 75, "Xception": 71}  # others: 32
FAMILIES = (
    *("VGG16", "ResNet50", "ResNet50V2", "DenseNet121", "InceptionV3", "InceptionResNetV2"),
    *("Xception", "MobileNet", "MobileNetV2", "MobileNetV3Small", "NASNetMobile"),
    *("EfficientNetB0", "EfficientNetV2B0", "ConvNeXtTiny"),
)
STEPS = 3
COLUMNS = (
    *("network", "input", "kernels", "blocks", "represented weights, %"),
    *("s per reconstruction step", "s per distillation step"),
    *("peak memory, MB", "exact"),
)


def main():
    """Prints one row per network, or with `--run` the cells of one row."""
    networks = [
        name
        for name, make in inspect.getmembers(keras.applications, inspect.isfunction)
        if name[0].isupper()
    ]
    parser = runs.parser(__doc__, run=("NETWORK",))
    parser.add_argument("--networks", nargs="+", choices=networks, default=FAMILIES)
    parser.add_argument("--all", action="store_true", help="run all networks")
    parser.add_argument("--view", choices=("crop", "block"), default="block")
    parser.add_argument("--hidden-size", type=int, default=160, help="width of the predictor")
    options = parser.parse_args()
    if options.run:
        print(json.dumps(run(options, *options.run)))
        return
    tables.print_header(COLUMNS)
    for name in networks if options.all else options.networks:
        tables.print_row([name, *runs.in_new_process(name)])


def run(options, name):
    """The cells of one network's row, except its name."""
    keras.utils.set_random_seed(0)
    side = SMALLEST.get(name, 32)
    make = getattr(keras.applications, name)
    base = make(weights=None, input_shape=(side, side, 3), include_top=True, classes=10)
    images = np.random.default_rng(0).uniform(0, 255, (2, side, side, 3)).astype("float32")
    expected = base(images, training=False).numpy()
    nern = keras_nern.NeRNModel(base, options.hidden_size, view=options.view)
    nern.compile(distillation_sampling="uniform", reconstruction_steps=0)
    reconstruction = measure.step_seconds(nern, steps_per_epoch=STEPS)
    noise = keras_nern.NoiseDataset(base, "uniform", 2, STEPS, limits=(0.0, 255.0))
    distillation = measure.step_seconds(nern, x=noise, steps_per_epoch=STEPS)

    rebuilt = nern.reconstruct()
    original_kernels = Blocks(base, view=options.view).kernels
    for kernel, copy in zip(
        original_kernels, Blocks(rebuilt, view=options.view).kernels, strict=True
    ):
        copy.variable.assign(kernel.variable)
    exact = np.array_equal(rebuilt(images, training=False).numpy(), expected)
    table = nern.summary_table()
    share = 100 * table.weights / (table.weights + table.kept_weights)
    return [
        f"{side} x {side}",
        len(table.layers),
        f"{table.blocks:,}",
        f"{share:.1f}",
        f"{statistics.mean(reconstruction):.3f}",
        f"{statistics.mean(distillation):.2f}",
        f"{measure.peak_mb():.0f}",
        "yes" if exact else "NO",
    ]


if __name__ == "__main__":
    main()
