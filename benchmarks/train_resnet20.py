"""Trains the ResNet20 networks of `keras_nern.models.load` on CIFAR-10.

    python benchmarks/train_resnet20.py resnet20-cifar10.weights.h5 --epochs 20
    python benchmarks/train_resnet20.py resnet20-cifar10-smooth.weights.h5 --epochs 20 \
        --smoothness 0.01

    python benchmarks/train_resnet20.py resnet20-cifar10.weights.h5 --epochs 24 \
        --initial first.weights.h5 --teacher --peak-rate 0.1

Uses SGD with Nesterov momentum on flipped and shifted images in batches of 128, decoupled weight
decay on the kernels, and one cycle of the learning rate: linear from 0 to its peak over the first
fifth of the steps, then half a cosine back to 0. With --teacher, the labels are the softened
outputs of the ResNet20 in `--weights` (Hinton et al., "Distilling the Knowledge in a Neural
Network", 2015). A training that was interrupted continues after its last whole epoch, from the
folder `output` + ".backup".

Saves the weights of the last step, and only then evaluates test images. Prints the test accuracy
and the mean cosine of neighboring kernels, averaged over the layers. With --report, only prints
them for existing weights.
"""

import pathlib
import time

import cifar
import keras
import runs

import keras_nern
from keras_nern.utils.files import atomic_write

BATCH_SIZE = 128
PEAK_RATE = 0.2
WEIGHT_DECAY = 5e-3  # times the learning rate; like 5e-4 in the loss with momentum 0.9
TEMPERATURE = 4.0  # of the outputs of student and teacher


def main():
    """Trains, saves and reports."""
    parser = runs.parser(__doc__)
    cifar.add_arguments(parser)
    parser.add_argument("output", type=pathlib.Path, help="weights file to write (.weights.h5)")
    parser.add_argument(
        "--smoothness",
        type=float,
        default=0.0,
        help="strength of SmoothnessRegularizer, along filters and channels",
    )
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--peak-rate", type=float, default=PEAK_RATE)
    parser.add_argument("--initial", type=pathlib.Path, help="weights file to start from")
    parser.add_argument("--teacher", action="store_true", help="learn from a better ResNet20")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--report", action="store_true", help="train nothing, report the weights in `output`"
    )
    options = parser.parse_args()
    if not options.output.name.endswith(".weights.h5"):
        parser.error(f"output must end in .weights.h5. Received: {options.output}")
    if not options.report:
        train(options)
    report(options)


def train(options):
    """Trains one network and saves its weights."""
    start = time.process_time()
    keras.utils.set_random_seed(options.seed)
    images, labels = cifar.load(options.data_dir, "train")
    model = keras_nern.models.resnet_cifar(20, shortcut="B")
    trained = keras_nern.models.resnet_cifar(20)  # without optimizer and regularizers
    if options.initial:
        trained.load_weights(options.initial)
        model.set_weights(trained.get_weights())
    if options.teacher:
        labels = softened(cifar.resnet(20, options.weights), images)
    backup = keras.callbacks.BackupAndRestore(f"{options.output}.backup")
    fit(
        model,
        images,
        labels,
        options.epochs,
        options.smoothness,
        options.peak_rate,
        options.seed,
        [backup],
    )
    trained.set_weights(model.get_weights())
    with atomic_write(options.output) as path:
        trained.save_weights(path)
    print(f"{time.process_time() - start:.0f} core-seconds")


def softened(teacher, images):
    """The softened outputs of a teacher, averaged over images and their mirror images.

    Returns:
        float32 `(n, classes)`, probabilities.
    """
    logits = [
        teacher.predict(one, batch_size=500, verbose=0) for one in (images, images[:, :, ::-1])
    ]
    return keras.ops.convert_to_numpy(keras.ops.softmax(sum(logits) / 2 / TEMPERATURE))


def softened_loss(labels, logits):
    """The cross-entropy with `softened` labels, times the squared temperature."""
    loss = keras.losses.categorical_crossentropy(labels, logits / TEMPERATURE, from_logits=True)
    return TEMPERATURE**2 * loss


def fit(model, images, labels, epochs, smoothness, peak_rate, seed, callbacks=()):
    """Trains a network.

    Args:
        model: the network, which is compiled and gets the regularizer.
        images: uint8 `(n, 32, 32, 3)`.
        labels: int `(n,)`, or those of `softened`.
        epochs: number of epochs.
        smoothness: strength of the regularizer along filters and channels; 0 for none.
        peak_rate: peak of the learning rate.
        seed: seed of the order and the augmentation.
        callbacks: callbacks of `keras.Model.fit`. Defaults to none.
    """
    if smoothness:
        regularizer = keras_nern.SmoothnessRegularizer(filters=smoothness, channels=smoothness)
        keras_nern.add_regularizer(model, regularizer)
    steps_per_epoch = len(images) // BATCH_SIZE
    steps = steps_per_epoch * epochs
    schedule = keras.optimizers.schedules.CosineDecay(
        initial_learning_rate=0.0,
        decay_steps=steps - steps // 5,
        warmup_target=peak_rate,
        warmup_steps=steps // 5,
    )
    optimizer = keras.optimizers.SGD(schedule, 0.9, nesterov=True, weight_decay=WEIGHT_DECAY)
    optimizer.exclude_from_weight_decay(var_names=["gamma", "beta", "bias"])
    hard = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(
        optimizer,
        hard if labels.ndim == 1 else softened_loss,
        metrics=["accuracy"],
        jit_compile=False,  # XLA's convolutions are slower on CPUs
    )
    dataset = cifar.augmented(images, BATCH_SIZE, seed, labels=labels)
    model.fit(
        dataset,
        epochs=epochs,
        steps_per_epoch=steps_per_epoch,
        callbacks=list(callbacks),
        verbose=2,
    )


def report(options):
    """Prints accuracy and smoothness of the saved weights."""
    model = keras_nern.models.resnet_cifar(20)
    model.load_weights(options.output)
    images, labels = cifar.load(options.data_dir, "test")
    print(f"test accuracy: {cifar.accuracy(model, images, labels):.2f} %")
    smoothness = keras_nern.smoothness_report(model, kinds=())
    along_channels, along_filters = smoothness.mean("as trained")
    print(
        "mean cosine of neighboring kernels: "
        f"{along_channels:.3f} along channels, {along_filters:.3f} along filters"
    )


if __name__ == "__main__":
    main()
