"""How accurate, how fast and how large are representations of real networks?

    python benchmarks/accuracy.py

Fits each configuration in ROWS with each seed, every fit in a process of its own, and prints one
table row per configuration with mean and standard deviation over the seeds:

    accuracy        on the test images, of the base and of the rebuilt network: 10,000 of CIFAR-10
                    or CIFAR-100, the last 300 of the images in `--imagenet-dir`
    agreement       share of test images to which both networks assign the same class
    relative error  relative squared error of the represented weights
    bytes           of predictor (float32) and permutation
    seconds         from the start of the process to the rebuilt network, including imports, data,
                    permutation and both phases of the fit
    core seconds    CPU time of the same period; other programs on the machine affect it less
    peak memory     of the process
    memory growth   of the process over the second half of the last phase

With --curve, the test accuracy is also measured during distillation; that time is not counted.
No fit sees test images, and none is selected by its accuracy on them.
"""

import dataclasses
import json
import pathlib
import time

import runs
import tables

START = time.perf_counter()  # TensorFlow is imported in functions, so that its import counts


@dataclasses.dataclass(frozen=True)
class Row:
    """A network, its representation and the recipe of the fit.

    Args:
        depth: depth of the ResNet; 0 for EfficientNet-lite0.
        hidden_size: width of the predictor; `None` for local predictors of `parameters`.
        steps: number of steps of the reconstruction and of the distillation.
        permutation: kind of permutation. Defaults to `"cross_filter"`.
        images: images of the later phases: `"mixed-up"` training images, or a kind of
            `keras_nern.NoiseDataset`. Defaults to `"mixed-up"`.
        zoo: name of a network of `keras_nern.models.load`; `None` for the one in `--weights`.
            Defaults to `None`.
        permutation_method: how the permutation is found. Defaults to `"greedy"`.
        metric: distance that the permutation minimizes. Defaults to `"euclidean"`.
        num_layers: number of Dense layers of the predictor. Defaults to `5`.
        num_frequencies: number of frequencies that encode each index. Defaults to `40`.
        parameters: number of parameters of local predictors. Defaults to `None`.
        curvature_steps: number of steps of the curvature phase. Defaults to `0`.
        dataset: of the network and the images. Defaults to `"cifar10"`.
        teacher: depth of the ResNet whose logits are distilled; `None` for the network itself.
            Defaults to `None`.
        batch_size: images per step of distillation. Defaults to `64`.
        curvature_images: from which the curvature is gathered; `None` for as many as `fit` takes.
            Defaults to `None`.
        reference: the drop of the reference implementation with as many parameters, and its
            core-hours where they are known. Defaults to `""`.
    """

    depth: int
    hidden_size: int | None
    steps: tuple[int, int]
    permutation: str | None = "cross_filter"
    images: str = "mixed-up"
    zoo: str | None = None
    permutation_method: str = "greedy"
    metric: str = "euclidean"
    num_layers: int = 5
    num_frequencies: int = 40
    parameters: int | None = None
    curvature_steps: int = 0
    dataset: str = "cifar10"
    teacher: int | None = None
    batch_size: int = 64
    curvature_images: int | None = None
    reference: str = ""

    def fit(self, seed):
        """The `fits.Fit` of this row."""
        import fits

        return fits.Fit(
            self.depth,
            self.hidden_size,
            self.steps,
            seed,
            self.permutation,
            self.num_layers,
            self.num_frequencies,
            self.permutation_method,
            self.parameters,
            self.curvature_steps,
        )

    @property
    def can_be_cached(self):
        """Whether `fits.Fit.load_or_fit` returns the same representation."""
        usual = ("mixed-up", None, "euclidean", "cifar10", None, None)
        own = (self.images, self.zoo, self.metric, self.dataset, self.teacher)
        return (*own, self.curvature_images) == usual


QUICK = (2_000, 300)
DEEP = {"num_layers": 7, "num_frequencies": 20}
TWO_OPT = {"permutation_method": "two_opt"}
PLAIN, SMOOTH = "resnet20-cifar10", "resnet20-cifar10-smooth"

# The reference's figures are those of its own networks: ResNet20 with 91.69 %, ResNet56 with 93.52
# and 71.35 %, and for ImageNet ResNet18 with 69.76 % at 45 % of the weights.
LOCAL_20 = {"parameters": 117_289, "reference": "0.53 (75 core-hours)"}
LOCAL_56 = {"parameters": 306_049, "reference": "0.98"}
LITE = {
    "parameters": 1_498_046,  # 45 % of the weights
    "dataset": "imagenet",
    "batch_size": 16,
    "reference": "0.99 (ResNet18)",
}
CIFAR100_56 = Row(56, None, (2_500, 300), curvature_steps=400, dataset="cifar100")

ROWS = {
    "ResNet20, a minute": Row(
        20, None, (1_000, 0), **LOCAL_20, curvature_steps=250, curvature_images=256
    ),
    "ResNet20, two minutes, noise": Row(
        20, None, (2_500, 0), **LOCAL_20, **TWO_OPT, curvature_steps=200, images="batch_norm"
    ),
    "ResNet20, five minutes": Row(
        20, None, (3_000, 350), **LOCAL_20, **TWO_OPT, curvature_steps=300
    ),
    "ResNet20, half an hour": Row(
        20, None, (10_000, 2_500), **LOCAL_20, **TWO_OPT, curvature_steps=600
    ),
    "ResNet20, taught by ResNet56": Row(
        20, None, (10_000, 2_500), **LOCAL_20, **TWO_OPT, curvature_steps=600, teacher=56
    ),
    "ResNet20, a fifth of the weights": Row(
        20, None, (3_000, 400), **TWO_OPT, parameters=54_000, curvature_steps=400
    ),
    "ResNet56, eight minutes": Row(56, None, (2_500, 120), **LOCAL_56, curvature_steps=300),
    "ResNet56, a fifth of the weights": Row(
        56, None, (2_500, 150), parameters=170_000, curvature_steps=400
    ),
    "CIFAR-100, ResNet56, 479,889 parameters": dataclasses.replace(
        CIFAR100_56, parameters=479_889, reference="0.84"
    ),
    "CIFAR-100, ResNet56, 581,209 parameters": dataclasses.replace(
        CIFAR100_56, parameters=581_209, reference="-0.35"
    ),
    "EfficientNet-lite0": Row(0, None, (2_500, 450), **LITE, curvature_steps=600),
    "EfficientNet-lite0, noise": Row(
        0,
        None,
        (1_500, 0),
        **LITE,
        curvature_steps=400,
        images="batch_norm",
    ),
    "ResNet20, h=140": Row(20, 140, (10_000, 2_000), **TWO_OPT),
    "ResNet20, h=160": Row(20, 160, (10_000, 2_000), **TWO_OPT),
    "ResNet20, h=180": Row(20, 180, (10_000, 2_000), **TWO_OPT),
    "ResNet56, h=280": Row(56, 280, (12_000, 400), **TWO_OPT),
    "ResNet56, h=320": Row(56, 320, (12_000, 400), **TWO_OPT),
    "ResNet56, h=280, long": Row(56, 280, (12_000, 1_200), **TWO_OPT),
    # Deeper predictors with fewer frequencies, of the sizes of h=160 and h=180.
    "ResNet20, deep, h=140": Row(20, 140, (10_000, 2_000), **TWO_OPT, **DEEP),
    "ResNet20, deep, h=155": Row(20, 155, (10_000, 2_000), **TWO_OPT, **DEEP),
    "ResNet20, h=160, greedy": Row(20, 160, (16_000, 1_500)),
    "ResNet20, h=160, short": Row(20, 160, (6_000, 1_000)),
    "ResNet20, h=180, short": Row(20, 180, (6_000, 1_000)),
    "ResNet20, h=160, short, in-filter": Row(20, 160, (6_000, 1_000), "in_filter"),
    # Different images in the second phase, for the same number of steps.
    "quick: mixed-up images": Row(20, 160, QUICK),
    "quick: noise, batch_norm": Row(20, 160, QUICK, images="batch_norm"),
    "quick: noise, gaussian": Row(20, 160, QUICK, images="gaussian"),
    "quick: noise, uniform": Row(20, 160, QUICK, images="uniform"),
    # Local predictors, fitted by different phases in about as long as "ResNet20, five minutes".
    "local: reconstruction": Row(20, None, (9_000, 0), **LOCAL_20, **TWO_OPT),
    "local: curvature": Row(20, None, (6_000, 0), **LOCAL_20, **TWO_OPT, curvature_steps=700),
    "local: distillation": Row(20, None, (3_000, 400), **LOCAL_20, **TWO_OPT),
    # Reconstruction alone, for about as long as "quick: mixed-up images".
    "quick: no second phase": Row(20, 160, (6_000, 0)),
    # Permutations and smooth training. h=168 without a permutation takes as many bytes as h=160
    # with one.
    "study: plain": Row(20, 160, QUICK, None, zoo=PLAIN),
    "study: plain, h=168": Row(20, 168, QUICK, None, zoo=PLAIN),
    "study: plain, in-filter": Row(20, 160, QUICK, "in_filter", zoo=PLAIN),
    "study: plain, in-filter, cosine": Row(20, 160, QUICK, "in_filter", zoo=PLAIN, metric="cosine"),
    "study: plain, cross-filter": Row(20, 160, QUICK, zoo=PLAIN),
    "study: plain, cross-filter, cosine": Row(20, 160, QUICK, zoo=PLAIN, metric="cosine"),
    "study: plain, cross-filter, two_opt": Row(20, 160, QUICK, zoo=PLAIN, **TWO_OPT),
    "study: plain, cross-filter, fast_tsp": Row(
        20, 160, QUICK, zoo=PLAIN, permutation_method="fast_tsp"
    ),
    "study: smooth": Row(20, 160, QUICK, None, zoo=SMOOTH),
    "study: smooth, h=168": Row(20, 168, QUICK, None, zoo=SMOOTH),
    "study: smooth, cross-filter": Row(20, 160, QUICK, zoo=SMOOTH),
}
COLUMNS = {  # header: (key of the results, digits)
    "accuracy of the base, %": ("original", 2),
    "accuracy, %": ("accuracy", 2),
    "drop in accuracy, points": ("drop", 2),
    "agreement, %": ("agreement", 2),
    "relative error": ("relative_error", 4),
    "bytes": ("bytes", 0),
    "seconds": ("seconds", 0),
    "core seconds": ("core_seconds", 0),
    "peak memory, MB": ("peak_mb", 0),
    "memory growth, MB": ("growth_mb", 0),
}


def main():
    """Prints the table, or with `--run` the result of one fit."""
    import cifar
    import imagenet

    parser = runs.parser(__doc__, run=("ROW", "SEED"))
    cifar.add_arguments(parser)
    imagenet.add_arguments(parser)
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument(
        "--seeds", type=int, nargs="+", help="defaults to 0 1 2, or with --print to all"
    )
    parser.add_argument("--jit-compile", action="store_true", help="compile the steps with XLA")
    parser.add_argument(
        "--curve",
        type=int,
        metavar="STEPS",
        help="measure the test accuracy every STEPS distillation steps",
    )
    parser.add_argument(
        "--results", type=pathlib.Path, help="JSON lines file to append each result to"
    )
    parser.add_argument(
        "--fits",
        type=pathlib.Path,
        help="folder to save fitted NeRNs in, for rate_distortion.py and importance.py",
    )
    parser.add_argument(
        "--print", action="store_true", help="fit nothing, print the table of --results"
    )
    options = parser.parse_args()
    if options.print and not options.results:
        parser.error("--print needs --results")
    if options.run:
        name, seed = options.run
        print(json.dumps(run(options, name, int(seed))))
    else:
        print_table(options)


def print_table(options):
    """Prints the row of each configuration as soon as its results are complete."""
    tables.print_header(
        ["row", "predictor parameters", "steps of the phases", "n", *COLUMNS, "reference's drop"]
    )
    stored = runs.read_results(options.results) if options.print else []
    for name in options.rows:
        if options.print:
            results = [one for one in stored if one["row"] == name]
            if options.seeds is not None:
                results = [one for one in results if one["seed"] in options.seeds]
        else:
            results = [_run_and_store(options, name, seed) for seed in options.seeds or (0, 1, 2)]
        if results:
            tables.print_row(_cells(name, results))
        for result in results:
            for seconds, step, accuracy in result["curve"]:
                print(f"    seed {result['seed']}, step {step}, {seconds:.0f} s: {accuracy:.2f} %")


def _run_and_store(options, name, seed):
    result = runs.in_new_process(name, seed)
    runs.append_result(options.results, result)
    return result


def _cells(name, results):
    steps = " + ".join(f"{count:,}" for count in results[0]["steps"])
    figures = [
        tables.spread([result[key] for result in results], digits)
        for key, digits in COLUMNS.values()
    ]
    return [
        name,
        f"{results[0]['predictor_parameters']:,}",
        steps,
        len(results),
        *figures,
        ROWS[name].reference,
    ]


def run(options, name, seed):
    """Fits one row with one seed.

    Args:
        options: the options of the command line.
        name: key of `ROWS`.
        seed: seed of predictor, batches and images.

    Returns:
        The result, a dict that `--results` stores.
    """
    import cifar
    import keras
    import measure

    row = ROWS[name]
    keras.utils.set_random_seed(seed)
    base, train_images, test_images, labels, predict_classes = _load(options, row)
    dataset = _second_phase_images(row, base, train_images, seed)
    fit = row.fit(seed)
    nern = fit.build(base, row.metric)
    if row.teacher:
        nern.teacher = cifar.resnet(row.teacher, options.weights, row.dataset)

    megabytes, curve = [], []
    aside, cpu_aside = 0.0, 0.0  # seconds spent on the curve

    def record(batch, logs):
        nonlocal aside, cpu_aside
        megabytes.append(measure.resident_mb())
        step = batch + 1
        if options.curve and nern.phase == "distillation" and step % options.curve == 0:
            start, cpu_start = time.perf_counter(), time.process_time()
            accuracy = cifar.percent_equal(predict_classes(nern, test_images), labels)
            curve.append([start - START - aside, step, accuracy])
            aside += time.perf_counter() - start
            cpu_aside += time.process_time() - cpu_start

    callbacks = [keras.callbacks.LambdaCallback(on_train_batch_end=record)]
    nern.jit_compile = options.jit_compile or nern.jit_compile
    _, second_steps = row.steps
    if row.curvature_images:
        nern.gather_curvature(dataset, row.curvature_images, verbose=0)
    if second_steps or row.curvature_steps:
        epochs = 1 if second_steps else 0
        steps = max(1, second_steps)
        nern.fit(dataset, steps_per_epoch=steps, epochs=epochs, verbose=0, callbacks=callbacks)
    else:
        nern.fit(steps_per_epoch=row.steps[0], verbose=0, callbacks=callbacks)
    rebuilt = nern.reconstruct()
    seconds = time.perf_counter() - START - aside
    cpu_seconds = time.process_time() - cpu_aside
    peak_mb = measure.peak_mb()

    if options.fits and row.can_be_cached:
        fit.save(nern, options.fits)
    original_classes = predict_classes(base, test_images)
    rebuilt_classes = predict_classes(rebuilt, test_images)
    original = cifar.percent_equal(original_classes, labels)
    accuracy = cifar.percent_equal(rebuilt_classes, labels)
    return {
        "row": name,
        "seed": seed,
        "steps": [row.steps[0], *[row.curvature_steps] * bool(row.curvature_steps), row.steps[1]],
        "predictor_parameters": nern.predictor.count_params(),
        "bytes": nern.summary_table().representation_bytes,
        "original": original,
        "relative_error": nern.relative_error(),
        "accuracy": accuracy,
        "drop": original - accuracy,
        "agreement": cifar.percent_equal(rebuilt_classes, original_classes),
        "seconds": seconds,
        "core_seconds": cpu_seconds,
        "peak_mb": peak_mb,
        "growth_mb": megabytes[-1] - megabytes[-max(1, (second_steps or row.steps[0]) // 2)],
        "curve": curve,
    }


def _load(options, row):
    """Base, training images, test images, their labels, and a function that predicts classes."""
    import cifar
    import imagenet

    import keras_nern

    if row.dataset == "imagenet":
        base, module = imagenet.efficientnet_lite0(options.weights), imagenet
        train, test = (imagenet.load(options.imagenet_dir, split) for split in ("train", "test"))
    else:
        train, test = (
            cifar.load(options.data_dir, split, row.dataset) for split in ("train", "test")
        )
        if row.zoo:
            base = keras_nern.models.load(row.zoo)
        else:
            base = cifar.resnet(row.depth, options.weights, row.dataset)
        module = cifar
    return base, train[0], *test, module.predict_classes


def _second_phase_images(row, base, train_images, seed):
    import cifar

    import keras_nern

    if row.images == "mixed-up":
        return cifar.augmented(train_images, row.batch_size, seed, mixup=True)
    # Only the range of pixels is assumed to be known, so mean and standard deviation are computed
    # from a uniform distribution over it.
    return keras_nern.NoiseDataset(
        base,
        row.images,
        row.batch_size,
        max(1, row.steps[1]),
        limits=(0.0, 255.0),
        mean=127.5,
        stddev=255 / 12**0.5,
        seed=seed,
    )


if __name__ == "__main__":
    main()
