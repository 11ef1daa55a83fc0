"""How well, how fast and in how much memory are real networks represented?

    python benchmarks/accuracy.py

Prints one row per network, width, permutation and recipe: the accuracy of the original
and of the rebuilt classifier on all 10,000 CIFAR-10 test images, the drop, the agreement of
the two, the relative squared error of the weights, the bytes of predictor (float32) and
permutation, the seconds from the start of the process to the rebuilt classifier (imports,
data, permutations and both phases included) and those of all cores' time spent on it, which
other programs on the machine change less, the peak of the process's memory, and how much
of it came in the second half of the last phase. Mean and standard deviation over
seeds; each run is a process of its own. No fit sees a test image, and none is chosen by
them. With `--curve`, the test accuracy on the way is printed too; the time that takes is
not counted.
"""

import argparse
import dataclasses
import json
import pathlib
import subprocess
import sys
import time

import tables

START = time.perf_counter()
BATCH_SIZE = 64


@dataclasses.dataclass
class Row:
    """What is represented and how; steps are those of the two phases."""

    depth: int
    hidden_size: int
    steps: tuple[int, int]
    permutation: str | None = "cross_filter"
    images: str = "mixed-up"  # or a kind of `keras_nern.NoiseDataset`
    second_phase: str = "distillation"  # or "layer outputs", which runs no network
    zoo: str | None = None  # a network of `keras_nern.models.load`; None: from --weights
    method: str = "greedy"
    metric: str = "euclidean"
    num_layers: int = 5
    num_frequencies: int = 40

    @property
    def is_shared(self):
        """Whether `rate_distortion.py` makes the same fit."""
        others = self.images, self.second_phase, self.zoo, self.method, self.metric
        return others == ("mixed-up", "distillation", None, "two_opt", "euclidean")


QUICK = (2_000, 300)
DEEP = {"num_layers": 7, "num_frequencies": 20, "method": "two_opt"}
PLAIN, SMOOTH = "resnet20-cifar10", "resnet20-cifar10-smooth"

ROWS = {
    "ResNet20, h=140": Row(20, 140, (10_000, 2_000), method="two_opt"),
    "ResNet20, h=160": Row(20, 160, (10_000, 2_000), method="two_opt"),
    "ResNet20, h=180": Row(20, 180, (10_000, 2_000), method="two_opt"),
    "ResNet56, h=280": Row(56, 280, (12_000, 400), method="two_opt"),
    "ResNet56, h=320": Row(56, 320, (12_000, 400), method="two_opt"),
    "ResNet56, h=280, long": Row(56, 280, (12_000, 1_200), method="two_opt"),
    # As many weights as h=160 and h=180 have, in a deeper predictor of fewer frequencies:
    "ResNet20, deep, h=140": Row(20, 140, (10_000, 2_000), **DEEP),
    "ResNet20, deep, h=155": Row(20, 155, (10_000, 2_000), **DEEP),
    "ResNet20, h=160, greedy": Row(20, 160, (16_000, 1_500)),
    "ResNet20, h=160, short": Row(20, 160, (6_000, 1_000)),
    "ResNet20, h=180, short": Row(20, 180, (6_000, 1_000)),
    "ResNet20, h=160, short, in-filter": Row(20, 160, (6_000, 1_000), "in_filter"),
    # What the second phase runs on, at equal steps:
    "quick: mixed-up images": Row(20, 160, QUICK),
    "quick: noise, batch_norm": Row(20, 160, QUICK, images="batch_norm"),
    "quick: noise, gaussian": Row(20, 160, QUICK, images="gaussian"),
    "quick: noise, uniform": Row(20, 160, QUICK, images="uniform"),
    # Other second phases, in about the time of the first of these:
    "quick: no second phase": Row(20, 160, (6_000, 0)),
    "quick: layer outputs": Row(20, 160, (2_000, 650), second_phase="layer outputs"),
    "quick: layer outputs, noise": Row(
        20, 160, (2_000, 650), "cross_filter", "batch_norm", "layer outputs"
    ),
    # What orders and smooth training buy; h=168 without an order has the bytes of h=160 with:
    "study: plain": Row(20, 160, QUICK, None, zoo=PLAIN),
    "study: plain, h=168": Row(20, 168, QUICK, None, zoo=PLAIN),
    "study: plain, in-filter": Row(20, 160, QUICK, "in_filter", zoo=PLAIN),
    "study: plain, in-filter, cosine": Row(20, 160, QUICK, "in_filter", zoo=PLAIN, metric="cosine"),
    "study: plain, cross-filter": Row(20, 160, QUICK, zoo=PLAIN),
    "study: plain, cross-filter, cosine": Row(20, 160, QUICK, zoo=PLAIN, metric="cosine"),
    "study: plain, cross-filter, two_opt": Row(20, 160, QUICK, zoo=PLAIN, method="two_opt"),
    "study: plain, cross-filter, fast_tsp": Row(20, 160, QUICK, zoo=PLAIN, method="fast_tsp"),
    "study: smooth": Row(20, 160, QUICK, None, zoo=SMOOTH),
    "study: smooth, h=168": Row(20, 168, QUICK, None, zoo=SMOOTH),
    "study: smooth, cross-filter": Row(20, 160, QUICK, zoo=SMOOTH),
}
COLUMNS = {
    "original, %": ("original", 2),
    "accuracy, %": ("accuracy", 2),
    "drop, points": ("drop", 2),
    "agreement, %": ("agreement", 2),
    "relative error": ("relative_error", 4),
    "bytes": ("bytes", 0),
    "seconds": ("seconds", 0),
    "core seconds": ("core_seconds", 0),
    "peak MB": ("peak_mb", 0),
    "growth MB": ("growth_mb", 0),
}


def main():
    """Runs all rows, or with --run the one."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    import cifar10

    cifar10.add_arguments(parser)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--jit-compile", action="store_true", help="compile the steps by XLA")
    parser.add_argument(
        "--curve",
        type=int,
        metavar="STEPS",
        help="test accuracy every so many steps of distillation",
    )
    parser.add_argument(
        "--results", type=pathlib.Path, help="append each run to this JSON lines file"
    )
    parser.add_argument(
        "--fits", type=pathlib.Path, help="folder to keep fitted NeRNs in, for rate_distortion.py"
    )
    parser.add_argument(
        "--print", action="store_true", help="only print the table of the runs in --results"
    )
    parser.add_argument("--run", nargs=2, metavar=("ROW", "SEED"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.print and not options.results:
        parser.error("--print needs --results")
    if options.run:
        row, seed = options.run
        print(json.dumps(run(cifar10, options, row, int(seed))))
    else:
        table(options)


def table(options):
    """Runs every row with every seed and prints the table as it grows."""
    tables.print_header(["row", "predictor", "steps", "n", *COLUMNS])
    kept = []
    if options.print:
        kept = [json.loads(line) for line in options.results.read_text().splitlines()]
    for row in options.rows:
        if options.print:
            runs = [one for one in kept if one["row"] == row and one["seed"] in options.seeds]
        else:
            runs = [_subprocess(options, row, seed) for seed in options.seeds]
        if runs:
            tables.print_row(_cells(row, runs))
        for one in runs:
            for seconds, step, accuracy in one["curve"]:
                print(f"    seed {one['seed']}, step {step}, {seconds:.0f} s: {accuracy:.2f} %")


def _cells(row, runs):
    steps = " + ".join(f"{count:,}" for count in runs[0]["steps"])
    cells = [row, f"{runs[0]['predictor_parameters']:,}", steps, str(len(runs))]
    for name, digits in COLUMNS.values():
        cells.append(tables.spread([one[name] for one in runs], digits))
    return cells


def _subprocess(options, row, seed):
    command = [sys.executable, __file__, *sys.argv[1:], "--run", row, str(seed)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    result = json.loads(done.stdout.splitlines()[-1])
    if options.results:
        with options.results.open("a") as file:
            file.write(json.dumps(result) + "\n")
    return result


def run(cifar10, options, name, seed):
    """One fit from nothing, and its figures."""
    import fits
    import keras
    import memory

    import keras_nern

    row = ROWS[name]
    keras.utils.set_random_seed(seed)
    images, _ = cifar10.load(options.data_dir, "train")
    test_images, labels = cifar10.load(options.data_dir, "test")
    if row.zoo:
        base = keras_nern.models.load(row.zoo)
    else:
        base = cifar10.resnet(row.depth, options.weights)
    if row.images == "mixed-up":
        dataset = cifar10.augmented(images, BATCH_SIZE, seed, mixup=True)
    else:  # pixels are 0 to 255; nothing more is known of the images
        dataset = keras_nern.NoiseDataset(
            base,
            row.images,
            BATCH_SIZE,
            max(1, row.steps[1]),
            limits=(0.0, 255.0),
            mean=127.5,
            stddev=255 / 12**0.5,  # the uniform kind's
            seed=seed,
        )
    nern = keras_nern.NeRNModel(
        base,
        row.hidden_size,
        row.num_layers,
        encoding=keras_nern.PositionalEncoding(row.num_frequencies),
        permutation=row.permutation,
        permutation_method=row.method,
        metric=row.metric,
    )
    first_steps, second_steps = row.steps
    jit_compile = options.jit_compile or "auto"
    nern.compile(reconstruction_steps=first_steps, jit_compile=jit_compile)
    megabytes, curve, aside, core_aside = [], [], 0.0, 0.0

    def note(batch, logs):
        nonlocal aside, core_aside
        megabytes.append(memory.resident_mb())
        done = nern.phase == "distillation" and batch + 1
        if options.curve and done and done % options.curve == 0:
            start, core_start = time.perf_counter(), time.process_time()
            classes = nern.predict(test_images, batch_size=500, verbose=0).argmax(axis=1)
            curve.append([start - START - aside, done, 100 * float((classes == labels).mean())])
            aside += time.perf_counter() - start
            core_aside += time.process_time() - core_start

    watch = keras.callbacks.LambdaCallback(on_train_batch_end=note)
    if row.second_phase == "distillation" and second_steps:
        nern.fit(dataset, steps_per_epoch=second_steps, verbose=0, callbacks=[watch])
    else:
        nern.fit(steps_per_epoch=first_steps, verbose=0, callbacks=[watch])
    if row.second_phase == "layer outputs":
        nern.gather_second_moments(dataset)
        nern.compile(
            kernel_sampling="all",
            reconstruction_weight=0.0,
            reconstruction_learning_rate=3e-3,
            layer_output_weight=1.0,
            jit_compile=jit_compile,
        )
        nern.fit(steps_per_epoch=second_steps, verbose=0, callbacks=[watch])
    rebuilt = nern.reconstruct()
    seconds = time.perf_counter() - START - aside
    core_seconds = time.process_time() - core_aside

    peak = memory.peak_mb()
    if options.fits and row.is_shared:
        options.fits.mkdir(parents=True, exist_ok=True)
        made = row.depth, row.hidden_size, row.steps, seed, row.permutation
        nern.save(options.fits / fits.Fit(*made, row.num_layers, row.num_frequencies).name)
    base_classes = base.predict(test_images, batch_size=500, verbose=0).argmax(axis=1)
    accuracy, agreement = cifar10.accuracy_and_agreement(rebuilt, base_classes, test_images, labels)
    original = (base_classes == labels).mean()
    return {
        "row": name,
        "seed": seed,
        "steps": row.steps,
        "predictor_parameters": nern.predictor.count_params(),
        "bytes": nern.summary_table().representation_bytes,
        "original": 100 * original,
        "relative_error": nern.relative_error(),
        "accuracy": 100 * accuracy,
        "drop": 100 * (original - accuracy),
        "agreement": 100 * agreement,
        "seconds": seconds,
        "core_seconds": core_seconds,
        "peak_mb": peak,
        "growth_mb": megabytes[-1] - megabytes[-max(1, (second_steps or first_steps) // 2)],
        "curve": curve,
    }


if __name__ == "__main__":
    main()
