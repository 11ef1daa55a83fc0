"""Trains the ResNet20 of the package's own zoo on CIFAR-10, smooth or not.

    python benchmarks/train_resnet20.py resnet20-cifar10.weights.h5 --epochs 20
    python benchmarks/train_resnet20.py resnet20-cifar10-smooth.weights.h5 --epochs 20 \
        --smoothness 0.01

SGD with Nesterov's momentum on flipped and shifted images, batches of 128, one cycle of
the learning rate (linear from 0 to its peak over the first fifth, then half a cosine to
0), decoupled weight decay on the kernels. The last weights are kept, whatever they reach:
test images are only looked at when all is done. Prints the test accuracy
and, on average over the layers, the cosine of neighbouring kernels; with `--report` those
of weights that are there already.
"""

import argparse
import pathlib
import time

import cifar10

BATCH_SIZE = 128
PEAK_RATE = 0.2
WEIGHT_DECAY = 5e-3  # of the rate: as 5e-4 in the loss, under momentum 0.9


def main():
    """Trains, saves, reports."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    cifar10.add_arguments(parser)
    parser.add_argument(
        "output", type=pathlib.Path, help="where to write the weights (.weights.h5)"
    )
    parser.add_argument("--smoothness", type=float, default=0.0, help="both strengths")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--report", action="store_true", help="train nothing, read `output`")
    options = parser.parse_args()
    if not options.output.name.endswith(".weights.h5"):
        parser.error(f"output must end in .weights.h5. Received: {options.output}")
    if not options.report:
        train(options)
    report(options)


def train(options):
    """One network from nothing."""
    import keras

    import keras_nern

    start = time.perf_counter()
    keras.utils.set_random_seed(options.seed)
    images, labels = cifar10.load(options.data_dir, "train")
    model = keras_nern.models.resnet_cifar(20, shortcut="B")
    if options.smoothness:
        strength = options.smoothness
        keras_nern.add_regularizer(
            model, keras_nern.SmoothnessRegularizer(filters=strength, channels=strength)
        )
    steps = len(images) // BATCH_SIZE
    total = steps * options.epochs
    schedule = keras.optimizers.schedules.CosineDecay(
        initial_learning_rate=0.0,
        decay_steps=total - total // 5,
        warmup_target=PEAK_RATE,
        warmup_steps=total // 5,
    )
    optimizer = keras.optimizers.SGD(schedule, 0.9, nesterov=True, weight_decay=WEIGHT_DECAY)
    optimizer.exclude_from_weight_decay(var_names=["gamma", "beta", "bias"])
    model.compile(
        optimizer,
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
        jit_compile=False,  # on CPUs, XLA's convolutions are the slower ones
    )
    dataset = cifar10.augmented(images, BATCH_SIZE, options.seed, labels=labels)
    model.fit(dataset, epochs=options.epochs, steps_per_epoch=steps, verbose=2)
    trained = keras_nern.models.resnet_cifar(20)  # without optimizer and regularizers
    trained.set_weights(model.get_weights())
    with keras_nern.utils.files.atomic_write(options.output) as path:
        trained.save_weights(path)
    seconds = time.perf_counter() - start
    print(f"{seconds:.0f} s")


def report(options):
    """The network that was kept."""
    import keras_nern

    model = keras_nern.models.resnet_cifar(20)
    model.load_weights(options.output)
    images, labels = cifar10.load(options.data_dir, "test")
    classes = model.predict(images, batch_size=500, verbose=0).argmax(axis=1)
    print(f"test accuracy {100 * (classes == labels).mean():.2f} %")
    smoothness = keras_nern.smoothness_report(model, kinds=())
    along_channels, along_filters = smoothness.mean("as trained")
    print(f"cosine of neighbours: {along_channels:.3f} along channels, {along_filters:.3f} filters")


if __name__ == "__main__":
    main()
