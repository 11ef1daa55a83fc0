"""What the verbs do, by the public API of `keras_nern`; imported when a verb is run.

Each function takes the options of its verb and returns `(results, text)`: what is printed with
`--json`, and what is printed without.
"""

import contextlib
import functools
import hashlib
import json
import pathlib
import shutil
import signal
import sys
import time
import types
import zipfile
from collections.abc import Callable, Iterator
from typing import Any

import click
import keras
import numpy as np

import keras_nern
from keras_nern.analysis import plots
from keras_nern.cli import data
from keras_nern.cli.arguments import COMPACT, NERN, SETTINGS, backup_of, kind_of
from keras_nern.training.evaluation import ClassReader
from keras_nern.utils.files import atomic_write

BATCH_SIZE = 500  # of predictions
UNIMPORTANT = ("resume", "force", "quiet", "backup_every")  # to which fit it is


class Stopped(KeyboardInterrupt):
    """A fit was stopped at the end of a step, and can go on."""

    def __init__(self, text: str, code: int, resume: str) -> None:
        super().__init__(text)
        self.code = code
        self.resume = resume


def training(verb: Callable) -> Callable:
    """A verb that trains: what is to go on is checked first, and said if it is stopped early."""

    @functools.wraps(verb)
    def run(options: dict, command: str) -> tuple[dict, str]:
        keras.utils.set_random_seed(options["seed"])
        _check_resumed(options)
        try:
            return verb(options, command)
        except Stopped:
            raise
        except KeyboardInterrupt as error:  # before the first step, or the second Ctrl-C
            backup = backup_of(options["output"])
            if not (options["resume"] and backup.exists()):
                raise
            text = str(error) or f"Stopped. {backup} keeps the fit as it was; go on by\n  {command}"
            raise Stopped(text, 130, command) from error

    return run


@training
def fit(options: dict, command: str) -> tuple[dict, str]:
    """Represents a classifier; `command` is the command line, for the way to go on."""
    with refused():
        base = _load_model(options["base"])
        images = _training_images(options, base)
        nern = keras_nern.NeRNModel(
            base,
            hidden_size=options["hidden_size"],
            num_layers=options["num_layers"],
            permutation=None if options["permutation"] == "none" else options["permutation"],
            view=options["view"],
            include=options["include"] or None,
            exclude=options["exclude"] or None,
            include_dense=options["include_dense"],
        )
        nern.compile(reconstruction_steps=options["steps"])
    results = _train(nern, images, options, command)
    table = nern.summary_table()
    text = (
        f"{options['output']}: {table.weights:,} weights of {len(table.layers)} kernels in "
        f"{table.representation_bytes:,.0f} bytes, relative squared error "
        f"{results['relative_error']:.4f}"
    )
    return results, text


@training
def compress(options: dict, command: str) -> tuple[dict, str]:
    """Compresses a NeRN's predictor and trains it on; `command` as for `fit`."""
    with refused():
        nern = _load_model(options["model"])
        images = _training_images(options, nern.base)
        small = keras_nern.compress(nern, options["bits"], options["sparsity"])
    before, untrained = nern.relative_error(), small.relative_error()
    results = _train(small, images, options, command)
    results |= {"relative_error_before": before, "relative_error_untrained": untrained}
    text = (
        f"{options['output']}: {results['representation_bytes']:,.0f} bytes, relative squared "
        f"error {results['relative_error']:.4f} (before {before:.4f})"
    )
    return results, text


def _training_images(options: dict, base: keras.Model) -> Any:
    """What `--data` names; `None` where there are no epochs to need it."""
    if not options["epochs"]:
        return None
    images, _ = data.load(options, base, "train", for_training=True)
    return images


def _train(nern: keras_nern.NeRNModel, images: Any, options: dict, command: str) -> dict:
    """Fits as far as there is something to do, keeping backups; saves; tells what came out."""
    output, backup = options["output"], backup_of(options["output"])
    start = time.perf_counter()
    logs: dict[str, list] = {}
    if images is not None or options.get("steps"):
        _open_backup(backup, options)
        keeping = keras.callbacks.BackupAndRestore(
            backup, save_freq=options["backup_every"], delete_checkpoint=False
        )
        given: dict[str, Any] = {"steps_per_epoch": options.get("steps")}
        if images is not None:
            batch_size = options["batch_size"] if isinstance(images, np.ndarray) else None
            given = {"x": images, "epochs": options["epochs"], "batch_size": batch_size}
        verbose = 0 if options["quiet"] else 1 if sys.stderr.isatty() else 2
        with _stop_between_steps(keeping, backup, command) as stopping:
            logs = nern.fit(**given, verbose=verbose, callbacks=[keeping, stopping]).history
            error = _save_if_finite(nern, output)
        shutil.rmtree(backup)
    else:
        error = _save_if_finite(nern, output)
    if not np.isfinite(error):
        raise ValueError(
            "Expected a fit that ends with finite weights. Received: some NaN or infinite, "
            f"it diverged; {str(output)!r} was not written"
        )
    table = nern.summary_table()
    return {
        "output": str(output),
        "seconds": time.perf_counter() - start,
        "relative_error": error,
        "last_epoch": {name: float(values[-1]) for name, values in logs.items()},
        "predictor_parameters": table.predictor_parameters,
        "representation_bytes": table.representation_bytes,
    }


def _save_if_finite(nern: keras_nern.NeRNModel, output: pathlib.Path) -> float:
    """Saves a NeRN unless it diverged; returns its relative squared error."""
    error = nern.relative_error()
    if np.isfinite(error):
        nern.save(output)
    return error


def info(options: dict) -> tuple[dict, str]:
    """What a NeRN or a compact file holds."""
    path = options["model"]
    if kind_of(path) == COMPACT:
        with refused():
            held = keras_nern.artifact.info.inspect(path)
        return {"kind": COMPACT, **held.to_dict()}, str(held)
    with refused():
        table = _load_model(path).summary_table()
    return {"kind": NERN, **table.to_dict()}, str(table)


def reconstruct(options: dict) -> tuple[dict, str]:
    """The rebuilt classifier, as a file of Keras's."""
    output = options["output"]
    with refused():
        _, _, rebuilt = _open(options["model"])
    with atomic_write(output) as path:
        rebuilt.save(path)
    results = {"output": str(output), "parameters": rebuilt.count_params()}
    return results, f"{output}: {rebuilt.name}, {rebuilt.count_params():,} parameters"


def evaluate(options: dict) -> tuple[dict, str]:
    """How a rebuilt classifier does on images, beside the original where there is one."""
    with refused():
        nern, base, rebuilt = _open(options["model"])
        if options["base"] is not None:
            base = _load_model(options["base"])
        images, labels = data.load(options, rebuilt, "test")
        if labels is None and base is None:
            raise ValueError(
                "Expected labels in --data, for the accuracy, or --base, for the agreement with "
                "the original. Received: neither"
            )
        first = data.one_of(images)
        reader = ClassReader(rebuilt, first)
        original_reader = None if base is None else ClassReader(base, first)
        if original_reader and original_reader.num_classes != reader.num_classes:
            raise ValueError(
                f"Expected an original of {reader.num_classes} classes, as the rebuilt one. "
                f"Received: one of {original_reader.num_classes}"
            )
        if labels is not None:
            data.check_labels(labels, reader.num_classes)
    predicted = reader(_outputs(rebuilt, images, options))
    results: dict[str, float] = {"images": len(predicted)}
    if labels is not None:
        results["accuracy"] = float(np.mean(predicted == labels))
    if original_reader:
        original = original_reader(_outputs(base, images, options))
        results["agreement"] = float(np.mean(predicted == original))
        if labels is not None:
            results["original_accuracy"] = float(np.mean(original == labels))
            results["drop"] = results["original_accuracy"] - results["accuracy"]
    if nern is not None:
        results["relative_error"] = nern.relative_error()
    shown = {
        name: f"{value:,}" if name == "images" else f"{value:.4f}"
        for name, value in results.items()
    }
    return results, "\n".join(f"{name:<18} {value:>10}" for name, value in shown.items())


def export(options: dict) -> tuple[dict, str]:
    """The compact file of a NeRN."""
    output = options["output"]
    with refused():
        nern = _load_model(options["model"])
    with refused((ValueError, ImportError)):  # which come before it writes
        nern.export(
            output, precision=options["precision"], kept_precision=options["kept_precision"]
        )
    held = keras_nern.artifact.info.inspect(output)
    return {"output": str(output), **held.to_dict()}, f"{output}: {held.file_bytes:,} bytes"


def importance(options: dict) -> tuple[dict, str]:
    """Scores of all kernels; of each layer the middle one and how many are pruned."""
    with refused():
        nern = _load_model(options["model"])
        scores = keras_nern.kernel_importance(nern, options["measure"], options["seed"])
        if any(np.isnan(score).any() for score in scores.values()):
            raise ValueError(
                "Expected a NeRN with finite weights. Received: one whose errors are NaN"
            )
    figure = None
    if options["plot"] is not None:
        with refused((ImportError,)):  # matplotlib may not be there: before anything is written
            figure = plots.plot_importance(scores, options["measure"])
    if options["scores"] is not None:
        with (
            atomic_write(options["scores"]) as path,
            zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive,
        ):
            for name, score in scores.items():  # np.savez has uses of its own for some names
                with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                    np.lib.format.write_array(member, score)
    if figure is not None:
        with atomic_write(options["plot"]) as path:
            figure.savefig(path)
    layers = [
        {"name": name, "kernels": score.size, "median": float(np.median(score))}
        for name, score in scores.items()
    ]
    results = {"measure": options["measure"], "layers": layers}
    if options["pruned"] is not None:
        pruned = keras_nern.prune(
            nern.base, scores, options["sparsity"], per_layer=options["per_layer"]
        )
        with atomic_write(options["pruned"]) as path:
            pruned.save(path)
        results |= {"sparsity": options["sparsity"], "pruned": str(options["pruned"])}
    width = max(len(name) for name in ["layer", *scores])
    lines = [f"{'layer':{width}}  kernels  median score"]
    lines += [
        f"{one['name']:{width}}  {one['kernels']:7,}  {one['median']:12.4g}" for one in layers
    ]
    lines += [str(options[name]) for name in ("scores", "plot", "pruned") if options[name]]
    return results, "\n".join(lines)


def demo(options: dict) -> tuple[dict, str]:
    """The demo of `keras_nern.demo`."""
    from keras_nern import demo

    with refused():
        options["output"].mkdir(parents=True, exist_ok=True)
    results = demo.main([f"--{name.replace('_', '-')}={value}" for name, value in options.items()])
    original, rebuilt = (results[name]["accuracy"] for name in ("original", "rebuilt"))
    return results, f"accuracy: {original:.3f} original, {rebuilt:.3f} rebuilt"


@contextlib.contextmanager
def refused(
    errors: tuple[type[Exception], ...] = (ValueError, OSError, ImportError),
) -> Iterator[None]:
    """Before the work starts: what the library refuses is the command line's mistake.

    Args:
        errors: by which it refuses.
    """
    try:
        yield
    except errors as error:
        raise click.UsageError(str(error)) from error


def _load_model(path: pathlib.Path) -> keras.Model:
    try:
        return keras.models.load_model(path, compile=kind_of(path) == NERN)
    except Exception as error:  # HDF5, zip, JSON and Keras have each their own
        raise ValueError(
            f"Expected a model that Keras can load. Received: {str(path)!r} ({error})"
        ) from error


def _open(
    path: pathlib.Path,
) -> tuple[keras_nern.NeRNModel | None, keras.Model | None, keras.Model]:
    """`(nern, base, rebuilt)` of a NeRN, and of a compact file and a classifier the last."""
    kind = kind_of(path)
    if kind == COMPACT:
        return None, None, keras_nern.load(path)
    model = _load_model(path)
    if kind == NERN:
        return model, model.base, model.reconstruct()
    return None, None, model


def _outputs(model: keras.Model, images: Any, options: dict) -> np.ndarray:
    verbose = 0 if options["quiet"] else 1 if sys.stderr.isatty() else 2
    batch_size = BATCH_SIZE if isinstance(images, np.ndarray) else None
    return model.predict(images, batch_size=batch_size, verbose=verbose)


def _check_resumed(options: dict) -> None:
    """Sees that what is to go on is a fit like this one."""
    if not options["resume"]:
        return
    backup = backup_of(options["output"])
    kept = _settings(options)
    try:
        before = json.loads((backup / SETTINGS).read_text())
        if not isinstance(before, dict):
            raise ValueError(f"its {SETTINGS} is no object")
    except (OSError, ValueError) as error:
        raise click.UsageError(f"{str(backup)!r} holds no fit: {error}") from error
    other = [name for name in kept if kept[name] != before.get(name)]
    if other:
        shown = ", ".join(f"{name}={before.get(name)!r}, now {kept[name]!r}" for name in other)
        raise click.UsageError(
            f"--resume goes on with the command that was stopped. Received: other options "
            f"than its ({shown})"
        )


def _open_backup(backup: pathlib.Path, options: dict) -> None:
    """Makes the folder that keeps a fit, unless one goes on."""
    if options["resume"]:
        return
    shutil.rmtree(backup, ignore_errors=True)  # `commands` has seen to it that it may go
    backup.mkdir()
    with atomic_write(backup / SETTINGS) as path:
        pathlib.Path(path).write_text(json.dumps(_settings(options)))


def _settings(options: dict) -> dict:
    """What tells a fit from another."""
    kept = {name: value for name, value in options.items() if name not in UNIMPORTANT}
    # what is in the file, too, which may be another one by then
    with open(options.get("base") or options["model"], "rb") as file:
        kept["content"] = hashlib.file_digest(file, "sha256").hexdigest()
    return json.loads(json.dumps(kept, default=lambda path: str(pathlib.Path(path).absolute())))


class _StopBetweenSteps(keras.callbacks.Callback):
    """Raises `Stopped` at the end of the step in which a signal came."""

    def __init__(
        self, keeping: keras.callbacks.BackupAndRestore, backup: pathlib.Path, command: str
    ) -> None:
        super().__init__()
        self.keeping, self.backup, self.command = keeping, backup, command
        self.signal: int | None = None

    def on_signal(self, number: int, frame: types.FrameType | None) -> None:
        if self.signal is not None:
            raise KeyboardInterrupt("Stopped at once; --resume goes on from the last backup.")
        self.signal = number
        self.keeping.save_freq = 1  # this step is backed up
        print("\nStopping after this step; once more to stop at once.", file=sys.stderr)

    def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
        if self.signal is None:
            return
        steps = int(keras.ops.convert_to_numpy(self.model.phase_iterations))
        raise Stopped(
            f"Stopped. {self.backup} keeps step {steps:,} of the {self.model.phase}; go on by\n"
            f"  {self.command}",
            128 + self.signal,
            self.command,
        )


@contextlib.contextmanager
def _stop_between_steps(
    keeping: keras.callbacks.BackupAndRestore, backup: pathlib.Path, command: str
) -> Iterator[_StopBetweenSteps]:
    """Lets Ctrl-C and SIGTERM wait for the end of a step; gives the callback for it."""
    stopping = _StopBetweenSteps(keeping, backup, command)
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, stopping.on_signal) for number in numbers}
    try:
        yield stopping
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
