"""The work of the verbs, done by the API of `keras_nern`.

Each verb takes its options and returns `(results, text)`: the document that `--json` prints, and
the text that is printed without it.
"""

import contextlib
import copy
import hashlib
import json
import math
import pathlib
import shutil
import signal
import sys
import time
import types
import zipfile
from collections.abc import Iterator
from typing import Any

import click
import h5py
import keras
import numpy as np

import keras_nern
from keras_nern.analysis import plots
from keras_nern.artifact.info import inspect
from keras_nern.cli import data
from keras_nern.cli.arguments import (
    CLASSIFIER,
    COMPACT,
    HDF5,
    NERN,
    SETTINGS,
    backup_of,
    has_backup,
    kind_of,
)
from keras_nern.demo import run as run_demo
from keras_nern.network.original import check_weights
from keras_nern.network.outputs import ClassReader
from keras_nern.training.fit_callbacks import DivergedError
from keras_nern.utils import checks
from keras_nern.utils.backend import to_int
from keras_nern.utils.files import atomic_write
from keras_nern.utils.progress import Progress, Screen
from keras_nern.utils.tables import Table

BATCH_SIZE = 500  # of predictions
UNIMPORTANT = ("resume", "force", "quiet", "backup_every")  # options that may differ on --resume
KINDS = {NERN: "nern", COMPACT: "compact", CLASSIFIER: "keras", HDF5: "hdf5"}  # for --json


def fit(options: dict, resume_command: str) -> tuple[dict, str]:
    """Represents a classifier."""
    with _stoppable(options, resume_command) as backup:
        with refused():
            base = _load_model(options["base"])
            images = _training_images(options, base)
            arguments = checks.accepted(keras_nern.NeRNModel, options)
            nern = keras_nern.NeRNModel(
                **arguments | {"base": base, "permutation": _permutation(options, base)}
            )
            nern.compile(**checks.accepted(nern.compile, options))
        results = _train(nern, images, options, backup)
    table = nern.summary_table()
    text = (
        f"{options['output']}: {table.weights:,} weights of {len(table.layers)} kernels in "
        f"{table.representation_bytes:,.0f} bytes (experts={nern.experts}, "
        f"hidden_size={nern.hidden_size}), relative squared error {results['relative_error']:.4f}"
    )
    return results, text


def compress(options: dict, resume_command: str) -> tuple[dict, str]:
    """Compresses the predictor of a NeRN and trains it further."""
    with _stoppable(options, resume_command) as backup:
        with refused():
            nern = _load_model(options["model"])
            if kind_of(options["model"]) != NERN:
                nern = keras_nern.NeRNModel(nern, size=0)
            images = _training_images(options, nern.base)
            if options["max_bytes"] is None and options["max_drop"] is None:
                _say("Compressing the predictor", options)
                small = keras_nern.compress(nern, options["bits"], options["sparsity"])
            else:
                small = _add_residual(nern, options)
        before, untrained = nern.relative_error(), small.relative_error()
        results = _train(small, images, options, backup)
    results |= {"relative_error_before": before, "relative_error_untrained": untrained}
    text = (
        f"{options['output']}: {results['representation_bytes']:,.0f} bytes, relative squared "
        f"error {results['relative_error']:.4f} (before {before:.4f})"
    )
    return results, text


def _add_residual(nern: keras_nern.NeRNModel, options: dict) -> keras_nern.NeRNModel:
    """Adds the integers of `--max-bytes` or `--max-drop`."""
    images, _ = data.load(options, nern.base, "train", for_training=True)
    given: dict[str, Any] = {name: options[name] for name in ("max_bytes", "max_drop")}
    if options["validation"] is not None:
        source = {"data": options["validation"], "split": options["validation_split"]}
        held_out, labels = data.load({**options, **source}, nern.base, "test")
        if labels is None:
            raise ValueError(
                "--validation must have labels. Received: "
                f"{options['validation']!r}, which has images only"
            )
        given["validation_data"] = data.with_labels(held_out, labels, options["batch_size"])
    return keras_nern.compress(nern, data=images, verbose=0 if options["quiet"] else 1, **given)


def _permutation(options: dict, base: keras.Model) -> keras_nern.Permutation:
    """The order of the base's blocks, which takes long for a large network."""
    return keras_nern.Permutation.from_model(
        base,
        options["permutation"],
        verbose=0 if options["quiet"] else "auto",
        **{name: options[name] for name in ("view", "include", "exclude", "include_dense")},
    )


def _training_images(options: dict, base: keras.Model) -> Any:
    """The images of `--data`; `None` if no phase needs them."""
    curvature_steps = options.get("curvature_steps", 0)
    if curvature_steps == "auto" and options["data"] == "noise":  # which is the default
        curvature_steps = 0
    if not options["epochs"] and not curvature_steps:
        return None
    images, _ = data.load(options, base, "train", for_training=True)
    return images


def _train(
    nern: keras_nern.NeRNModel, images: Any, options: dict, backup: "StoppableBackup"
) -> dict[str, Any]:
    """Fits, if there is something to train, and saves the result unless the fit diverged."""
    output = options["output"]
    steps = nern.reconstruction_steps if "reconstruction_steps" in options else None
    start = time.perf_counter()
    logs: dict[str, list] = {}
    backup.open(options)
    try:
        if images is not None or steps:
            given: dict[str, Any] = {"steps_per_epoch": steps}
            if images is not None:
                batch_size = options["batch_size"] if isinstance(images, np.ndarray) else None
                given = {"x": images, "epochs": options["epochs"], "batch_size": batch_size}
            verbose = 0 if options["quiet"] else 1
            logs = nern.fit(**given, verbose=verbose, callbacks=[backup]).history
        error = nern.relative_error()
        if not np.isfinite(error):
            raise DivergedError(
                "Expected a fit that ends with finite weights. Received: NaN or infinite weights"
            )
    except DivergedError as diverged:
        backup.delete()
        raise ValueError(
            f"The fit diverged and {str(output)!r} was not written. {diverged}"
        ) from diverged
    nern.save(output)
    backup.delete()
    table = nern.summary_table()
    return {
        "output": str(output),
        "seconds": time.perf_counter() - start,
        "relative_error": error,
        **{name: getattr(nern, name) for name in ("experts", "hidden_size", "num_layers")},
        "last_epoch": {name: float(values[-1]) for name, values in logs.items()},
        "predictor_parameters": table.predictor_parameters,
        "representation_bytes": math.ceil(table.representation_bytes),
    }


def info(options: dict) -> tuple[dict, str]:
    """Describes a NeRN or a compact file."""
    path = options["model"]
    kind = str(kind_of(path))
    with refused():
        found = inspect(path) if kind == COMPACT else _load(path).summary_table()
    return {"kind": KINDS[kind], **found.to_dict()}, str(found)


def reconstruct(options: dict) -> tuple[dict, str]:
    """Saves the rebuilt classifier as a Keras model."""
    output = options["output"]
    with refused():
        _, _, rebuilt = _open(options["model"])
    with atomic_write(output) as path:
        rebuilt.save(path)
    results = {"output": str(output), "parameters": rebuilt.count_params()}
    return results, f"{output}: {rebuilt.name}, {rebuilt.count_params():,} parameters"


def evaluate(options: dict) -> tuple[dict, str]:
    """Measures a classifier on images, and compares it with the original if there is one."""
    with refused():
        nern, base, rebuilt = _open(options["model"])
        if options["base"] is not None:
            base = _load_model(options["base"])
        images, labels = data.load(options, rebuilt, "test")
        if labels is None and base is None:
            raise ValueError(
                "evaluate needs labels in --data, for the accuracy, or --base, for the agreement "
                "with the original. Received: neither"
            )
        first = data.first_batch(images)
        reader = ClassReader(rebuilt, first)
        base_reader = None if base is None else ClassReader(base, first)
        if base_reader and base_reader.num_classes != reader.num_classes:
            raise ValueError(
                f"--base must have {reader.num_classes} classes, as the rebuilt classifier. "
                f"Received: {base_reader.num_classes} classes"
            )
        if labels is not None:
            data.check_classes(labels, reader.num_classes)
    _say("Rebuilt classifier" if base_reader else "Classifier", options)
    predicted = reader(_outputs(rebuilt, images, options))
    results: dict[str, float] = {"images": len(predicted)}
    if labels is not None:
        results["accuracy"] = float(np.mean(predicted == labels))
    if base_reader:
        _say("Original", options)
        original = base_reader(_outputs(base, images, options))
        results["agreement"] = float(np.mean(predicted == original))
        if labels is not None:
            results["original_accuracy"] = float(np.mean(original == labels))
            results["accuracy_drop"] = results["original_accuracy"] - results["accuracy"]
    if nern is not None:
        results["relative_error"] = nern.relative_error()
    rows = [
        (name.replace("_", " "), f"{value:,}" if name == "images" else f"{value:.4f}")
        for name, value in results.items()
    ]
    return results, Table(rows, align="lr").to_text()


def export(options: dict) -> tuple[dict, str]:
    """Writes the compact file of a NeRN."""
    output = options["output"]
    with refused():
        nern = _load_model(options["model"])
    with refused((ValueError, ImportError)):  # raised before anything is written
        nern.export(
            output, precision=options["precision"], kept_precision=options["kept_precision"]
        )
    found = inspect(output)
    return {"output": str(output), **found.to_dict()}, f"{output}: {found.file_bytes:,} bytes"


def importance(options: dict) -> tuple[dict, str]:
    """Scores kernels and saves, on request, the scores, a plot and a pruned classifier."""
    with refused():
        nern = _load_model(options["model"])
        scores = keras_nern.kernel_importance(nern, options["measure"], options["seed"])
    figure = None
    if options["plot"] is not None:
        with refused((ImportError,)):  # without matplotlib, nothing is written
            figure = plots.plot_importance(scores, f"importance: {options['measure']}")
    if options["scores"] is not None:
        _save_scores(options["scores"], scores)
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
    rows = [(one["name"], f"{one['kernels']:,}", f"{one['median']:.4g}") for one in layers]
    table = Table(rows, ("layer", "kernels", "median score"), "lrr").to_text()
    written = [str(options[name]) for name in ("scores", "plot", "pruned") if options[name]]
    return results, "\n".join([table, *written])


def _save_scores(output: pathlib.Path, scores: dict[str, np.ndarray]) -> None:
    """Writes an .npz file; np.savez cannot write names such as `file`, which are its arguments."""
    with (
        atomic_write(output) as path,
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive,
    ):
        for name, score in scores.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, score)


def demo(options: dict) -> tuple[dict, str]:
    """Runs `keras_nern.demo`."""
    with refused((OSError,)):
        options["output"].mkdir(parents=True, exist_ok=True)
    with refused((ImportError,)):  # raised before any work
        results = run_demo(**options)
    original, rebuilt = (results[name]["accuracy"] for name in ("original", "rebuilt"))
    return results, f"accuracy: {original:.3f} original, {rebuilt:.3f} rebuilt"


class Refused(click.ClickException):
    """An error of the API before any work."""

    exit_code = 2


@contextlib.contextmanager
def refused(
    errors: tuple[type[Exception], ...] = (ValueError, OSError, ImportError),
) -> Iterator[None]:
    """Turns errors of the API before any work into `Refused`."""
    try:
        yield
    except errors as error:
        raise Refused(str(error)) from error


def _load_model(path: pathlib.Path) -> keras.Model:
    """Loads a NeRN or a classifier, and checks that its weights are finite."""
    model = _load(path)
    for one in (model.base, model) if isinstance(model, keras_nern.NeRNModel) else (model,):
        check_weights(repr(str(path)), one)
    return model


def _load(path: pathlib.Path) -> keras.Model:
    try:
        return keras.models.load_model(path, compile=kind_of(path) == NERN)
    except Exception as error:  # HDF5, zip, JSON and Keras raise errors of many kinds
        raise ValueError(
            f"Expected a model that Keras can load. Received: {str(path)!r}, {_why(path, error)}"
        ) from error


def _why(path: pathlib.Path, error: Exception) -> str:
    """Why Keras cannot load a file."""
    if kind_of(path) == HDF5:
        try:
            with h5py.File(path) as file:
                if "model_config" not in file.attrs:
                    return "which holds weights without a model: write it with model.save"
        except OSError:
            return "a damaged HDF5 file"
    if "Could not locate class" in str(error):
        return "whose custom layers the command line cannot import: use keras_nern in Python"
    return f"which raises {type(error).__name__}: {str(error).strip().splitlines()[0]}"


def _open(
    path: pathlib.Path,
) -> tuple[keras_nern.NeRNModel | None, keras.Model | None, keras.Model]:
    """`(nern, base, rebuilt)` of a NeRN; `(None, None, classifier)` of any other file."""
    kind = kind_of(path)
    if kind == COMPACT:
        return None, None, keras_nern.load(path)
    model = _load_model(path)
    if kind == NERN:
        return model, model.base, model.reconstruct()
    return None, None, model


def _outputs(model: keras.Model, images: Any, options: dict) -> np.ndarray:
    batch_size = BATCH_SIZE if isinstance(images, np.ndarray) else None
    if isinstance(images, keras_nern.NoiseDataset):
        images = copy.copy(images)  # predict ends an epoch, and the next one has other images
    callbacks = [] if options["quiet"] else [PredictionProgress()]
    return model.predict(images, batch_size=batch_size, verbose=0, callbacks=callbacks)


class PredictionProgress(keras.callbacks.Callback):
    """Shows the progress of `keras.Model.predict`."""

    def on_predict_begin(self, logs: dict | None = None) -> None:
        self._progress = Progress(self.params["steps"], "batch")
        self._done = 0

    def on_predict_batch_end(self, batch: int, logs: dict | None = None) -> None:
        self._done = batch + 1
        self._progress.update(self._done)

    def on_predict_end(self, logs: dict | None = None) -> None:
        self._progress.end(self._done)


def _say(text: str, options: dict) -> None:
    """Says what the lines below are about."""
    if not options["quiet"]:
        Screen().end(f"{text}:")


class Stopped(KeyboardInterrupt):
    """The command was stopped by a signal.

    Args:
        text: the message.
        code: the exit code.
        resume: the command that continues from the backup; `None` if there is no backup. Defaults
            to `None`.
    """

    def __init__(self, text: str, code: int, resume: str | None = None) -> None:
        super().__init__(text)
        self.code = code
        self.resume = resume


class StoppableBackup(keras.callbacks.BackupAndRestore):
    """Backs up a fit, and stops the command when a signal comes.

    Before the fit, a signal raises `Stopped` at once. During the fit, the first signal raises it
    after the current step is backed up, and the second one at once. After the last step, signals
    have no effect, so that the result is saved.

    A message names a step only if that step was backed up, and a backup only if it exists and
    belongs to this fit.

    Args:
        folder: the backup's folder.
        save_freq: steps between backups.
        resume_command: the command that continues from the backup.
        is_resumed: whether the folder holds a backup of this fit.
    """

    def __init__(
        self, folder: pathlib.Path, save_freq: int, resume_command: str, is_resumed: bool
    ) -> None:
        super().__init__(folder, save_freq=save_freq, delete_checkpoint=False)
        self.folder = folder
        self.resume_command = resume_command
        self.is_own = is_resumed  # whether the folder belongs to this fit
        self.stage = "before"  # then "during" and "after"
        self.signal: int | None = None

    def open(self, options: dict) -> None:
        """Makes the folder, unless the fit is resumed; replaces an old backup."""
        if self.is_own:
            return
        if self.folder.exists():
            shutil.rmtree(self.folder)  # check_backup has allowed it
        self.is_own = True
        self.folder.mkdir()
        with atomic_write(self.folder / SETTINGS) as path:
            pathlib.Path(path).write_text(json.dumps(_settings(options)))

    def delete(self) -> None:
        """Deletes the folder of this fit."""
        if self.is_own:
            shutil.rmtree(self.folder, ignore_errors=True)

    def on_signal(self, number: int, frame: types.FrameType | None) -> None:
        """Stops the fit, at once or after the current step; see the class."""
        if self.stage == "after":
            _notify("The fit is done and is being saved.")
        elif self.stage == "before" or self.signal is not None:
            raise self._stopped(number)
        else:
            self.signal = number
            _notify("Stopping after this step; a second signal stops at once.")

    def on_train_begin(self, logs: dict | None = None) -> None:
        super().on_train_begin(logs)
        self.stage = "during"

    def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
        number = self.signal  # a signal that comes later than this stops the next step
        if number is not None:
            self.save_freq = 1
        super().on_train_batch_end(batch, logs)
        if number is not None:
            raise self._stopped(number, f"Backed up at {self._step()}")

    def on_train_end(self, logs: dict | None = None) -> None:
        self.stage = "after"
        super().on_train_end(logs)

    def _step(self) -> str:
        """The step of the phase, and how many it has."""
        phase, done = self.model.phase, to_int(self.model.phase_iterations)
        if phase == "distillation":
            steps = self.params["steps"]  # None if unknown
            total = steps and steps * self.params["epochs"]
        else:
            total = getattr(self.model, f"{phase}_steps")
        return f"{phase} step {done:,}" + (f" of {total:,}" if total else "")

    def _stopped(self, number: int, backup: str = "The last backup is") -> Stopped:
        if not (self.is_own and has_backup(self.folder)):
            return Stopped("Stopped without a backup.", 128 + number)
        text = f"Stopped. {backup} in {self.folder}; continue with\n  {self.resume_command}"
        return Stopped(text, 128 + number, self.resume_command)


@contextlib.contextmanager
def _stoppable(options: dict, resume_command: str) -> Iterator[StoppableBackup]:
    """Handles Ctrl-C and SIGTERM while a verb trains; provides the callback for its fit."""
    keras.utils.set_random_seed(options["seed"])
    _check_resumed(options)
    backup = StoppableBackup(
        backup_of(options["output"]), options["backup_every"], resume_command, options["resume"]
    )
    numbers = (signal.SIGINT, signal.SIGTERM)
    handlers = {number: signal.signal(number, backup.on_signal) for number in numbers}
    try:
        yield backup
    finally:
        if not has_backup(backup.folder):
            backup.delete()
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _notify(text: str) -> None:
    """Prints a line from a signal handler; does nothing if the signal interrupted a print."""
    with contextlib.suppress(RuntimeError):  # "reentrant call"
        print(f"\n{text}", file=sys.stderr)


def _check_resumed(options: dict) -> None:
    """Raises a UsageError if the backup to resume belongs to another fit."""
    if not options["resume"]:
        return
    folder = backup_of(options["output"])
    settings = _settings(options)
    try:
        before = json.loads((folder / SETTINGS).read_text())
        if not isinstance(before, dict):
            raise ValueError(f"{SETTINGS} must be an object. Received: {before!r}")
    except (OSError, ValueError) as error:
        raise click.UsageError(f"{str(folder)!r} cannot be resumed: {error}") from error
    changed = [
        f"{name}={before.get(name)!r}, now {value!r}"
        for name, value in settings.items()
        if value != before.get(name)
    ]
    if changed:
        raise click.UsageError(
            "--resume needs the options and files of the stopped command. "
            f"Received: other ones ({', '.join(changed)})"
        )


def _settings(options: dict) -> dict:
    """The settings that identify a fit: its options, and the hash of the file it starts from."""
    settings = {name: value for name, value in options.items() if name not in UNIMPORTANT}
    with open(options.get("base") or options["model"], "rb") as file:
        settings["content"] = hashlib.file_digest(file, "sha256").hexdigest()
    return json.loads(json.dumps(settings, default=lambda path: str(pathlib.Path(path).absolute())))
