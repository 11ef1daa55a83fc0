"""How long is a step, how many does an optimizer need, and does the memory stay flat?

    python benchmarks/step_time.py

On the kernels of a real ResNet20 (h=160, cross-filter), prints one row per optimizer of
the reconstruction: the seconds per step and their ratio to the first row's, from rounds
of steps in which the optimizers take turns (median and standard deviation over rounds);
the steps and seconds to each relative squared error; the error at the end of as many
steps of a fit of its own, its rate falling to zero along a cosine; and what the
process's memory gained between the first tenth of that fit and its end. All start from
the same weights; *centred* is told in `keras_nern.predictor.centering`. The reference's optimizer,
Ranger, is stood in for by AdamW with its betas (0.5, 0.999) and rate 5e-3. Last, the
seconds of a distillation step at 64 images.
"""

import argparse
import statistics
import time

import cifar10
import memory
import tables

TARGETS = (0.3, 0.2, 0.1)
LOOK = 100  # steps between looks at the error


def optimizers(steps):
    """Optimizers by name, and whether layers are centred, for a fit of so many steps."""
    import keras

    from keras_nern.predictor.predictor import OUTPUT_LAYER

    def cosine(rate):
        return keras.optimizers.schedules.CosineDecay(rate, steps)

    def muon():
        return keras.optimizers.Muon(
            cosine(1e-2), weight_decay=0.0, adam_weight_decay=0.0, exclude_layers=[OUTPUT_LAYER]
        )

    ranger = keras.optimizers.AdamW(cosine(5e-3), beta_1=0.5, beta_2=0.999)
    return {
        "Muon, 1e-2, centred": (muon(), True),
        "Muon, 1e-2": (muon(), False),
        "AdamW, 2e-3, centred": (keras.optimizers.AdamW(cosine(2e-3)), True),
        "AdamW, 2e-3": (keras.optimizers.AdamW(cosine(2e-3)), False),
        "AdamW, 5e-3": (keras.optimizers.AdamW(cosine(5e-3)), False),
        "Ranger-like, 5e-3": (ranger, False),
    }


def main():
    """Measures and prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    cifar10.add_arguments(parser)
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--round-steps", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    import keras

    import keras_nern

    base = cifar10.resnet(20, options.weights)

    def model(optimizer, centering="auto"):
        keras.utils.set_random_seed(options.seed)
        nern = keras_nern.NeRNModel(base, hidden_size=160, permutation="cross_filter")
        nern.compile(optimizer=optimizer, gradient_centering=centering)
        return nern

    models = {name: model(*chosen) for name, chosen in optimizers(options.steps).items()}
    seconds = step_seconds(models, options)
    goals = [f"steps (s) to {target}" for target in TARGETS]
    tables.print_header(
        ["optimizer", "ms per step", "ratio", *goals, "error at the end", "growth MB"]
    )
    first = statistics.median(next(iter(seconds.values())))
    for name, chosen in optimizers(options.steps).items():
        median = statistics.median(seconds[name])
        errors, growth = fit(model(*chosen), options.steps)
        cells = [
            name,
            tables.spread([1e3 * one for one in seconds[name]], 1, statistics.median),
            f"{median / first:.2f}",
        ]
        for target in TARGETS:
            step = next((step for step, error in errors if error <= target), None)
            cells.append("not reached" if step is None else f"{step:,} ({step * median:.0f})")
        cells += [f"{errors[-1][1]:.4f}", f"{growth:.0f}"]
        tables.print_row(cells)
    distillation(model("auto"), options)


def step_seconds(models, options):
    """Seconds per step of every round, by name; the models take turns."""
    taken = {name: [] for name in models}
    for nern in models.values():
        nern.fit(steps_per_epoch=options.round_steps, verbose=0)  # traces the step
    for _ in range(options.rounds):
        for name, nern in models.items():
            start = time.perf_counter()
            nern.fit(steps_per_epoch=options.round_steps, verbose=0)
            taken[name].append((time.perf_counter() - start) / options.round_steps)
    return taken


def fit(nern, steps):
    """Fits; returns [(step, error)] and the megabytes gained after the first tenth."""
    import keras

    errors, megabytes = [], []

    def look(batch, logs):
        if (batch + 1) % LOOK == 0:
            errors.append((batch + 1, nern.relative_error()))
            megabytes.append(memory.resident_mb())

    watch = keras.callbacks.LambdaCallback(on_train_batch_end=look)
    nern.fit(steps_per_epoch=steps, verbose=0, callbacks=[watch])
    return errors, megabytes[-1] - megabytes[len(megabytes) // 10]


def distillation(nern, options):
    """Prints the seconds of a distillation step."""
    images, _ = cifar10.load(options.data_dir, "train[:2000]")
    dataset = cifar10.augmented(images, 64, options.seed, mixup=True)
    nern.compile(reconstruction_steps=0)
    steps = max(1, options.round_steps // 5)
    taken = []
    for _ in range(options.rounds + 1):
        start = time.perf_counter()
        nern.fit(dataset, steps_per_epoch=steps, verbose=0)
        taken.append((time.perf_counter() - start) / steps)
    rounds = taken[1:]
    print(
        f"A distillation step, 64 images: {tables.spread(rounds, 3, statistics.median)} s, "
        f"n = {len(rounds)} rounds"
    )


if __name__ == "__main__":
    main()
