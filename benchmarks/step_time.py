"""How long is a step, how many steps does an optimizer need, and is its memory constant?

    python benchmarks/step_time.py

Compares optimizers on the reconstruction of a trained ResNet20 (h=160, cross-filter), one table
row per optimizer, all from the same initial weights:

* milliseconds per step, and their ratio to those of the first row. The optimizers take turns in
  rounds of steps (median and standard deviation over rounds);
* steps (and seconds) until the relative squared error falls to several targets, the error after
  the last step, and the growth of the process's memory after the first tenth of the steps, all
  from one fit whose learning rate decays to 0 along a cosine.

`keras_nern.predictor.centering` explains centered gradients. AdamW with betas (0.5, 0.999) and rate
5e-3 represents Ranger, the optimizer of the reference implementation. After the table, prints the
seconds of a distillation step with 64 images.
"""

import statistics
import time

import cifar
import fits
import keras
import measure
import runs
import tables

import keras_nern
from keras_nern.predictor.predictor import OUTPUT_LAYER

TARGETS = (0.3, 0.2, 0.1)
EVERY = 100  # steps between measurements of the error
COLUMNS = (
    *("optimizer", "ms per step", "step time relative to first row"),
    *(f"steps (seconds) to error {target}" for target in TARGETS),
    *("final relative squared error", "memory growth, MB"),
)


def optimizers(steps):
    """Makes the optimizers for a fit of `steps` steps.

    Args:
        steps: length of the cosine decay.

    Returns:
        A dict from row name to `(optimizer, gradient_centering)`.
    """

    def cosine(rate):
        return keras.optimizers.schedules.CosineDecay(rate, steps)

    def muon():
        return keras.optimizers.Muon(
            cosine(1e-2), weight_decay=0.0, adam_weight_decay=0.0, exclude_layers=[OUTPUT_LAYER]
        )

    ranger = keras.optimizers.AdamW(cosine(5e-3), beta_1=0.5, beta_2=0.999)
    return {
        "Muon, 1e-2, centered gradients": (muon(), True),
        "Muon, 1e-2": (muon(), False),
        "AdamW, 2e-3, centered gradients": (keras.optimizers.AdamW(cosine(2e-3)), True),
        "AdamW, 2e-3": (keras.optimizers.AdamW(cosine(2e-3)), False),
        "AdamW, 5e-3": (keras.optimizers.AdamW(cosine(5e-3)), False),
        "AdamW as Ranger, 5e-3": (ranger, False),
    }


def main():
    """Measures and prints the table."""
    parser = runs.parser(__doc__)
    cifar.add_arguments(parser)
    parser.add_argument("--steps", type=int, default=5000, help="steps of the fits")
    parser.add_argument("--rounds", type=int, default=7, help="rounds of the step time")
    parser.add_argument("--round-steps", type=int, default=100, help="steps per round")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    base = cifar.resnet(20, options.weights)

    def model(optimizer, gradient_centering="auto"):
        keras.utils.set_random_seed(options.seed)
        nern = keras_nern.NeRNModel(base, hidden_size=160, permutation="cross_filter")
        nern.compile(optimizer=optimizer, gradient_centering=gradient_centering)
        return nern

    models = {name: model(*chosen) for name, chosen in optimizers(options.steps).items()}
    medians, spreads = step_times(models, options)
    tables.print_header(COLUMNS)
    first = next(iter(medians.values()))
    for name, chosen in optimizers(options.steps).items():
        seconds = medians[name]
        errors, growth = fit(model(*chosen), options.steps)
        reached = []
        for target in TARGETS:
            step = next((step for step, error in errors if error <= target), None)
            reached.append("not reached" if step is None else f"{step:,} ({step * seconds:.0f})")
        ratio = f"{seconds / first:.2f}"
        tables.print_row(
            [name, spreads[name], ratio, *reached, f"{errors[-1][1]:.4f}", f"{growth:.0f}"]
        )
    print_distillation_time(model("auto"), options)


def step_times(models, options):
    """Times the steps of several models that take turns.

    Args:
        models: dict from name to compiled `NeRNModel`.
        options: the options of the command line.

    Returns:
        `(medians, spreads)`: dicts from name to the median seconds per step, and to the table
        cell in milliseconds.
    """
    seconds = {name: [] for name in models}
    for nern in models.values():
        nern.fit(steps_per_epoch=options.round_steps, verbose=0)  # traces the step
    for _ in range(options.rounds):
        for name, nern in models.items():
            start = time.perf_counter()
            nern.fit(steps_per_epoch=options.round_steps, verbose=0)
            seconds[name].append((time.perf_counter() - start) / options.round_steps)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    spreads = {
        name: tables.spread([1e3 * value for value in values], 1, statistics.median)
        for name, values in seconds.items()
    }
    return medians, spreads


def fit(nern, steps):
    """Fits; returns a list of `(step, error)` and the megabytes gained after a tenth of the fit."""
    errors, megabytes = [], []

    def record(batch, logs):
        if (batch + 1) % EVERY == 0:
            errors.append((batch + 1, nern.relative_error()))
            megabytes.append(measure.resident_mb())

    callback = keras.callbacks.LambdaCallback(on_train_batch_end=record)
    nern.fit(steps_per_epoch=steps, verbose=0, callbacks=[callback])
    return errors, megabytes[-1] - megabytes[len(megabytes) // 10]


def print_distillation_time(nern, options):
    """Prints the seconds of a distillation step."""
    images, _ = cifar.load(options.data_dir, "train[:2000]")
    dataset = cifar.augmented(images, fits.BATCH_SIZE, options.seed, mixup=True)
    nern.compile(reconstruction_steps=0)
    steps = max(1, options.round_steps // 5)
    rounds = []
    for _ in range(options.rounds + 1):
        start = time.perf_counter()
        nern.fit(dataset, steps_per_epoch=steps, verbose=0)
        rounds.append((time.perf_counter() - start) / steps)
    rounds = rounds[1:]  # the first one traces the step
    print(
        f"A distillation step with {fits.BATCH_SIZE} images: "
        f"{tables.spread(rounds, 3, statistics.median)} s, n = {len(rounds)} rounds"
    )


if __name__ == "__main__":
    main()
