"""The verbs: their options, their help, and the checks made before any work.

`option` takes the name and the default of an option from an argument of the API, so that the
command line and the API agree.
"""

import contextlib
import functools
import inspect
import json
import math
import pathlib
import shlex
import sys
from collections.abc import Callable
from typing import Any

import click

import keras_nern
from keras_nern.analysis.importance import MEASURES
from keras_nern.artifact.codec import KEPT_FLOATS, PRECISIONS
from keras_nern.cli import runners
from keras_nern.cli.arguments import (
    CLASSIFIER,
    COMPACT,
    HDF5,
    NERN,
    AutoInteger,
    ModelFile,
    OutputFile,
    Size,
    check_backup,
    check_overwriting,
    data_source,
    finite,
    kind_of,
)
from keras_nern.demo import run as run_demo
from keras_nern.network.blocks import VIEWS
from keras_nern.permutations.orders import KINDS

AT_LEAST_ONE = click.IntRange(min=1)
SEED = click.IntRange(0, 2**32 - 1)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 96})
@click.version_option(package_name="keras-nern")
def commands() -> None:
    """Neural representations for the weights of trained convolutional networks.

    \b
    keras-nern fit classifier.keras nern.keras     # represent it by a small network
    keras-nern evaluate nern.keras --data cifar10  # measure the rebuilt classifier
    keras-nern export nern.keras small.nern        # write one small file that rebuilds it

    Every verb has --help with examples, and --json for one JSON document on stdout.
    Exit codes: 0 success, 1 failure, 2 invalid input (nothing was done), 130 stopped by Ctrl-C.
    """


def verb(function: Callable) -> click.Command:
    """Turns a function that returns `(results, text)` into a verb that prints one of them.

    All other output, such as Keras's progress bars, goes to stderr.
    """

    @functools.wraps(function)
    def run(*arguments: Any, as_json: bool, **options: Any) -> None:
        with contextlib.redirect_stdout(sys.stderr):
            results, text = function(*arguments, **options)
        click.echo(json.dumps(_finite(results), allow_nan=False) if as_json else text)

    as_json = click.option(
        "--json", "as_json", is_flag=True, help="Print one JSON document on stdout."
    )
    return commands.command()(as_json(run))


def _finite(results: Any) -> Any:
    """Results with `None` in place of NaN and infinity, which JSON does not have."""
    if isinstance(results, dict):
        return {name: _finite(value) for name, value in results.items()}
    if isinstance(results, list):
        return [_finite(value) for value in results]
    return results if not isinstance(results, float) or math.isfinite(results) else None


def option(function: Callable, argument: str, help: str, **settings: Any) -> Callable:
    """An option for an argument of `function`, with its name and default.

    Args:
        function: a function or class of the API.
        argument: name of its argument.
        help: help text of the option.
        **settings: settings of `click.option`, such as `type`.
    """
    default = settings.pop("default", inspect.signature(function).parameters[argument].default)
    if isinstance(default, bool):
        settings["is_flag"] = True
    elif default is not None:
        settings["show_default"] = True
    name = argument.replace("_", "-")
    return click.option(f"--{name}", argument, help=help, default=default, **settings)


def _all(*options: Callable) -> Callable:
    return lambda function: functools.reduce(lambda f, one: one(f), reversed(options), function)


def _names(ctx: click.Context, param: click.Parameter, value: Any) -> list[str] | None:
    return list(value or ()) or None


def _kind(ctx: click.Context, param: click.Parameter, value: str) -> str | None:
    return None if value == "none" else value


def data_options(default: str | None) -> Callable:
    """The options that select images; `--data` is required if it has no default."""
    settings = {"required": True} if default is None else {"default": default, "show_default": True}
    noise = keras_nern.NoiseDataset
    return _all(
        click.option(
            "--data",
            callback=data_source,
            metavar="noise|FILE|NAME",
            help="Noise with the statistics of the first batch normalization; an .npz file "
            "(arrays images and labels) or .npy file (images); or the name of a TFDS dataset.",
            **settings,
        ),
        click.option(
            "--data-dir",
            type=click.Path(exists=True, file_okay=False),
            help="Existing folder for the TFDS dataset, which is downloaded if it is missing.",
        ),
        click.option(
            "--split", help="Split of the TFDS dataset. Default: test for evaluate, else train."
        ),
        click.option(
            "--scale",
            type=float,
            callback=finite,
            default=1.0,
            show_default=True,
            help="Factor of the pixels: 0.00392157 scales 0..255 to 0..1.",
        ),
        option(noise, "batch_size", "Images per batch.", type=AT_LEAST_ONE),
        click.option(
            "--noise-batches",
            type=AT_LEAST_ONE,
            default=inspect.signature(noise).parameters["steps"].default,
            show_default=True,
            help="Batches of noise per epoch.",
        ),
        option(noise, "seed", "Seed of all random numbers.", type=SEED),
    )


force_option = click.option("--force", is_flag=True, help="Replace outputs that exist.")
quiet_option = click.option("--quiet", is_flag=True, help="Print no progress on stderr.")
training_options = _all(
    click.option(
        "--epochs",
        type=click.IntRange(min=0),
        default=1,
        show_default=True,
        help="Epochs of distillation on --data; 0 for none.",
    ),
    data_options(default="noise"),
    click.option(
        "--backup-every",
        type=AT_LEAST_ONE,
        default=200,
        show_default=True,
        help="Steps between backups.",
    ),
    click.option("--resume", is_flag=True, help="Continue this command after it was stopped."),
    force_option,
    quiet_option,
)


@verb
@click.argument("base", type=ModelFile(CLASSIFIER, HDF5))
@click.argument("output", type=OutputFile(".keras"))
@option(
    keras_nern.NeRNModel,
    "size",
    "Size of the predictor as a share of the represented weights, such as 0.4 (the default), or of "
    "predictor and permutation in bytes, such as '200 kB'.",
    type=Size(),
    metavar="SHARE|BYTES",
)
@option(
    keras_nern.NeRNModel,
    "experts",
    "Number of local predictors; 1 for a single one. auto chooses by the size, and is 1 with "
    "--hidden-size.",
    type=AutoInteger(),
    metavar="auto|N",
)
@option(
    keras_nern.NeRNModel,
    "hidden_size",
    "Width of the predictor, or of each local one, in place of --size.",
    type=AT_LEAST_ONE,
)
@option(
    keras_nern.NeRNModel,
    "num_layers",
    "Dense layers of a predictor. Default: 5, or 9 of each local one.",
    type=click.IntRange(min=2),
)
@option(
    keras_nern.NeRNModel,
    "permutation",
    "Permutation of the kernels of each layer.",
    type=click.Choice([str(kind).lower() for kind in KINDS]),
    callback=_kind,
    default="cross_filter",
)
@option(
    keras_nern.NeRNModel,
    "view",
    "How kernels are cut into blocks.",
    type=click.Choice(["auto", *VIEWS]),
)
@option(
    keras_nern.NeRNModel,
    "include",
    "Represent only this layer; repeatable.",
    metavar="LAYER",
    multiple=True,
    callback=_names,
)
@option(
    keras_nern.NeRNModel,
    "exclude",
    "Do not represent this layer; repeatable.",
    metavar="LAYER",
    multiple=True,
    callback=_names,
)
@option(keras_nern.NeRNModel, "include_dense", "Represent Dense layers, too.")
@option(
    keras_nern.NeRNModel,
    "teacher",
    "A better classifier (.keras) of the same classes, whose outputs are distilled.",
    type=ModelFile(CLASSIFIER),
)
@option(
    keras_nern.NeRNModel.compile,
    "reconstruction_steps",
    "Steps of reconstruction, without images. auto chooses by the number of kernels.",
    type=AutoInteger(),
    metavar="auto|N",
)
@option(
    keras_nern.NeRNModel.compile,
    "curvature_steps",
    "Steps on the curvature of the losses. auto is 300 with local predictors if --epochs is above "
    "0 or --data is not noise, otherwise 0.",
    type=AutoInteger(),
    metavar="auto|N",
)
@training_options
@click.pass_obj
def fit(arguments: list[str], /, **options: Any) -> tuple[dict, str]:
    """Represent a classifier by a small network.

    BASE is a Keras classifier (.keras or .h5), OUTPUT the NeRN (.keras).
    Ctrl-C or SIGTERM stops after the current step, which is backed up in OUTPUT.backup. The same
    command with --resume continues and ends with the weights of a fit that was not stopped.

    \b
    Examples:
      keras-nern fit classifier.keras nern.keras
      keras-nern fit classifier.keras nern.keras --data images.npz --epochs 5
      keras-nern fit classifier.keras nern.keras --data cifar10 --data-dir ~/tfds --size 0.3
      keras-nern fit classifier.keras nern.keras --size "200 kB" --view block
      keras-nern fit classifier.h5 nern.keras --epochs 0 --exclude stem --json
    """
    if options["size"] is not None and options["hidden_size"] is not None:
        raise click.UsageError("Expected --size or --hidden-size. Received: both.")
    check_training(options, options["base"])
    return runners.fit(options, resume_command(arguments))


@verb
@click.argument("model", type=ModelFile(NERN, CLASSIFIER))
@click.argument("output", type=OutputFile(".keras"))
@option(
    keras_nern.compress,
    "max_bytes",
    "Represent the kernels by integers whose compact file, with kept weights in bfloat16, has "
    "at most these bytes, such as '100 kB'.",
    type=Size(),
    metavar="BYTES",
)
@option(
    keras_nern.compress,
    "max_drop",
    "Represent the kernels by the fewest integers with at most this drop in accuracy on "
    "--validation, in percentage points.",
    type=click.FloatRange(0, 100),
)
@click.option(
    "--validation",
    callback=data_source,
    metavar="FILE|NAME",
    help="Images and labels for --max-drop, in the forms of --data.",
)
@click.option(
    "--validation-split",
    default="test",
    show_default=True,
    help="Split of the TFDS dataset of --validation.",
)
@option(keras_nern.compress, "bits", "Bits of the predictor's kernels.", type=click.IntRange(2, 8))
@option(
    keras_nern.compress,
    "sparsity",
    "Share of the predictor's kernels to set to zero.",
    type=click.FloatRange(0, 1, max_open=True),
)
@training_options
@click.pass_obj
def compress(arguments: list[str], /, **options: Any) -> tuple[dict, str]:
    """Compress a NeRN, or a classifier without a predictor, and train the result further.

    MODEL is a NeRN or a Keras classifier, OUTPUT a NeRN (.keras); export OUTPUT for a small file.
    --bits and --sparsity compress the predictor of a NeRN, --max-bytes and --max-drop add integers
    to what it predicts. Ctrl-C and --resume work as for fit.

    \b
    Examples:
      keras-nern compress classifier.keras small.keras --max-bytes "100 kB" --data images.npz
      keras-nern compress classifier.keras small.keras --max-drop 0.5 --validation test.npz
      keras-nern compress nern.keras small.keras --bits 7 --data cifar10 --data-dir ~/tfds
      keras-nern compress nern.keras small.keras --bits 8 --sparsity 0.2 --data images.npz
      keras-nern compress nern.keras small.keras --bits 8 --epochs 0 --json
    """
    given = [options["bits"] is not None or options["sparsity"] > 0]
    given += [options[name] is not None for name in ("max_bytes", "max_drop")]
    if sum(given) != 1:
        raise click.UsageError(
            "Expected --bits, --sparsity or both, or one of --max-bytes and --max-drop. Received: "
            f"{'several' if sum(given) else 'none'} of them."
        )
    if (options["max_drop"] is None) != (options["validation"] is None):
        raise click.UsageError("Expected --max-drop with --validation. Received: one of them.")
    if given[0] and kind_of(options["model"]) != NERN:
        raise click.UsageError(
            "--bits and --sparsity compress a predictor. Received: a classifier without one."
        )
    check_training(options, options["model"])
    return runners.compress(options, resume_command(arguments))


@verb
@click.argument("model", type=ModelFile(NERN, COMPACT))
def info(**options: Any) -> tuple[dict, str]:
    """Describe a NeRN or a compact file.

    MODEL is a NeRN (.keras) or a compact file (.nern).

    \b
    Examples:
      keras-nern info nern.keras
      keras-nern info small.nern --json
    """
    return runners.info(options)


@verb
@click.argument("model", type=ModelFile(NERN, COMPACT))
@click.argument("output", type=OutputFile(".keras", ".h5"))
@force_option
def reconstruct(**options: Any) -> tuple[dict, str]:
    """Rebuild the classifier as a Keras model.

    MODEL is a NeRN (.keras) or a compact file (.nern), OUTPUT an ordinary Keras model.

    \b
    Examples:
      keras-nern reconstruct nern.keras rebuilt.keras
      keras-nern reconstruct small.nern rebuilt.keras --force
    """
    check_overwriting(options["force"], options["output"], inputs=[options["model"]])
    return runners.reconstruct(options)


@verb
@click.argument("model", type=ModelFile(NERN, COMPACT, CLASSIFIER, HDF5))
@click.option(
    "--base",
    type=ModelFile(CLASSIFIER, HDF5),
    help="Original classifier, for the agreement; a NeRN contains its own.",
)
@data_options(default=None)
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
    return runners.evaluate(options)


@verb
@click.argument("model", type=ModelFile(NERN))
@click.argument("output", type=OutputFile(".nern"))
@option(
    keras_nern.NeRNModel.export,
    "precision",
    "Type of the predictor's kernels.",
    type=click.Choice(["auto", *PRECISIONS]),
)
@option(
    keras_nern.NeRNModel.export,
    "kept_precision",
    "Type of the weights that are not represented.",
    type=click.Choice(KEPT_FLOATS),
)
@force_option
def export(**options: Any) -> tuple[dict, str]:
    """Write the compact file of a NeRN.

    OUTPUT (.nern) rebuilds the classifier without MODEL and without the original.

    \b
    Examples:
      keras-nern export nern.keras small.nern
      keras-nern export nern.keras small.nern --precision int7
    """
    check_overwriting(options["force"], options["output"], inputs=[options["model"]])
    return runners.export(options)


@verb
@click.argument("model", type=ModelFile(NERN))
@option(
    keras_nern.kernel_importance,
    "measure",
    "Measure of importance.",
    type=click.Choice([one for one in MEASURES if one != "curvature"]),  # which needs images
)
@option(keras_nern.kernel_importance, "seed", "Seed of the random scores.", type=SEED)
@click.option("--scores", type=OutputFile(".npz"), help="Save all scores, one array per layer.")
@click.option("--plot", type=OutputFile(".png", ".pdf", ".svg"), help="Save one map per layer.")
@click.option(
    "--pruned",
    type=OutputFile(".keras", ".h5"),
    help="Save the original without its least important kernels.",
)
@click.option(
    "--sparsity", type=click.FloatRange(0, 1), help="Share of the weights to prune with --pruned."
)
@option(keras_nern.prune, "per_layer", "Prune the same share of each layer.")
@force_option
def importance(**options: Any) -> tuple[dict, str]:
    """Score kernels by how well they are reconstructed.

    MODEL is a NeRN. A kernel is one channel of a filter; a higher score means more important.

    \b
    Examples:
      keras-nern importance nern.keras --plot importance.png
      keras-nern importance nern.keras --pruned pruned.keras --sparsity 0.2
      keras-nern importance nern.keras --measure magnitude --scores scores.npz --json
    """
    if (options["pruned"] is None) != (options["sparsity"] is None):
        raise click.UsageError("Expected --pruned and --sparsity together. Received: one of them.")
    if options["per_layer"] and options["pruned"] is None:
        raise click.UsageError("--per-layer needs --pruned and --sparsity. Received: neither.")
    outputs = (options["scores"], options["plot"], options["pruned"])
    check_overwriting(options["force"], *outputs, inputs=[options["model"]])
    return runners.importance(options)


@verb
@option(run_demo, "hidden_size", "Width of the predictor.", type=AT_LEAST_ONE)
@option(run_demo, "epochs", "Epochs of training the classifier.", type=AT_LEAST_ONE)
@option(run_demo, "reconstruction_steps", "Steps of reconstruction.", type=AT_LEAST_ONE)
@option(run_demo, "distillation_epochs", "Epochs of distillation.", type=AT_LEAST_ONE)
@option(run_demo, "seed", "Seed of all random numbers.", type=SEED)
@option(
    run_demo,
    "output",
    "Folder of the picture.",
    type=click.Path(file_okay=False, writable=True, path_type=pathlib.Path),
)
def demo(**options: Any) -> tuple[dict, str]:
    """Train, represent and rebuild a classifier of handwritten digits.

    \b
    Examples:
      keras-nern demo
      keras-nern demo --hidden-size 80 --epochs 5 --json
    """
    return runners.demo(options)


def check_training(options: dict, source: pathlib.Path) -> None:
    """Checks the output and the backup of a verb that trains."""
    check_overwriting(options["force"], options["output"], inputs=[source])
    check_backup(options["output"], options["resume"], options["force"])


def resume_command(arguments: list[str]) -> str:
    """The command line that continues a stopped one."""
    more = [] if "--resume" in arguments else ["--resume"]
    return shlex.join(["keras-nern", *arguments, *more])
