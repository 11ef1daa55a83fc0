"""How long does a search take, and what does it find?

    python benchmarks/search.py

Searches for the best representation of ResNet20 within a budget of bytes. The trials run the steps
of the README's row "ResNet20, a minute", and `--steps` of distillation on mixed-up CIFAR-10 images.
They are scored by the agreement on the last 5,000 training images, which no trial trains on. Prints
the Pareto front, and one row:

    seconds         per trial, with the images, orders and curvature that the trials share
    core seconds    CPU time of the same; other programs on the machine affect it less
    best            the trial with the highest agreement, as it was at the end of the search: its
                    bytes, and on the test images its drop in accuracy and its agreement
"""

import tempfile
import time

import cifar
import keras
import keras_tuner
import runs
import tables

from keras_nern.tuner import NeRNHyperModel, pareto_front

VALIDATION = 5_000  # images
BATCH_SIZE = 64
FAST = {"reconstruction_steps": 1_000, "curvature_steps": 250}


def main():
    """Searches and prints the table."""
    parser = runs.parser(__doc__)
    cifar.add_arguments(parser)
    parser.add_argument("--trials", type=int, default=30)
    parser.add_argument("--max-bytes", default="500 kB")
    parser.add_argument("--steps", type=int, default=30, help="steps of distillation per trial")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    keras.utils.set_random_seed(options.seed)
    base = cifar.resnet(20, options.weights)
    images, labels = cifar.load(options.data_dir, "train")
    test = cifar.load(options.data_dir, "test")
    start, cpu_start = time.perf_counter(), time.process_time()
    hypermodel = NeRNHyperModel(
        base,
        max_bytes=options.max_bytes,
        permutation=[None, "cross_filter"],
        num_layers=[5, 7, 9],
        narrowest=50,  # about a quarter of the bytes
        compile_arguments=FAST,
    )
    with tempfile.TemporaryDirectory() as folder:
        tuner = keras_tuner.BayesianOptimization(
            hypermodel,
            keras_tuner.Objective("val_agreement", "max"),
            max_trials=options.trials,
            num_initial_points=8,
            seed=options.seed,
            directory=folder,
            project_name="resnet20",
        )
        tuner.search(
            cifar.augmented(images[:-VALIDATION], BATCH_SIZE, options.seed, mixup=True),
            epochs=1 if options.steps else 0,
            steps_per_epoch=max(1, options.steps),
            validation_data=(images[-VALIDATION:], labels[-VALIDATION:]),
            validation_batch_size=500,
            verbose=2,
        )
        seconds = (time.perf_counter() - start) / options.trials
        cpu_seconds = (time.process_time() - cpu_start) / options.trials
        front = pareto_front(tuner)
        best = front.best()
        nern = tuner.load_model(tuner.oracle.get_trial(best.trial_id))
    print(front)
    print(flush=True)
    original = cifar.predict_classes(base, test[0])
    rebuilt = cifar.predict_classes(nern, test[0])
    drop = cifar.percent_equal(original, test[1]) - cifar.percent_equal(rebuilt, test[1])
    tables.print_header(
        [
            "max bytes",
            "distillation steps",
            "trials",
            "seconds per trial",
            "core seconds per trial",
            "best: bytes",
            "drop in accuracy, points",
            "agreement, %",
        ]
    )
    tables.print_row(
        [
            options.max_bytes,
            options.steps,
            len(front.trials),
            f"{seconds:.0f}",
            f"{cpu_seconds:.0f}",
            f"{best.bytes:,.0f}",
            f"{drop:.2f}",
            f"{cifar.percent_equal(rebuilt, original):.2f}",
        ]
    )


if __name__ == "__main__":
    main()
