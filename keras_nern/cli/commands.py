"""The verbs: what they take, how they are described, what is checked before any work."""

import contextlib
import functools
import json
import math
import pathlib
import shlex
import sys
from collections.abc import Callable, Sequence
from typing import Any

import click

from keras_nern.cli.arguments import (
    CLASSIFIER,
    COMPACT,
    HDF5,
    NERN,
    Model,
    Output,
    backup_of,
    check_backup,
    data_source,
    finite,
    no_overwriting,
)

MEASURES = ("relative", "absolute", "weightwise", "magnitude", "random")
PRECISIONS = ("auto", "float32", "float16", *(f"int{bits}" for bits in range(2, 9)))
AT_LEAST_ONE = click.IntRange(min=1)
SEED = click.IntRange(0, 2**32 - 1)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 96})
@click.version_option(package_name="keras-nern")
def commands() -> None:
    """Neural representations for the weights of trained convolutional networks.

    \b
    keras-nern fit classifier.keras nern.keras     # represent it by a small network
    keras-nern evaluate nern.keras --data cifar10  # how well the rebuilt one does
    keras-nern export nern.keras small.nern        # one small file that rebuilds it

    Every verb has --help with examples, and --json for one JSON document on stdout.
    Exit codes: 0 done, 1 failed, 2 refused before any work, 130 stopped by Ctrl-C.
    """


def verb(function: Callable) -> click.Command:
    """A verb whose function returns `(results, text)`, one of which is printed.

    Whatever else is printed meanwhile, such as Keras's progress bars, goes to stderr.
    """

    @functools.wraps(function)
    def run(*arguments: Any, as_json: bool, **options: Any) -> None:
        with contextlib.redirect_stdout(sys.stderr):
            results, text = function(*arguments, **options)
        if as_json or text:
            click.echo(json.dumps(_finite(results), allow_nan=False) if as_json else text)

    as_json = click.option(
        "--json", "as_json", is_flag=True, help="Print one JSON document on stdout."
    )
    return commands.command()(as_json(run))


def _finite(results: Any) -> Any:
    """Results with `None` where there is no finite number, for which JSON has no word."""
    if isinstance(results, dict):
        return {name: _finite(value) for name, value in results.items()}
    if isinstance(results, list):
        return [_finite(value) for value in results]
    return results if not isinstance(results, float) or math.isfinite(results) else None


def data_options(required: bool) -> Callable:
    """The options that say which images are read."""
    # click takes even a default of None for one
    default = {"required": True} if required else {"default": "noise", "show_default": True}
    options = [
        click.option(
            "--data",
            callback=data_source,
            **default,
            metavar="noise|FILE|NAME",
            help="noise with the statistics of the first batch normalisation; a file .npz "
            "(arrays images and labels) or .npy (images); or the name of a TFDS dataset.",
        ),
        click.option(
            "--data-dir",
            type=click.Path(file_okay=False),
            help="Of TFDS; a dataset that is not there is downloaded into it.",
        ),
        click.option("--split", help="Of a TFDS dataset. Default: test to evaluate, else train."),
        click.option(
            "--scale",
            type=float,
            callback=finite,
            default=1.0,
            show_default=True,
            help="Multiplies the pixels: 0.00392157 brings 0..255 to 0..1.",
        ),
        click.option("--batch-size", type=AT_LEAST_ONE, default=64, show_default=True),
        click.option(
            "--noise-batches",
            type=AT_LEAST_ONE,
            default=100,
            show_default=True,
            help="Batches of noise in an epoch.",
        ),
        click.option("--seed", type=SEED, default=0, show_default=True),
    ]
    return _all(options)


def _all(options: Sequence[Callable]) -> Callable:
    return lambda function: functools.reduce(
        lambda f, option: option(f), reversed(options), function
    )


force_option = click.option("--force", is_flag=True, help="Replace outputs that are there.")
quiet_option = click.option("--quiet", is_flag=True, help="No progress on stderr.")
training_options = _all(
    [
        click.option(
            "--backup-every",
            type=AT_LEAST_ONE,
            default=200,
            show_default=True,
            help="Steps between backups.",
        ),
        click.option("--resume", is_flag=True, help="Go on with this command, which was stopped."),
        force_option,
        quiet_option,
    ]
)


@verb
@click.argument("base", type=Model(CLASSIFIER, HDF5))
@click.argument("output", type=Output(".keras"))
@click.option("--hidden-size", type=AT_LEAST_ONE, default=160, show_default=True, help="Width.")
@click.option(
    "--num-layers", type=click.IntRange(min=2), default=5, show_default=True, help="Depth."
)
@click.option(
    "--permutation",
    type=click.Choice(["none", "in_filter", "cross_filter"]),
    default="cross_filter",
    show_default=True,
    help="Order of a layer's coordinates.",
)
@click.option(
    "--steps",
    type=AT_LEAST_ONE,
    default=6000,
    show_default=True,
    help="Of reconstruction, without images.",
)
@click.option(
    "--epochs",
    type=click.IntRange(min=0),
    default=1,
    show_default=True,
    help="Of distillation on --data; 0 to reconstruct only.",
)
@data_options(required=False)
@click.option("--include", multiple=True, metavar="LAYER", help="Represent these layers only.")
@click.option("--exclude", multiple=True, metavar="LAYER", help="Keep these layers as they are.")
@click.option("--include-dense", is_flag=True, help="Represent Dense layers, too.")
@click.option("--view", type=click.Choice(["crop", "block"]), default="crop", show_default=True)
@training_options
@click.pass_obj
def fit(arguments: list[str], /, **options: Any) -> tuple[dict, str]:
    """Represent a classifier by a small network.

    BASE is a Keras classifier (.keras or .h5), OUTPUT the NeRN (.keras).
    Ctrl-C, or SIGTERM, stops after the step under way: OUTPUT.backup keeps the fit, and the same
    command with --resume goes on, to the same weights as if it had not been stopped.

    \b
    Examples:
      keras-nern fit classifier.keras nern.keras
      keras-nern fit classifier.keras nern.keras --data images.npz --epochs 5
      keras-nern fit classifier.keras nern.keras --data cifar10 --data-dir ~/tfds --hidden-size 140
      keras-nern fit classifier.h5 nern.keras --epochs 0 --steps 2000 --exclude stem --json
    """
    check_training(options, options["base"])
    from keras_nern.cli import runners

    return runners.fit(options, resume_command(arguments))


@verb
@click.argument("model", type=Model(NERN))
@click.argument("output", type=Output(".keras"))
@click.option("--bits", type=click.IntRange(2, 8), help="Of the predictor's weights.")
@click.option(
    "--sparsity",
    type=click.FloatRange(0, 1, max_open=True),
    default=0.0,
    show_default=True,
    help="Share of them to set to zero.",
)
@click.option(
    "--epochs",
    type=click.IntRange(min=0),
    default=1,
    show_default=True,
    help="Of distillation on --data with the weights as they are kept; 0 for none.",
)
@data_options(required=False)
@training_options
@click.pass_obj
def compress(arguments: list[str], /, **options: Any) -> tuple[dict, str]:
    """Quantise and prune the predictor of a NeRN, and train it on.

    MODEL and OUTPUT are NeRNs (.keras); `export` makes a file of OUTPUT. Ctrl-C as for `fit`.

    \b
    Examples:
      keras-nern compress nern.keras small.keras --bits 7 --data cifar10 --data-dir ~/tfds
      keras-nern compress nern.keras small.keras --bits 8 --sparsity 0.2 --data images.npz
      keras-nern compress nern.keras small.keras --bits 8 --epochs 0 --json
    """
    if options["bits"] is None and not options["sparsity"]:
        raise click.UsageError("Expected --bits, --sparsity, or both. Received: neither.")
    check_training(options, options["model"])
    from keras_nern.cli import runners

    return runners.compress(options, resume_command(arguments))


@verb
@click.argument("model", type=Model(NERN, COMPACT))
def info(**options: Any) -> tuple[dict, str]:
    """Print what a NeRN or a compact file holds.

    MODEL is a NeRN (.keras), told by layers and bytes, or a compact file (.nern).

    \b
    Examples:
      keras-nern info nern.keras
      keras-nern info small.nern --json
    """
    from keras_nern.cli import runners

    return runners.info(options)


@verb
@click.argument("model", type=Model(NERN, COMPACT))
@click.argument("output", type=Output(".keras", ".h5"))
@force_option
def reconstruct(**options: Any) -> tuple[dict, str]:
    """Rebuild the classifier as a Keras model.

    MODEL is a NeRN (.keras) or a compact file (.nern), OUTPUT an ordinary Keras model.

    \b
    Examples:
      keras-nern reconstruct nern.keras rebuilt.keras
      keras-nern reconstruct small.nern rebuilt.keras --force
    """
    no_overwriting(options["force"], options["output"], inputs=[options["model"]])
    from keras_nern.cli import runners

    return runners.reconstruct(options)


@verb
@click.argument("model", type=Model(NERN, COMPACT, CLASSIFIER, HDF5))
@click.option(
    "--base",
    type=Model(CLASSIFIER, HDF5),
    help="The original, for the agreement; a NeRN brings its own.",
)
@data_options(required=True)
@quiet_option
def evaluate(**options: Any) -> tuple[dict, str]:
    """Measure a rebuilt classifier on images.

    MODEL is a NeRN, a compact file or any Keras classifier. Accuracy and agreement with the
    original are shares from 0 to 1.

    \b
    Examples:
      keras-nern evaluate nern.keras --data test.npz
      keras-nern evaluate nern.keras --data cifar10 --data-dir ~/tfds --json
      keras-nern evaluate small.nern --data images.npy --base classifier.keras
    """
    from keras_nern.cli import runners

    return runners.evaluate(options)


@verb
@click.argument("model", type=Model(NERN))
@click.argument("output", type=Output(".nern"))
@click.option(
    "--precision",
    type=click.Choice(PRECISIONS),
    default="auto",
    show_default=True,
    help="Of the predictor's weights.",
)
@click.option(
    "--kept-precision",
    type=click.Choice(["float32", "float16"]),
    default="float32",
    show_default=True,
    help="Of the weights that are not represented.",
)
@force_option
def export(**options: Any) -> tuple[dict, str]:
    """Write the compact file of a NeRN.

    OUTPUT (.nern) rebuilds the classifier where neither MODEL nor the original is.

    \b
    Examples:
      keras-nern export nern.keras small.nern
      keras-nern export nern.keras small.nern --precision int7
    """
    no_overwriting(options["force"], options["output"], inputs=[options["model"]])
    from keras_nern.cli import runners

    return runners.export(options)


@verb
@click.argument("model", type=Model(NERN))
@click.option("--measure", type=click.Choice(MEASURES), default="relative", show_default=True)
@click.option("--seed", type=SEED, default=0, show_default=True, help="Of random scores.")
@click.option("--scores", type=Output(".npz"), help="Save all scores: an array for each layer.")
@click.option("--plot", type=Output(".png", ".pdf", ".svg"), help="Save a map of each layer.")
@click.option(
    "--pruned", type=Output(".keras", ".h5"), help="Save the original without its lowest kernels."
)
@click.option("--sparsity", type=click.FloatRange(0, 1), help="Share of weights that go then.")
@click.option("--per-layer", is_flag=True, help="The same share of each layer.")
@force_option
def importance(**options: Any) -> tuple[dict, str]:
    """Score kernels by how well they are reconstructed.

    MODEL is a NeRN. A kernel is a channel of a filter; the higher its score, the more it matters.

    \b
    Examples:
      keras-nern importance nern.keras --plot importance.png
      keras-nern importance nern.keras --pruned pruned.keras --sparsity 0.2
      keras-nern importance nern.keras --measure magnitude --scores scores.npz --json
    """
    if (options["pruned"] is None) != (options["sparsity"] is None):
        raise click.UsageError("--pruned and --sparsity go together.")
    if options["per_layer"] and options["pruned"] is None:
        raise click.UsageError("--per-layer goes with --pruned and --sparsity.")
    outputs = (options["scores"], options["plot"], options["pruned"])
    no_overwriting(options["force"], *outputs, inputs=[options["model"]])
    from keras_nern.cli import runners

    return runners.importance(options)


@verb
@click.option("--hidden-size", type=AT_LEAST_ONE, default=160, show_default=True)
@click.option(
    "--epochs", type=AT_LEAST_ONE, default=20, show_default=True, help="Of the classifier."
)
@click.option("--reconstruction-steps", type=AT_LEAST_ONE, default=2000, show_default=True)
@click.option("--distillation-epochs", type=AT_LEAST_ONE, default=10, show_default=True)
@click.option("--seed", type=SEED, default=0, show_default=True)
@click.option(
    "--output",
    type=click.Path(file_okay=False, writable=True, path_type=pathlib.Path),
    default=pathlib.Path("demo_output"),
    show_default=True,
    help="Folder for the picture.",
)
def demo(**options: Any) -> tuple[dict, str]:
    """Go the whole way on handwritten digits.

    Trains a classifier, represents it, rebuilds it and compares the two.

    \b
    Examples:
      keras-nern demo
      keras-nern demo --hidden-size 80 --epochs 5 --json
    """
    from keras_nern.cli import runners

    return runners.demo(options)


def check_training(options: dict, input: pathlib.Path) -> None:
    """Refuses outputs that are there, and a fit that was stopped unless it is to go on."""
    output = options["output"]
    no_overwriting(options["force"], output, inputs=[input])
    backup = backup_of(output)
    if options["resume"] and not backup.exists():
        raise click.UsageError(f"There is nothing to resume: {str(backup)!r} does not exist.")
    check_backup(backup)
    if backup.exists() and not (options["resume"] or options["force"]):
        raise click.UsageError(
            f"{str(backup)!r} keeps a fit that was stopped: go on with --resume, or start over "
            "with --force."
        )


def resume_command(arguments: list[str]) -> str:
    """The command line that goes on with the one that was given."""
    more = [] if "--resume" in arguments else ["--resume"]
    return shlex.join(["keras-nern", *arguments, *more])
