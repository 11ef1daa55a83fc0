"""Which of Keras's own architectures are represented, and at what cost?

    python benchmarks/coverage.py

Builds each network of `keras.applications` with weights=None at the smallest input it takes
(one of every family, or with `--all` every one), wraps it, takes a step of reconstruction
and one of distillation and rebuilds it; then puts the original kernels back into the rebuilt
network, whose outputs must be the base's to the last bit. Prints layers (represented kernels),
blocks, share of weights represented, seconds of a step of each phase (the first, which traces
the network, not counted), and the peak of the process's memory. Each network is a process of
its own.
"""

import argparse
import inspect
import json
import subprocess
import sys
import time

import numpy as np
import tables

SMALLEST = {"InceptionV3": 75, "InceptionResNetV2": 75, "Xception": 71}  # others: 32
FAMILIES = (
    *("VGG16", "ResNet50", "ResNet50V2", "DenseNet121", "InceptionV3", "InceptionResNetV2"),
    *("Xception", "MobileNet", "MobileNetV2", "MobileNetV3Small", "NASNetMobile"),
    *("EfficientNetB0", "EfficientNetV2B0", "ConvNeXtTiny"),
)
STEPS = 3


def main():
    """Prints one row per network, or with --run the figures of one."""
    import keras

    everything = [
        name
        for name, make in inspect.getmembers(keras.applications, inspect.isfunction)
        if name[0].isupper()
    ]
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--networks", nargs="+", choices=everything, default=FAMILIES)
    parser.add_argument("--all", action="store_true", help="every network")
    parser.add_argument("--view", choices=("crop", "block"), default="block")
    parser.add_argument("--hidden-size", type=int, default=160)
    parser.add_argument("--run", metavar="NETWORK", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.run:
        print(json.dumps(run(options, options.run)))
        return
    tables.print_header(
        [
            *("network", "input", "kernels", "blocks", "represented, %"),
            *("s per reconstruction step", "s per distillation step", "peak MB", "exact"),
        ]
    )
    for name in everything if options.all else options.networks:
        command = [sys.executable, __file__, *sys.argv[1:], "--run", name]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        tables.print_row([name, *json.loads(done.stdout.splitlines()[-1])])


def run(options, name):
    """The cells of one row."""
    import keras
    import memory

    import keras_nern

    keras.utils.set_random_seed(0)
    side = SMALLEST.get(name, 32)
    make = getattr(keras.applications, name)
    arguments = {"weights": None, "input_shape": (side, side, 3), "include_top": True}
    base = make(classes=10, **arguments)
    images = np.random.default_rng(0).uniform(0, 255, (2, side, side, 3)).astype("float32")
    expected = base(images, training=False).numpy()
    nern = keras_nern.NeRNModel(base, options.hidden_size, view=options.view)
    nern.compile(distillation_sampling="uniform", reconstruction_steps=0)

    def seconds_per_step(**arguments):
        ends = []
        watch = keras.callbacks.LambdaCallback(
            on_train_batch_end=lambda batch, logs: ends.append(time.perf_counter())
        )
        nern.fit(steps_per_epoch=STEPS, verbose=0, callbacks=[watch], **arguments)
        return (ends[-1] - ends[0]) / (STEPS - 1)

    reconstruction = seconds_per_step()
    noise = keras_nern.NoiseDataset(base, "uniform", 2, STEPS, limits=(0.0, 255.0))
    distillation = seconds_per_step(x=noise)
    rebuilt = nern.reconstruct()
    selection = {"view": options.view}
    pairs = zip(
        keras_nern.network.blocks.Blocks(base, **selection).kernels,
        keras_nern.network.blocks.Blocks(rebuilt, **selection).kernels,
        strict=True,
    )
    for kernel, copy in pairs:
        copy.variable.assign(kernel.variable)
    exact = np.array_equal(rebuilt(images, training=False).numpy(), expected)
    table = nern.summary_table()
    share = 100 * table.weights / (table.weights + table.kept_weights)
    return [
        f"{side} x {side}",
        str(len(table.layers)),
        f"{table.blocks:,}",
        f"{share:.1f}",
        f"{reconstruction:.3f}",
        f"{distillation:.2f}",
        f"{memory.peak_mb():.0f}",
        "yes" if exact else "NO",
    ]


if __name__ == "__main__":
    main()
