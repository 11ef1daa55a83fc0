"""Does the reconstruction error show which kernels a network can do without?

    python benchmarks/importance.py

Represents a ResNet, scores its kernels with each measure of `keras_nern.kernel_importance`, sets
the kernels with the lowest scores to zero and evaluates the network on all 10,000 CIFAR-10 test
images. Nothing is trained after pruning, and no fit sees a test image. Prints one row per measure
and one column per share of pruned weights, with mean and standard deviation over seeds; magnitude
does not depend on the seed.
"""

import pathlib

import cifar
import fits
import numpy as np
import runs
import tables

import keras_nern
from keras_nern.analysis.figure import label_lines, new_figure, style
from keras_nern.analysis.importance import MEASURES

SPARSITIES = (0.05, 0.1, 0.2, 0.3, 0.4)
# The options that identify a setting in the results.
SETTING = ("depth", "hidden_size", "steps", "distillation_steps", "permutation_method", "per_layer")


def main():
    """Fits and prunes with every seed, then prints the table."""
    parser = runs.parser(__doc__)
    cifar.add_arguments(parser)
    parser.add_argument("--depth", type=int, default=20, help="depth of the ResNet: 20 or 56")
    parser.add_argument("--hidden-size", type=int, default=160, help="width of the predictor")
    parser.add_argument("--steps", type=int, default=6000, help="reconstruction steps")
    parser.add_argument("--distillation-steps", type=int, default=0)
    parser.add_argument(
        "--permutation-method", default="two_opt", help="method of the cross-filter permutation"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--measures", nargs="+", choices=MEASURES, default=MEASURES)
    parser.add_argument("--sparsities", type=float, nargs="+", default=SPARSITIES)
    parser.add_argument(
        "--per-layer", action="store_true", help="prune the same share of every layer"
    )
    parser.add_argument("--fits", type=pathlib.Path, help="folder that caches fitted NeRNs")
    parser.add_argument(
        "--results", type=pathlib.Path, help="JSON lines file to append each accuracy to"
    )
    parser.add_argument(
        "--print", action="store_true", help="measure nothing, print the table of --results"
    )
    parser.add_argument("--plot", type=pathlib.Path, help="image file to draw the table in")
    options = parser.parse_args()
    if options.print and not options.results:
        parser.error("--print needs --results")
    if options.print:
        results = runs.read_results(options.results)
    else:
        results = [one for seed in options.seeds for one in run(options, seed)]
    results = _select(results, options)
    print_table(results, options.sparsities)
    if options.plot:
        plot(results, options.sparsities, options.plot)


def run(options, seed):
    """Fits with one seed, prunes by every measure, and returns (and stores) the accuracies."""
    images, labels = cifar.load(options.data_dir, "test")
    base = cifar.resnet(options.depth, options.weights)
    steps = (options.steps, options.distillation_steps)
    needs_images = steps[1] or "curvature" in options.measures
    train_images = cifar.load(options.data_dir, "train")[0] if needs_images else None
    fit = fits.Fit(
        options.depth,
        options.hidden_size,
        steps,
        seed,
        permutation_method=options.permutation_method,
    )
    nern = fit.load_or_fit(base, train_images, options.fits)
    relative_error = nern.relative_error()
    judge = nern.reconstruct()  # evaluates all weights, so that one graph is traced
    results = []

    def evaluate(measure, sparsity, model, seed):
        judge.set_weights(model.get_weights())
        result = {
            "setting": _setting(options),
            "measure": measure,
            "sparsity": sparsity,
            "seed": seed,
            "relative_error": relative_error,
            "accuracy": cifar.accuracy(judge, images, labels),
        }
        results.append(result)
        runs.append_result(options.results, result)

    is_first = seed == options.seeds[0]
    evaluate("rebuilt", 0.0, nern.reconstruct(), seed)
    if is_first:
        evaluate("original", 0.0, base, None)
    for measure in options.measures:
        if measure == "magnitude" and not is_first:
            continue
        if measure == "curvature":
            nern.gather_curvature(train_images)
        scores = keras_nern.kernel_importance(nern, measure, seed)
        for sparsity in options.sparsities:
            pruned = keras_nern.prune(base, scores, sparsity, options.per_layer)
            evaluate(measure, sparsity, pruned, None if measure == "magnitude" else seed)
    return results


def _setting(options):
    return {name: getattr(options, name) for name in SETTING}


def _select(results, options):
    """The results of this setting and these seeds, the latest one of each measurement."""
    setting = _setting(options)
    selected = {}
    for one in results:
        if one["setting"] == setting and one["seed"] in (None, *options.seeds):
            selected[one["measure"], one["sparsity"], one["seed"]] = one
    return list(selected.values())


def print_table(results, sparsities):
    """Prints the accuracies: a row per measure, a column per share of pruned weights."""
    for name in ("original", "rebuilt"):
        values = _accuracies(results, name, 0.0)
        if values:
            print(f"accuracy, {name}: {tables.spread(values, 2)} %, n={len(values)}")
    errors = [one["relative_error"] for one in results if one["measure"] == "rebuilt"]
    if errors:
        print(f"relative squared error of the weights: {tables.spread(errors, 4)}\n")
    columns = [f"{100 * sparsity:g} % pruned" for sparsity in sparsities]
    tables.print_header(["pruned by", "n", *columns])
    for measure in _measures(results):
        accuracies = [_accuracies(results, measure, sparsity) for sparsity in sparsities]
        cells = [tables.spread(values, 2) if values else "" for values in accuracies]
        tables.print_row([measure, len(accuracies[0]), *cells])


def plot(results, sparsities, path):
    """Draws accuracy against the share of pruned weights, one line per measure."""
    figure = new_figure(figsize=(6.4, 4))
    axes = style(figure.subplots())
    original = _accuracies(results, "original", 0.0)
    lines = {}
    for measure, marker in zip(_measures(results), "os^Dv", strict=False):
        points = [(0.0, original)] if original else []
        points += [(share, _accuracies(results, measure, share)) for share in sparsities]
        line, *_ = axes.errorbar(
            [100 * share for share, _ in points],
            [np.mean(values) for _, values in points],
            [np.std(values, ddof=1) if len(values) > 1 else 0 for _, values in points],
            marker=marker,
            markersize=5,
            capsize=3,
        )
        lines[measure] = line
    axes.set_xlabel("weights pruned, %")
    axes.set_ylabel("accuracy on the test images, %")
    axes.set_ylim(0, 100)
    label_lines(axes, lines)
    figure.savefig(path)


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
