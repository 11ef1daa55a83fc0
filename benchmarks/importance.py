"""Does the reconstruction error tell which kernels a network can do without?

    python benchmarks/importance.py

Represents a ResNet20, scores its kernels by each measure of `keras_nern.kernel_importance`,
sets the lowest to zero and prints the accuracy of what is left on all 10,000 CIFAR-10 test
images: a row for each measure, a column for each share of the weights pruned. Nothing is
trained after the pruning. Mean and standard deviation over seeds; the magnitude has no seed.
No fit sees a test image.
"""

import argparse
import json
import pathlib

import cifar10
import fits
import tables

SPARSITIES = (0.05, 0.1, 0.2, 0.3, 0.4)
KEY = ("measure", "sparsity", "seed")


def main():
    """Fits and prunes for every seed, then prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    cifar10.add_arguments(parser)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--depth", type=int, default=20, help="of the ResNet: 20 or 56")
    parser.add_argument("--hidden-size", type=int, default=160, help="predictor width")
    parser.add_argument("--steps", type=int, default=6000, help="of reconstruction")
    parser.add_argument("--distillation-steps", type=int, default=0)
    parser.add_argument(
        "--permutation-method", default="two_opt", help="by which the cross-filter order is found"
    )
    parser.add_argument("--fits", type=pathlib.Path, help="folder to keep fitted NeRNs in")
    parser.add_argument("--sparsities", type=float, nargs="+", default=SPARSITIES)
    parser.add_argument("--per-layer", action="store_true", help="the same share of every layer")
    parser.add_argument("--measures", nargs="+", help="default: all of them")
    parser.add_argument(
        "--results", type=pathlib.Path, help="append each accuracy to this JSON lines file"
    )
    parser.add_argument(
        "--print", action="store_true", help="only print the table of what is in --results"
    )
    parser.add_argument("--plot", type=pathlib.Path, help="save a plot of the table")
    options = parser.parse_args()
    if options.print and not options.results:
        parser.error("--print needs --results")
    if options.print:
        results = [json.loads(line) for line in options.results.read_text().splitlines()]
    else:
        results = [one for seed in options.seeds for one in run(options, seed)]
    setting = _setting(options)
    results = [one for one in results if one["setting"] == setting]
    results = [one for one in results if one["seed"] in (None, *options.seeds)]
    # what has no seed may have been measured with each
    results = list({json.dumps([*map(one.get, KEY)]): one for one in results}.values())
    table(results, options.sparsities)
    if options.plot:
        plot(results, options.sparsities, options.plot)


def run(options, seed):
    """The accuracies of one seed's scores, noted as they come."""
    import keras_nern

    images, labels = cifar10.load(options.data_dir, "test")
    base = cifar10.resnet(options.depth, options.weights)
    train_images = (
        cifar10.load(options.data_dir, "train")[0] if options.distillation_steps else None
    )
    steps = (options.steps, options.distillation_steps)
    method = options.permutation_method
    fit = fits.Fit(options.depth, options.hidden_size, steps, seed, method=method)
    nern = fit.made(base, train_images, options.fits)

    relative_error = nern.relative_error()
    judge = nern.reconstruct()  # one network for all weights: it is traced but once

    def accuracy(model):
        judge.set_weights(model.get_weights())
        classes = judge.predict(images, batch_size=500, verbose=0).argmax(axis=1)
        return 100 * float((classes == labels).mean())

    def note(measure, sparsity, value, own_seed=seed):
        result = {
            "setting": _setting(options),
            "measure": measure,
            "sparsity": sparsity,
            "seed": own_seed,
            "relative_error": relative_error,
            "accuracy": value,
        }
        results.append(result)
        if options.results:
            with options.results.open("a") as file:
                file.write(json.dumps(result) + "\n")

    results = []
    note("rebuilt", 0.0, accuracy(nern.reconstruct()))
    if seed == options.seeds[0]:
        note("original", 0.0, accuracy(base), own_seed=None)
    for measure in options.measures or keras_nern.analysis.importance.MEASURES:
        if measure == "magnitude" and seed != options.seeds[0]:
            continue
        scores = keras_nern.kernel_importance(nern, measure, seed)
        for sparsity in options.sparsities:
            pruned = keras_nern.prune(base, scores, sparsity, options.per_layer)
            own_seed = None if measure == "magnitude" else seed
            note(measure, sparsity, accuracy(pruned), own_seed)
    return results


def table(results, sparsities):
    """Prints the accuracies: measures downwards, shares of weights pruned to the right."""
    for name in ("original", "rebuilt"):
        values = [one["accuracy"] for one in results if one["measure"] == name]
        if values:
            print(f"{name}: {tables.spread(values, 2)} %, n={len(values)}")
    errors = [one["relative_error"] for one in results if one["measure"] == "rebuilt"]
    if errors:
        print(f"relative squared error of the weights: {tables.spread(errors, 4)}\n")
    tables.print_header(["pruned by", "n", *(f"{100 * share:g} %" for share in sparsities)])
    for measure in _measures(results):
        columns = [_accuracies(results, measure, share) for share in sparsities]
        count = str(len(columns[0]))
        cells = [tables.spread(column, 2) if column else "" for column in columns]
        tables.print_row([measure, count, *cells])


def plot(results, sparsities, path):
    """Draws the table: accuracy against the share pruned, a line for each measure."""
    import numpy as np
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.4), layout="constrained")
    axes = figure.subplots()
    original = _accuracies(results, "original", 0.0)
    for measure in _measures(results):
        columns = [
            *([original] if original else []),
            *(_accuracies(results, measure, s) for s in sparsities),
        ]
        shares = [*([0.0] if original else []), *sparsities]
        axes.errorbar(
            100 * np.array(shares),
            [np.mean(column) for column in columns],
            [np.std(column, ddof=1) if len(column) > 1 else 0 for column in columns],
            marker="o",
            capsize=3,
            label=measure,
        )
    axes.set_xlabel("weights pruned, %")
    axes.set_ylabel("accuracy on the test images, %")
    axes.grid(alpha=0.3)
    axes.legend(title="pruned by")
    figure.savefig(path)


def _setting(options):
    names = (
        "depth",
        "hidden_size",
        "steps",
        "distillation_steps",
        "permutation_method",
        "per_layer",
    )
    return {name: getattr(options, name) for name in names}


def _measures(results):
    names = dict.fromkeys(one["measure"] for one in results)
    return [name for name in names if name not in ("original", "rebuilt")]


def _accuracies(results, measure, sparsity):
    return [
        one["accuracy"]
        for one in results
        if one["measure"] == measure and one["sparsity"] == sparsity
    ]


if __name__ == "__main__":
    main()
